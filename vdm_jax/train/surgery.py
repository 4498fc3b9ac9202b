"""What a new model takes from a finished run's weights: ordered (pattern, rule) pairs over paths.

    inherit = Inherit(run="runs/image", rules=(
        (r"/after_[a-z_]+_\\d+_\\d+/", Fresh()),             # parts that act in time
        (r"backbone/conv_in/kernel$", Wider()),            # sees more channels than it did there
        (".*", Copy()),
    ))

The first pattern that matches a parameter's path (`re.search`) decides where its values come from.
Rules are strict: a parameter that none matches, one that is not there or has another shape, and a
rule that decides nothing are mistakes, told together. Only `Fitting`, which is what a run without
rules of its own uses, takes what fits and says what does not.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Array

from vdm_jax.config import UserError
from vdm_jax.train.optim import path_name
from vdm_jax.types import Count, Params

MOST = 8  # mistakes that are told


class Taken(NamedTuple):
    """Values for a parameter, or None: it stays as it began. `kind` heads its line of a report."""

    value: np.ndarray | None
    source: str = ""
    kind: str = "taken"
    said: str = ""


class Rule(Protocol):
    def __call__(self, name: str, shape: tuple[int, ...], offered: Mapping[str, Any]) -> Taken:
        """What the parameter `name` becomes, of the leaves `offered` by path.

        Raises:
          UserError: the rule cannot be kept.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fresh:
    """Stays as it was initialised."""

    def __call__(self, name, shape, offered):
        return Taken(None, kind="new")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copy:
    """The same values. Where the path matches `here`, that part of it is called `there` in the
    source (a regular expression and what `re.sub` puts in its place)."""

    here: str = ""
    there: str = ""

    def __call__(self, name, shape, offered):
        source = _source(self, name, offered)
        if offered[source].shape != shape:
            raise UserError(f"{name} has a shape of {shape}, but {offered[source].shape} there")
        return Taken(offered[source], source)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wider:
    """More inputs than there were: the old ones' values, and 0 for those that follow them.

    Inputs are the last axis but one, of linear layers as of convolutions. So a model that is shown
    more than its origin was begins by not looking at it.
    """

    here: str = ""
    there: str = ""

    def __call__(self, name, shape, offered):
        source = _source(self, name, offered)
        old = offered[source]
        more = shape[-2] - old.shape[-2] if len(shape) == old.ndim >= 2 else -1
        if more < 0 or (*old.shape[:-2], shape[-2], old.shape[-1]) != shape:
            raise UserError(f"{name} has a shape of {shape}, which does not widen {old.shape}")
        edges = [(0, 0)] * (old.ndim - 2) + [(0, more), (0, 0)]
        said = f"{old.shape[-2]} -> {shape[-2]} inputs"
        return Taken(np.pad(old, edges), source, kind="wider", said=said)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitting:
    """The same values where path and shape are the same; else it stays as it was initialised."""

    def __call__(self, name, shape, offered):
        if name not in offered:
            return Taken(None, kind="new")
        if offered[name].shape != shape:
            said = f"{offered[name].shape} -> {shape}"
            return Taken(None, name, kind="other shape", said=said)
        return Taken(offered[name], name)


def _source(rule: Copy | Wider, name: str, offered: Mapping[str, Any]) -> str:
    source = re.sub(rule.here, rule.there, name) if rule.here else name
    if source not in offered:
        called = f" as {source}" if source != name else ""
        raise UserError(f"{name} is not there{called}")
    return source


Rules = tuple[tuple[str, Rule], ...]
LENIENT: Rules = ((".*", Fitting()),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inherit:
    """Where a run's first weights come from: the first EMA of another run.

    Attributes:
      run: its directory; '' begins afresh, unless the command line names one (`--init`).
      step: of its checkpoint; None is the newest that verifies.
      rules: ordered (pattern, rule); `LENIENT` where there is none.
    """

    run: str = ""
    step: Count | None = None
    rules: Rules = ()

    def find(self) -> int:
        """The checkpoint's step. Raises: UserError, code 4, there is none."""
        return find(self.run, self.step)

    def __call__(self, target: Params, source: Params) -> tuple[Params, str]:
        """`target` with what it takes of `source`, and a report.

        Raises:
          UserError: rules that do not fit these parameters.
        """
        return transplant(target, source, self.rules or LENIENT)


def find(run: str, step: int | None = None) -> int:
    """The step of a run's checkpoint, its newest that verifies where none is given.

    Raises: UserError, code 4: there is none.
    """
    with _checkpoints(run) as checkpoints:
        found = checkpoints.newest() if step is None else step
        if found is None:
            raise UserError(f"'{run}' has no checkpoint.", code=4)
        if found not in checkpoints.steps():
            known = checkpoints.steps() or "none"
            raise UserError(f"'{run}' has no checkpoint {found}: {known}.", code=4)
        return found


def average(run: str, step: int) -> Params:
    """The weights of a run's first EMA, as numpy."""
    with _checkpoints(run) as checkpoints:
        return next(iter(checkpoints.restore_numpy(step, ("ema",))["ema"].values()))


def _checkpoints(run: str) -> Any:
    from vdm_jax.train.checkpoint import Checkpoints  # Orbax, which plans and checks never need

    return Checkpoints(Path(run) / "checkpoints")


def transplant(target: Params, source: Params, rules: Rules) -> tuple[Params, str]:
    """`target`, its leaves replaced by the rules' choice of `source`'s, and a strict report.

    Raises:
      UserError: all that does not fit, or that not one parameter is taken.
    """
    offered = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(source)}
    mistakes: list[str] = []
    found: dict[str, Taken] = {}
    used: set[int] = set()

    def choose(path: Any, leaf: Array) -> Any:
        name = path_name(path)
        index = next((i for i, (p, _) in enumerate(rules) if re.search(p, name)), None)
        if index is None:
            mistakes.append(f"no rule matches {name}")
            return leaf
        used.add(index)
        try:
            taken = rules[index][1](name, tuple(leaf.shape), offered)
        except UserError as error:
            mistakes.append(str(error))
            return leaf
        found[name] = taken
        return leaf if taken.value is None else taken.value.astype(leaf.dtype)

    params = jax.tree_util.tree_map_with_path(choose, target)
    mistakes += [
        f"rule {index} ('{pattern}') decides no parameter"
        for index, (pattern, _) in enumerate(rules)
        if index not in used
    ]
    if mistakes:
        more = f"; and {len(mistakes) - MOST} more" if len(mistakes) > MOST else ""
        raise UserError(
            f"these weights cannot be inherited: {'; '.join(mistakes[:MOST])}{more}. Mend "
            "inherit.rules."
        )
    if all(taken.value is None for taken in found.values()):
        raise UserError("not one parameter of the --init run fits this model by name and shape.")
    return params, report(found, offered)


def report(found: Mapping[str, Taken], offered: Mapping[str, Any]) -> str:
    """How much was taken, then a line for everything that was not simply copied."""
    count = sum(taken.value is not None for taken in found.values())
    lines = [f"taken: {count} of {len(found)} parameters"]
    for kind in ("wider", "new", "other shape"):
        lines += [f"{kind}: {n} {t.said}".rstrip() for n, t in found.items() if t.kind == kind]
    left = offered.keys() - {taken.source for taken in found.values()}
    return "\n".join([*lines, *(f"left over: {name}" for name in sorted(left))])
