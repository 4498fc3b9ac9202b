"""The directory of a run's checkpoints: which names count, and how they come and go.

    <step>/                   a checkpoint, if its envelope is sealed
    <step>.partial            made before the folder is, removed after it is sealed and verified;
                              made again before the folder is pruned: an unsealed step beside such
                              a marker is unfinished work, without it a damaged checkpoint
    <step>.corrupt-<reason>   quarantined; never deleted

One process writes; any number may read meanwhile, and readers remove nothing.
"""

from __future__ import annotations

import logging
import re

from etils import epath

from vdm_jax.config import UserError
from vdm_jax.train import envelope
from vdm_jax.train.envelope import Damaged

STEP = re.compile(r"0|[1-9][0-9]*")
CORRUPT = re.compile(r"(0|[1-9][0-9]*)\.corrupt-.*")
LOG = logging.getLogger(__name__)


class Shelf:
    """`directory`: a local path or an object store's URL, made at the first `claim`."""

    def __init__(self, directory: epath.PathLike):
        path = epath.Path(directory)
        self.directory = path.resolve() if envelope.is_local(path) else path
        self._clean = False

    def folder(self, step: int) -> epath.Path:
        return self.directory / str(step)

    def names(self) -> list[str]:
        try:
            return sorted(path.name for path in self.directory.iterdir())
        except FileNotFoundError:
            return []

    def numbered(self) -> list[int]:
        """Steps, ascending, that ought to be checkpoints: numbers that no marker excuses."""
        names = set(self.names())
        found = [name for name in names if STEP.fullmatch(name)]
        if not envelope.is_local(self.directory):  # there quarantine leaves the folder in place
            marked = {match[1] for name in names if (match := CORRUPT.fullmatch(name))}
            found = [name for name in found if name not in marked]
        return sorted(
            step for step in map(int, found) if f"{step}.partial" not in names or self.sealed(step)
        )

    def sealed(self, step: int) -> bool:
        return envelope.sealed(self.folder(step))

    def unfinished(self, step: int) -> bool:
        """Whether a step is being written or pruned, or has gone."""
        names = self.names()
        return f"{step}.partial" in names or str(step) not in names

    def corrupt(self) -> list[str]:
        """Names of those quarantined."""
        return [name for name in self.names() if CORRUPT.fullmatch(name)]

    def claim(self, step: int) -> None:
        """Make the folder of a new step, its marker first.

        The first time, what a killed writer left unfinished is removed.

        Raises:
          UserError: the step is there already.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self._clean:
            self._remove_unfinished()
            self._clean = True
        if str(step) in self.names():
            try:
                envelope.read_manifest(self.folder(step))
            except Damaged as damage:
                envelope.quarantine(self.folder(step), damage.reason)
            else:
                raise UserError(f"{self.directory} holds a checkpoint of step {step} already.")
        self._mark(step)
        self.folder(step).mkdir()
        if envelope.is_local(self.directory):
            envelope.sync_folder(self.directory)

    def settle(self, step: int) -> None:
        """The step is sealed and verified: it is unfinished no more."""
        self._unmark(step)

    def reclaim(self, step: int) -> None:
        """Give back the space of a claimed step that failed."""
        try:
            if self._marker(step).exists():
                self.folder(step).rmtree(missing_ok=True)
                self._unmark(step)
        except OSError as failure:
            LOG.warning("what is left of checkpoint %d stays for now: %s", step, failure)
            self._clean = False

    def prune(self, latest: int, keep: int) -> None:
        """Of the sealed steps before `latest` leave the newest `keep - 1`."""
        older = [step for step in self.numbered() if step < latest and self.sealed(step)]
        for step in older[: max(0, len(older) - (keep - 1))]:
            self._mark(step)
            # COMMIT first: from here on the step counts for nobody.
            (self.folder(step) / envelope.COMMIT).unlink()
            self.folder(step).rmtree()
            self._unmark(step)

    def _remove_unfinished(self) -> None:
        for name in self.names():
            number = name.removesuffix(".partial")
            if name != number and STEP.fullmatch(number):
                step = int(number)
                if not self.sealed(step):
                    LOG.warning("removing what a stopped process left of checkpoint %d.", step)
                    self.folder(step).rmtree(missing_ok=True)
                self._unmark(step)

    def _marker(self, step: int) -> epath.Path:
        return self.directory / f"{step}.partial"

    def _mark(self, step: int) -> None:
        envelope.write(self._marker(step), b"")

    def _unmark(self, step: int) -> None:
        self._marker(step).unlink(missing_ok=True)
