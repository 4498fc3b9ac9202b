"""`--profile=a:b`: a `jax.profiler` trace of steps a to b - 1, for TensorBoard or XProf."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from vdm_jax.config import UserError


@dataclasses.dataclass
class Profile:
    folder: Path
    first: int = 0
    last: int = 0  # first == last: no trace
    running: bool = False

    @classmethod
    def parse(cls, text: str | None, folder: Path) -> Profile:
        """Raises: UserError unless `text` is None or 'a:b' with 0 <= a < b."""
        if text is None:
            return cls(folder)
        start, colon, stop = text.partition(":")
        if not (colon and start.isdigit() and stop.isdigit() and int(start) < int(stop)):
            raise UserError(f"--profile is '{text}'; write the steps as a:b, such as 10:15.")
        return cls(folder, int(start), int(stop))

    def before(self, step: int) -> None:
        """Called before every step."""
        if self.first <= step < self.last and not self.running:
            jax.profiler.start_trace(str(self.folder))
            self.running = True
        elif step >= self.last:
            self.close()

    def close(self) -> None:
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
