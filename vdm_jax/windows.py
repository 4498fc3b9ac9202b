"""Windows: a video longer than a network has seen, made part by part.

    frames     0 1 2 3 4 5 6 7 8 9
    window 0   * * * *
    window 1         c * * *               c: carried over from the window before
    window 2               c * * *

Without carried frames the windows do not know each other and are made side by side; with them one
follows the other, and what is carried is given to the next as known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from vdm_jax.config import UserError
from vdm_jax.types import Count, Natural


class Part(NamedTuple):
    """A window: of which video, which number of it, and its frames, those carried to it first."""

    video: int
    number: int
    frames: range


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
    """Attributes:
      frames: of a window at most.
      carry: the last frames of a window, which are the first of the next.
      same_noise: a window's noise is that of the first one, for a network that knows no time: what
        it invents then stays in place (Singer et al. 2022, section 3.2.3).

    Raises:
      UserError: nothing would be new in a window.
    """

    frames: Count
    carry: Natural = 0
    same_noise: bool = False

    def __post_init__(self):
        if self.carry >= self.frames:
            raise UserError(
                f"Windows carries {self.carry} of {self.frames} frames; carry must be less."
            )

    def cut(self, frames: int) -> list[range]:
        """The windows of a video of so many frames; the last may be shorter."""
        starts = range(0, max(frames - self.carry, 1), self.frames - self.carry)
        return [range(start, min(start + self.frames, frames)) for start in starts]

    def rounds(self, lengths: Sequence[int]) -> list[list[Part]]:
        """The windows of several videos, in rounds; those of one do not depend on each other."""
        parts = [
            Part(video, number, frames)
            for video, length in enumerate(lengths)
            for number, frames in enumerate(self.cut(length))
        ]
        if not self.carry:
            return [parts]
        last = max(part.number for part in parts)
        return [[part for part in parts if part.number == n] for n in range(last + 1)]
