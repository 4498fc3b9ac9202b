"""Examples into rows: open-bin best fit, in as many dimensions as an example has.

`open_rows` rows are kept open. An arriving example goes into the one with least room left (in the
first dimension) that still holds it in every dimension; where none does, the row with least room
left is closed and a new one opened. A row open for more than `max_age` arrivals is closed, so that
no example waits long. Rows are closed in an order that a stream could produce: nothing is sorted.

Plain Python, yet an example costs about a microsecond:

    1. The open rows are listed by the room they have left, so that the best is found by bisection.
    2. An example's other dimensions are the digits of one integer, and so is the room for them,
       with a set bit above each digit. What is too large borrows that bit when it is subtracted:
       all dimensions are compared at once.
"""

from __future__ import annotations

import collections
from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

OPEN_ROWS = 32
MAX_AGE = 1024  # arrivals; of rows of a hundred thousand tokens 32 are open for some 350


def best_fit(
    sizes: np.ndarray,
    capacity: Sequence[int],
    *,
    open_rows: int = OPEN_ROWS,
    max_age: int = MAX_AGE,
) -> np.ndarray:
    """(examples,) the row of each example, counted in the order in which rows are closed.

    Args:
      sizes: (examples, dimensions); an example of which the first size is 0 is left out: row -1.
      capacity: (dimensions,) of a row.

    Raises:
      ValueError: an example that no row can hold.
    """
    chosen = np.flatnonzero(sizes[:, 0])
    large = (sizes[chosen] > np.asarray(capacity)).any(axis=1)
    if large.any():
        index = chosen[np.argmax(large)]
        raise ValueError(f"example {index} of size {sizes[index]} is larger than a row, {capacity}")
    whole, borrow, needs = _digits(sizes[chosen, 1:], capacity[1:])
    most = capacity[0] * open_rows
    order = list(range(most, most + open_rows))  # room x open_rows + slot of each row, rising
    rest = [whole] * open_rows  # of each slot, for the other dimensions
    name = [-1] * open_rows  # of each slot's row, -1 where it is empty
    ages: collections.deque[tuple[int, int, int]] = collections.deque()
    names: list[int] = []  # of each example's row
    closed: list[int] = []
    begun = 0

    def close(at: int) -> int:
        slot = order.pop(at) % open_rows
        closed.append(name[slot])
        rest[slot], name[slot] = whole, -1
        order.append(most + slot)
        return slot

    for arrival, (size, need) in enumerate(zip(sizes[chosen, 0].tolist(), needs, strict=True)):
        while ages and ages[0][0] < arrival:
            _, slot, row = ages.popleft()
            if name[slot] == row:
                close(next(at for at, room in enumerate(order) if room % open_rows == slot))
                order.sort()
        at = bisect_left(order, size * open_rows)
        while at < open_rows:
            slot = order[at] % open_rows
            left = rest[slot] - need
            if left & borrow == borrow:
                break
            at += 1
        else:
            slot, at = close(0), open_rows - 1
            left = whole - need
        # A row that is empty has most room, so one is begun only where no other will do.
        if name[slot] < 0:
            name[slot], begun = begun, begun + 1
            ages.append((arrival + max_age, slot, name[slot]))
        names.append(name[slot])
        rest[slot] = left
        insort(order, order.pop(at) - size * open_rows, 0, at)
    closed += sorted(row for row in name if row >= 0)
    place = np.empty(begun, np.int64)
    place[closed] = np.arange(begun)
    found = np.full(len(sizes), -1, np.int64)
    found[chosen] = place[names]
    return found


def _digits(sizes: np.ndarray, capacity: Sequence[int]) -> tuple[int, int, list[int]]:
    """(a whole row's room, the bits that may not be borrowed, what each example takes of it)."""
    whole = borrow = shift = 0
    needs = [0] * len(sizes)
    for most, column in zip(capacity, sizes.T.tolist(), strict=True):
        needs = [need + (size << shift) for need, size in zip(needs, column, strict=True)]
        whole += int(most) << shift
        shift += int(most).bit_length()
        borrow += 1 << shift
        shift += 1
    return whole + borrow, borrow, needs
