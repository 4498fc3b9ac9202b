"""Checkpoints: Orbax inside our envelope, newest verified step first.

    <directory>/<step>/items/<item>/...   what Orbax writes, one Orbax item per item of the state
    <directory>/<step>/MANIFEST.json, COMMIT                  the envelope, written last
    <directory>/<step>.partial            exists while a step is being written or pruned
    <directory>/<step>.corrupt-<reason>   quarantined; never deleted

A step exists if its envelope is sealed, whatever else Orbax or the file system may say. Killed at
any moment, a folder either is sealed or has its `.partial` marker beside it; the next writer to
start removes the latter. `save` returns once the state is copied to the host; a thread writes,
seals, reads everything back, and only then prunes older steps.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from vdm_jax.config import UserError
from vdm_jax.parallel.hosts import HostError, Hosts
from vdm_jax.train import envelope
from vdm_jax.train.digest import named_leaves
from vdm_jax.train.envelope import Damaged, Manifest

PyTree = Any
ITEMS = "items"
STEP = re.compile(r"0|[1-9][0-9]*")
CORRUPT = re.compile(r"(0|[1-9][0-9]*)\.corrupt-.*")
STORAGE = ("RESOURCE_EXHAUSTED", "No space left", "Disk quota", "Input/output error", "Read-only")
LOG = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run. A context manager: leaving it waits for what is being written.

    With several processes every one of them makes the same calls. One process group writes to a
    directory at a time; any number may read meanwhile.

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
        path = epath.Path(directory)
        self.directory = path.resolve() if envelope.is_local(path) else path
        self.keep = keep
        self._timeout_s = barrier_timeout_s
        prefix = f"checkpoints/{_instances()}"
        self._front = Hosts(f"{prefix}/front", timeout_s=barrier_timeout_s)
        self._back = Hosts(f"{prefix}/back", timeout_s=barrier_timeout_s)
        self._verified: dict[int, Manifest] = {}
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._cleaned = False

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
            _refuse_non_finite(step, item, items[item])
        leaves = {item: dict(named_leaves(tree)) for item, tree in items.items()}
        fingerprint = {item: fingerprint_of(found) for item, found in leaves.items()}
        content = {item: nest(found) for item, found in leaves.items() if found}
        checkpointer = _checkpointer(self._timeout_s)
        try:
            self._front.agree("claim", lambda: self._claim(step))
            arguments = {item: ocp.args.PyTreeSave(tree) for item, tree in content.items()}
            checkpointer.save(
                self.directory / str(step) / ITEMS, args=ocp.args.Composite(**arguments)
            )
        except Exception as error:
            checkpointer.close()
            self._reclaim(step, error)
            raise self._told(step, error) from error
        self._thread = threading.Thread(
            target=self._finish, args=(step, checkpointer, fingerprint, meta), name=f"save-{step}"
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
        return [step for step in self._numbered() if envelope.sealed(self._folder(step))]

    def newest(self) -> int | None:
        """The newest step that verifies, or None where nothing was ever saved.

        Damaged ones on the way are quarantined, with one line in the log for each.

        Raises:
          UserError: code 4; there are checkpoints, and none of them verifies.
        """
        bad = []
        for step in self._front.agree("numbered", self._numbered)[0][::-1]:
            try:
                self._verify(step, self._front)
                return step
            except Damaged as damage:
                # Judged by process 0 for all: a step being written or pruned is nobody's damage.
                if self._front.agree("busy", lambda step=step: self._busy(step))[0]:
                    continue
                name = self._front.agree("away", lambda s=step, d=damage: self._away(s, d))[0]
                LOG.warning("%s Renamed to %s.", damage, name)
                bad.append(f"{step} ({damage.file}: {damage.detail})")
        bad += self._front.agree("corrupt", lambda: self._corrupt(exclude=len(bad)))[0]
        if bad:
            raise UserError(
                f"{self.directory} holds no checkpoint that can be trusted: {', '.join(bad)}. "
                "Put back a copy of an intact step, or start anew in another directory.",
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
        manifest = self._manifest(step)
        wanted = {item: dict(named_leaves(tree)) for item, tree in abstract.items()}
        for item, leaves in wanted.items():
            _check_fits(step, item, manifest.fingerprint, fingerprint_of(leaves))
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        arguments = {}
        for item, leaves in wanted.items():
            if leaves:
                places = {
                    path: ocp.ArrayRestoreArgs(
                        sharding=leaf.sharding or here, dtype=leaf.dtype, global_shape=leaf.shape
                    )
                    for path, leaf in leaves.items()
                }
                arguments[item] = ocp.args.PyTreeRestore(nest(leaves), restore_args=nest(places))
        found = self._read(step, arguments)
        restored = {}
        for item, tree in abstract.items():
            flat = dict(named_leaves(found[item])) if item in found else {}
            treedef = jax.tree.structure(tree)
            restored[item] = jax.tree.unflatten(treedef, [flat[path] for path in wanted[item]])
        return restored

    def restore_numpy(self, step: int, items: Sequence[str] | None = None) -> dict[str, PyTree]:
        """Items (all by default) as nested dicts of numpy arrays, keyed by the strings of paths.

        Raises:
          UserError: no such item.
          Damaged: the checkpoint does not verify.
        """
        manifest = self._manifest(step)
        arguments = {}
        for item in manifest.fingerprint if items is None else items:
            _check_item(step, item, manifest.fingerprint)
            leaves = {tuple(leaf["path"]): leaf for leaf in manifest.fingerprint[item]}
            if leaves:
                whole = {path: ocp.RestoreArgs(restore_type=np.ndarray) for path in leaves}
                shapes = {
                    path: jax.ShapeDtypeStruct(tuple(leaf["shape"]), jnp.dtype(leaf["dtype"]))
                    for path, leaf in leaves.items()
                }
                arguments[item] = ocp.args.PyTreeRestore(nest(shapes), restore_args=nest(whole))
        found = self._read(step, arguments)
        return {item: found.get(item, {}) for item in items or manifest.fingerprint}

    # Reading

    def _read(self, step: int, arguments: Mapping[str, Any]) -> dict[str, PyTree]:
        if not arguments:
            return {}
        handler = ocp.CompositeCheckpointHandler()
        with ocp.Checkpointer(handler) as checkpointer:
            return dict(
                checkpointer.restore(
                    self._folder(step) / ITEMS, args=ocp.args.Composite(**arguments)
                ).items()
            )

    def _manifest(self, step: int) -> Manifest:
        return self._verified.get(step) or self._verify(step, self._front)

    def _verify(self, step: int, hosts: Hosts) -> Manifest:
        try:
            self._verified[step] = envelope.verify(self._folder(step), hosts)
        except Damaged:
            self._verified.pop(step, None)
            raise
        return self._verified[step]

    def _folder(self, step: int) -> epath.Path:
        return self.directory / str(step)

    def _partial(self, step: int) -> epath.Path:
        return self.directory / f"{step}.partial"

    def _names(self) -> list[str]:
        try:
            return sorted(path.name for path in self.directory.iterdir())
        except FileNotFoundError:
            return []

    def _numbered(self) -> list[int]:
        """Steps that ought to be checkpoints: numbers that no marker excuses."""
        names = set(self._names())
        marked = {found[1] for name in names if (found := CORRUPT.fullmatch(name))}
        steps = [name for name in names if STEP.fullmatch(name)]
        if not envelope.is_local(self.directory):
            steps = [name for name in steps if name not in marked]
        return sorted(int(n) for n in steps if f"{n}.partial" not in names or self._sealed(n))

    def _sealed(self, name: str) -> bool:
        return envelope.sealed(self.directory / name)

    def _busy(self, step: int) -> bool:
        names = self._names()
        return f"{step}.partial" in names or str(step) not in names

    def _corrupt(self, exclude: int) -> list[str]:
        """Those quarantined earlier; after them a run must not silently begin at step 0."""
        found = [name for name in self._names() if CORRUPT.fullmatch(name)]
        return found if not exclude else []

    def _away(self, step: int, damage: Damaged) -> str:
        if self._front.index != 0:
            return ""
        return envelope.quarantine(self._folder(step), damage.reason)

    # Writing

    def _claim(self, step: int) -> None:
        """Process 0 makes the step's folder, its marker first; removes what a killed writer left."""
        if self._front.index != 0:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self._cleaned:
            self._clean()
            self._cleaned = True
        folder = self._folder(step)
        if str(step) in self._names():
            try:
                envelope.read_manifest(folder)
            except Damaged as damage:
                self._away(step, damage)
            else:
                raise UserError(f"{self.directory} holds a checkpoint of step {step} already.")
        envelope.write(self._partial(step), b"")
        folder.mkdir()
        if envelope.is_local(folder):
            envelope.sync_folder(self.directory)

    def _clean(self) -> None:
        for name in self._names():
            step = name.removesuffix(".partial")
            if name != step and STEP.fullmatch(step):
                if not self._sealed(step):
                    LOG.warning("removing what a stopped process left of checkpoint %s.", step)
                    (self.directory / step).rmtree(missing_ok=True)
                (self.directory / name).unlink(missing_ok=True)

    def _finish(
        self,
        step: int,
        checkpointer: ocp.AsyncCheckpointer,
        fingerprint: Mapping[str, Any],
        meta: Mapping[str, Any],
    ) -> None:
        """In the thread: written -> sealed -> read back -> older ones pruned."""
        try:
            self._back.agree("written", checkpointer.wait_until_finished)
            folder = self._folder(step)
            envelope.seal(folder, step=step, fingerprint=fingerprint, meta=meta, hosts=self._back)
            self._verify(step, self._back)
            if self._back.index == 0:
                self._partial(step).unlink()
                self._prune(step)
        except Exception as error:
            self._reclaim(step, error)
            told = self._told(step, error)
            told.__cause__ = error if told is not error else error.__cause__
            self._error = told
        finally:
            try:
                checkpointer.close()
            except Exception as error:  # it repeats what waiting for it has raised already
                LOG.debug("closing after step %d: %s", step, error)

    def _prune(self, latest: int) -> None:
        older = [step for step in self.steps() if step < latest]
        for step in older[: len(older) - (self.keep - 1)]:
            self._verified.pop(step, None)
            envelope.write(self._partial(step), b"")
            (self._folder(step) / envelope.COMMIT).unlink()
            self._folder(step).rmtree()
            self._partial(step).unlink()

    def _reclaim(self, step: int, error: Exception) -> None:
        """Give back the space of a save that failed; only what this save has marked as its own."""
        if self._back.index == 0 and not isinstance(error, UserError | HostError):
            try:
                if self._partial(step).exists():
                    self._folder(step).rmtree(missing_ok=True)
                    self._partial(step).unlink()
            except OSError as failure:
                LOG.warning("what is left of checkpoint %d stays for now: %s", step, failure)
                self._cleaned = False

    def _told(self, step: int, error: Exception) -> Exception:
        lines = str(error).splitlines() or [type(error).__name__]
        about_storage = isinstance(error, OSError) or any(w in str(error) for w in STORAGE)
        if isinstance(error, UserError) or not about_storage:
            return error
        reason = next((line for line in lines if any(w in line for w in STORAGE)), lines[0])
        return UserError(
            f"checkpoint {step} could not be written to {self.directory}: {reason[:300]}. "
            "Earlier checkpoints are intact; free some space, or take another directory.",
            code=6,
        )


def nest(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """{path: leaf} -> dicts in dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        if not path or any("/" in key or not key for key in path):
            raise ValueError(f"a leaf called {path} cannot be saved: each needs a name without '/'.")
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def fingerprint_of(leaves: Mapping[tuple[str, ...], Any]) -> list[dict[str, Any]]:
    """Path, shape and dtype of every leaf, in order of path."""
    return [
        {"path": list(path), "shape": list(np.shape(leaf)), "dtype": np.dtype(leaf.dtype).name}
        for path, leaf in sorted(leaves.items())
    ]


def _checkpointer(timeout_s: float) -> ocp.AsyncCheckpointer:
    """A fresh one for each save: after a failure, nothing of it lingers."""
    return ocp.AsyncCheckpointer(
        ocp.CompositeCheckpointHandler(),
        async_options=ocp.AsyncOptions(timeout_secs=max(1, int(timeout_s))),
    )


def _check_item(step: int, item: str, fingerprint: Mapping[str, Any]) -> None:
    if item not in fingerprint:
        known = ", ".join(sorted(fingerprint))
        raise UserError(f"checkpoint {step} has no '{item}'; it has {known}.")


def _check_fits(
    step: int, item: str, fingerprint: Mapping[str, Any], wanted: list[dict[str, Any]]
) -> None:
    """Orbax casts dtypes without a word, so what was saved is compared before it is read."""
    _check_item(step, item, fingerprint)
    saved = {tuple(leaf["path"]): leaf for leaf in fingerprint[item]}
    asked = {tuple(leaf["path"]): leaf for leaf in wanted}
    for path in sorted(saved.keys() | asked.keys()):
        name = "/".join((item, *path))
        if path not in saved:
            raise UserError(f"checkpoint {step} has no {name}, which this model needs.")
        if path not in asked:
            raise UserError(f"checkpoint {step} holds {name}, which this model does not have.")
        for field in ("shape", "dtype"):
            old, new = saved[path][field], asked[path][field]
            if old != new:
                raise UserError(
                    f"checkpoint {step} holds {name} with {field} {old}; this model needs {new}."
                )


@jax.jit
def _finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]


def _refuse_non_finite(step: int, item: str, tree: PyTree) -> None:
    floats = {p: x for p, x in named_leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)}
    for path, finite in zip(floats, _finite(list(floats.values())), strict=True):
        if not bool(finite):
            raise UserError(
                f"step {step} is not saved: {'/'.join((item, *path))} holds a nan or an infinity. "
                "Earlier checkpoints are intact; lower the learning rate and resume.",
                code=5,
            )


def _instances() -> int:
    global _count
    _count += 1
    return _count


_count = 0
