"""Examples into rows: open-bin best fit, in as many dimensions as an example has.

`open_rows` rows are kept open. An arriving example goes into the one with least room left (in the
first dimension) that still holds it in every dimension; where none does, the row with least room
left is closed and a new one opened. A row open for more than `max_age` arrivals is closed, so that
no example waits long. Rows are closed in an order that a stream could produce: nothing is sorted.

"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

OPEN_ROWS = 32
MAX_AGE = 256


def best_fit(
    sizes: np.ndarray,
    capacity: Sequence[int],
    *,
    open_rows: int = OPEN_ROWS,
    max_age: int = MAX_AGE,
) -> list[list[int]]:
    """Indices of examples by row, in the order of arrival within a row.

    Args:
      sizes: (examples, dimensions); an example of which the first size is 0 is left out.
      capacity: (dimensions,) of a row.

    Raises:
      ValueError: an example that no row can hold.
    """
    limit = np.asarray(capacity, np.int64)
    room = np.zeros((open_rows, len(limit)), np.int64)
    rows: list[list[int]] = [[] for _ in range(open_rows)]
    born = np.zeros(open_rows, np.int64)
    closed: list[list[int]] = []

    def close(slot: int) -> None:
        closed.append(rows[slot])
        rows[slot], room[slot] = [], limit

    room[:] = limit
    for arrival, index in enumerate(np.flatnonzero(sizes[:, 0])):
        size = sizes[index]
        if (size > limit).any():
            raise ValueError(f"example {index} of size {size} is larger than a row, {limit}")
        for aged in np.flatnonzero(arrival - born > max_age):
            if rows[aged]:
                close(int(aged))
            born[aged] = arrival
        fits = (room >= size).all(axis=1)
        # An empty row has most room, so best fit opens one only where no begun row will do.
        if not fits.any():
            slot = int(np.argmin(room[:, 0]))
            close(slot)
        else:
            slot = int(np.argmin(np.where(fits, room[:, 0], np.iinfo(np.int64).max)))
        if not rows[slot]:
            born[slot] = arrival
        rows[slot].append(int(index))
        room[slot] -= size
    closed.extend(rows[slot] for slot in np.argsort(born, kind="stable") if rows[slot])
    return closed
