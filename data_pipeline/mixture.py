"""Which clips are trained on, and how often each source has its turn.

A weight is a source's share in relation to the other sources': of the examples, or, with
`ByTokens`, of the tokens. What an example of each source costs is then measured on up to `MEASURED`
of its clips, by the laws of size, duration and dropping that it will be subject to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import filters
from data_pipeline.errors import DataError, suggestion
from data_pipeline.manifest import Manifest

MEASURED = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A manifest, or a part of one, and its weight.

    Attributes:
      split: only clips whose column `split` says so; None takes all.
      where: only clips of which this condition holds (`filters.py`); '' takes all.
    """

    manifest: str
    weight: float = 1.0
    split: str | None = None
    where: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByExamples:
    """Weights are shares of the examples."""

    def examples(
        self, weights: Sequence[float], tokens: Callable[[], Sequence[float]]
    ) -> tuple[float, ...]:
        """Shares of the examples; `tokens()` measures what an example of each source costs."""
        return tuple(weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByTokens:
    """Weights are shares of the tokens: of a source of short clips there are more examples."""

    def examples(
        self, weights: Sequence[float], tokens: Callable[[], Sequence[float]]
    ) -> tuple[float, ...]:
        return tuple(w / cost for w, cost in zip(weights, tokens(), strict=True))


def select(found: Manifest, source: Source) -> Manifest:
    """The clips of a manifest that a source trains on, in their order.

    Raises:
      DataError: code 2, an unknown split, a condition that cannot be, or one that no clip fulfils.
    """
    table = found.table
    if source.split is not None:
        table = table.filter(pc.field("split") == source.split)
        if not len(table):
            known = sorted(s for s in pc.unique(found.table["split"]).to_pylist() if s)
            has = "Its clips have no split." if not known else suggestion(source.split, known)
            raise DataError(f"no clip of '{source.manifest}' has split '{source.split}'. {has}", 2)
    if source.where:
        table = _where(table, source)
    return found if table is found.table else dataclasses.replace(found, table=table)


def _where(table: pa.Table, source: Source) -> pa.Table:
    kept = table.filter(filters.parse(source.where, table.schema))
    if not len(kept):
        raise DataError(
            f"where is {source.where!r}, which holds of none of the {len(table)} clips of "
            f"'{source.manifest}'; ask for less.",
            code=2,
        )
    return kept
