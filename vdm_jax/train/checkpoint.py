"""Checkpoints: Orbax inside our envelope, newest verified step first.

    <directory>/<step>/items/<item>/...        what Orbax writes, one Orbax item per item saved
    <directory>/<step>/MANIFEST.json, COMMIT   the envelope, written last (`envelope.py`)

A step exists if its envelope is sealed, whatever else Orbax or the file system may say; killed at
any moment, a folder either is sealed or is marked as unfinished (`shelf.py`). `save` returns once
the state is copied to the host; a thread writes, seals, reads everything back, and only then
prunes older steps, so that `keep + 1` steps must fit.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from vdm_jax.config import UserError
from vdm_jax.parallel.hosts import HostError, Hosts
from vdm_jax.train import envelope, fingerprint
from vdm_jax.train.digest import PyTree, named_leaves
from vdm_jax.train.envelope import Damaged, Manifest
from vdm_jax.train.fingerprint import nest
from vdm_jax.train.shelf import Shelf

ITEMS = "items"
STORAGE = ("RESOURCE_EXHAUSTED", "No space left", "Disk quota", "Input/output error", "Read-only")
LOG = logging.getLogger(__name__)
_instances = itertools.count()


class Checkpoints:
    """The checkpoints of one run. A context manager: leaving it waits for what is being written.

    With several processes every one of them makes the same calls. One run writes to a directory at
    a time; others may read meanwhile.

    Args:
      directory: a local path or an object store's URL, made at the first save.
      keep: so many verified steps remain.
      barrier_timeout_s: how long to wait for another process before giving up.
    """

    def __init__(
        self, directory: epath.PathLike, *, keep: int = 3, barrier_timeout_s: float = 600.0
    ):
        if keep < 1:
            raise UserError(f"keep is {keep}; at least 1 checkpoint must be kept.")
        self.shelf, self.keep = Shelf(directory), keep
        self._timeout_s = barrier_timeout_s
        number = next(_instances)
        # One for each thread that asks the other processes.
        self._front = Hosts(f"checkpoints/{number}/front", timeout_s=barrier_timeout_s)
        self._back = Hosts(f"checkpoints/{number}/back", timeout_s=barrier_timeout_s)
        self._verified: dict[int, Manifest] = {}
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            LOG.error("%s", failure)  # what ended the block must not be hidden by this

    def close(self) -> None:
        """Same as `wait`."""
        self.wait()

    def save(
        self,
        step: int,
        items: Mapping[str, PyTree],
        meta: Mapping[str, Any],
        *,
        wait: bool = False,
        check_finite: Sequence[str] = (),
    ) -> None:
        """Save `items` (name -> tree of arrays) and `meta` (JSON) as `step`, in the background.

        Args:
          wait: return only when the step is sealed, verified and older ones are pruned.
          check_finite: items in which no floating-point leaf may hold a nan or an infinity.

        Raises:
          UserError: code 6 where this save, or the one before it, could not be written; code 5 for
            a leaf that is not finite; code 2 where the step exists already.
        """
        self.wait()
        for item in check_finite:
            fingerprint.check_finite(step, item, items[item])
        leaves = {item: dict(named_leaves(tree)) for item, tree in items.items()}
        prints = {item: fingerprint.fingerprint_of(found) for item, found in leaves.items()}
        arguments = {
            item: ocp.args.PyTreeSave(nest(found)) for item, found in leaves.items() if found
        }
        checkpointer = _checkpointer(self._timeout_s)
        try:
            self._front.agree("claim", lambda: self._claim(step))
            folder = self.shelf.folder(step) / ITEMS
            checkpointer.save(folder, args=ocp.args.Composite(**arguments))
        except Exception as error:
            checkpointer.close()
            raise self._failed(step, error) from error
        self._thread = threading.Thread(
            target=self._finish, args=(step, checkpointer, prints, dict(meta)), name=f"save-{step}"
        )
        self._thread.start()
        if wait:
            self.wait()

    def poll(self) -> None:
        """Raise what went wrong in the background, if anything did; does not wait."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the save in progress and raise what went wrong in it, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def steps(self) -> list[int]:
        """Sealed steps, ascending. What their files hold has not been verified by this."""
        return [step for step in self.shelf.numbered() if self.shelf.sealed(step)]

    def newest(self) -> int | None:
        """The newest step that verifies, or None where nothing was ever saved.

        Damaged ones on the way are quarantined, with one line in the log for each.

        Raises:
          UserError: code 4; there are checkpoints, and none of them verifies.
        """
        bad, gone = [], False
        for step in reversed(self._first("numbered", self.shelf.numbered)):
            try:
                self._verify(step, self._front)
                return step
            except Damaged as damage:
                # A step that its writer prunes meanwhile is nobody's damage.
                if self._first("unfinished", lambda step=step: self.shelf.unfinished(step)):
                    gone = True
                    continue
                name = self._first("quarantine", lambda d=damage, step=step: self._away(step, d))
                LOG.warning("%s Renamed to %s.", damage, name)
                bad.append(f"{step} ({damage.file}: {damage.detail})")
        if gone:
            return self.newest()
        # Quarantined by an earlier start: a run must not silently begin at step 0 after that.
        bad = bad or self._first("corrupt", self.shelf.corrupt)
        if bad:
            raise UserError(
                f"{self.shelf.directory} holds no checkpoint that can be trusted: "
                f"{', '.join(bad)}. Put back an intact copy of one, or start anew in another "
                "directory.",
                code=4,
            )
        return None

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON given to `save`."""
        return dict(self._manifest(step).meta)

    def restore(self, step: int, abstract: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """The items named by `abstract`, each a tree of `jax.ShapeDtypeStruct` with shardings.

        The mesh may be another than at saving. Not every item of the checkpoint need be named.

        Raises:
          UserError: an item, a leaf, a shape or a dtype is not what was saved.
          Damaged: the checkpoint does not verify.
        """
        saved = self._manifest(step).fingerprint
        wanted = {item: dict(named_leaves(tree)) for item, tree in abstract.items()}
        for item, leaves in wanted.items():
            fingerprint.check_fits(step, item, saved, fingerprint.fingerprint_of(leaves))
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def how(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
            return ocp.ArrayRestoreArgs(
                sharding=leaf.sharding or here, dtype=leaf.dtype, global_shape=leaf.shape
            )

        found = self._read(
            step,
            {
                item: (x, {path: how(leaf) for path, leaf in x.items()})
                for item, x in wanted.items()
            },
        )
        restored = {}
        for item, tree in abstract.items():
            flat = dict(named_leaves(found[item]))
            ordered = [flat[path] for path in wanted[item]]
            restored[item] = jax.tree.unflatten(jax.tree.structure(tree), ordered)
        return restored

    def restore_numpy(self, step: int, items: Sequence[str] | None = None) -> dict[str, PyTree]:
        """Items (all by default) as nested dicts of numpy arrays, keyed by the strings of paths.

        Raises:
          UserError: no such item.
          Damaged: the checkpoint does not verify.
        """
        saved = self._manifest(step).fingerprint
        wanted = {}
        for item in saved if items is None else items:
            fingerprint.check_item(step, item, saved)
            leaves = {
                tuple(leaf["path"]): jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"])
                for leaf in saved[item]
            }
            wanted[item] = (leaves, dict.fromkeys(leaves, ocp.RestoreArgs(restore_type=np.ndarray)))
        return self._read(step, wanted)

    def _read(self, step: int, wanted: Mapping[str, tuple[dict, dict]]) -> dict[str, PyTree]:
        """Item -> ({path: abstract leaf}, {path: how to restore it}) -> nested dicts."""
        arguments = {
            item: ocp.args.PyTreeRestore(nest(leaves), restore_args=nest(how))
            for item, (leaves, how) in wanted.items()
            if leaves
        }
        found: dict[str, PyTree] = {item: {} for item in wanted}
        if arguments:
            folder = self.shelf.folder(step) / ITEMS
            for item in arguments:
                shapes = {path: leaf.shape for path, leaf in wanted[item][0].items()}
                fingerprint.check_stored(step, folder / item, shapes)
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
                read = checkpointer.restore(folder, args=ocp.args.Composite(**arguments))
            found |= {item: read[item] for item in arguments}
        return found

    def _manifest(self, step: int) -> Manifest:
        return self._verified.get(step) or self._verify(step, self._front)

    def _verify(self, step: int, hosts: Hosts) -> Manifest:
        self._verified.pop(step, None)
        self._verified[step] = envelope.verify(self.shelf.folder(step), hosts)
        return self._verified[step]

    def _first(self, name: str, work: Any) -> Any:
        """What process 0 finds, for all."""
        return self._front.agree(name, lambda: work() if self._front.index == 0 else None)[0]

    def _away(self, step: int, damage: Damaged) -> str:
        return envelope.quarantine(self.shelf.folder(step), damage.reason)

    def _claim(self, step: int) -> None:
        if self._front.index == 0:
            self.shelf.claim(step)

    def _finish(
        self,
        step: int,
        checkpointer: ocp.AsyncCheckpointer,
        prints: Mapping[str, Any],
        meta: Mapping[str, Any],
    ) -> None:
        """In the thread: written -> sealed -> read back -> older ones pruned."""
        hosts = self._back
        try:
            hosts.agree("written", checkpointer.wait_until_finished)
            folder = self.shelf.folder(step)
            envelope.seal(folder, step=step, fingerprint=prints, meta=meta, hosts=hosts)
            self._verify(step, hosts)
            if hosts.index == 0:
                self.shelf.settle(step)
                self.shelf.prune(step, self.keep)
        except Exception as error:
            self._error = self._failed(step, error)
        finally:
            try:
                checkpointer.close()
            except Exception as error:  # it repeats what waiting for it has raised already
                LOG.debug("closing after step %d: %s", step, error)

    def _failed(self, step: int, error: Exception) -> Exception:
        """Give back a failed save's space; the error to raise: storage's as one sentence."""
        if isinstance(error, UserError) and not isinstance(error, Damaged):
            return error
        # After HostError others may still be writing; the next start removes what is left.
        if self._back.index == 0 and not isinstance(error, HostError):
            self.shelf.reclaim(step)
        text = str(error)
        storage = isinstance(error, OSError | Damaged) or any(word in text for word in STORAGE)
        if not storage:
            return error
        lines = text.splitlines() or [type(error).__name__]
        reason = next((line for line in lines if any(word in line for word in STORAGE)), lines[0])
        told = UserError(
            f"checkpoint {step} could not be written to {self.shelf.directory}: {reason[:300]}. "
            "Earlier checkpoints are intact; free some space, or take another directory.",
            code=6,
        )
        told.__cause__ = error
        return told


def _checkpointer(timeout_s: float) -> ocp.AsyncCheckpointer:
    """A fresh one for each save: after a failure, nothing of it lingers."""
    return ocp.AsyncCheckpointer(
        ocp.CompositeCheckpointHandler(),
        async_options=ocp.AsyncOptions(timeout_secs=max(1, int(timeout_s))),
    )
