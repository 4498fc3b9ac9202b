"""Where clips are looked at: a Ray cluster, by Ray Data, which the extra `ray` installs.

The files of the manifest and this package must be in reach of every node.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import pyarrow as pa

from data_pipeline.curation.processes import Task
from data_pipeline.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RayData:
    """An `Engine`: each task holds `cpus` processors and is given `batch` clips."""

    cpus: float = 1.0
    batch: int = 8
    part: int = 1 << 16

    @contextlib.contextmanager
    def running(self, task: Task) -> Iterator[Callable[[pa.Table], Iterator[pa.Table]]]:
        """Raises: DataError, code 2, Ray is not installed; within it, what a task raises."""
        try:
            import ray.data
            import ray.exceptions
        except ImportError as error:
            raise DataError(f"RayData needs Ray: pip install '.[ray]' ({error}).", code=2) from None

        def look(clips: pa.Table) -> Iterator[pa.Table]:
            found = ray.data.from_arrow(clips).map_batches(
                task, batch_size=self.batch, batch_format="pyarrow", num_cpus=self.cpus
            )
            try:
                yield from found.iter_batches(batch_size=None, batch_format="pyarrow")
            except ray.exceptions.RayTaskError as error:
                if not isinstance(error.cause, DataError):
                    raise
                # Such as a model that fails: one sentence, without the advice that Ray adds to it.
                said = str(error.cause).partition("\n")[0]
                raise DataError(said, error.cause.code) from error

        context = ray.data.DataContext.get_current()
        wrapped, context.raise_original_map_exception = context.raise_original_map_exception, True
        try:
            yield look
        finally:
            context.raise_original_map_exception = wrapped

    def problems(self) -> list[str]:
        return [
            f"RayData.{name} is {value}; it must be above 0."
            for name, value in dataclasses.asdict(self).items()
            if not value > 0
        ]
