"""A config is a tree of recorded calls: `spec` writes one, `build` makes it, `problems` judges it.

`spec(Class, **keywords)` stores the class by name beside its keywords in a `ConfigDict`, so that a
config can be overridden, saved as JSON and compared, and checks the keywords: a misspelt one
fails in the file that wrote it. `build` imports only from `PREFIXES`, so a config from a stranger
cannot name arbitrary code. `ConfigDict` iterates alphabetically: ordered things are tuples.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import json
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vdm_jax.types import Range

SPEC = "spec"  # the key under which a node keeps the name of its class
HIDDEN = ("parent", "name")  # fields that Flax gives every module; no config sets them
PLAIN = (int, float, str, bool)
PREFIXES = ("vdm_jax", "data_pipeline", "optax")


class UserError(ValueError):
    """A mistake of the user's, said in one sentence; `code` is the process's exit code."""

    def __init__(self, message: str, code: int = 2):
        super().__init__(message)
        self.code = code


def refuse(mistakes: typing.Sequence[str], where: str = "the config") -> None:
    """Raises: UserError, of all mistakes, a line each, if there are any."""
    if mistakes:
        raise UserError("\n  ".join([f"{len(mistakes)} mistake(s) in {where}:", *mistakes]))


def suggestion(word: str, words: typing.Iterable[str]) -> str:
    """' Did you mean ...?' when a known word is near, else the list of them."""
    words = sorted(words)
    near = difflib.get_close_matches(word, words, n=1)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Known: {', '.join(words)}." if words else ""


def spec(target: Callable[..., Any], /, **keywords: Any) -> ConfigDict:
    """Record a call of `target`, a class or function of an allowed package, with its defaults.

    Defaults are written down so that every field can be overridden, and so that a run's config
    says what it was made with even when a default changes later.

    Raises:
      UserError: a keyword that `target` does not take.
    """
    name = f"{target.__module__}:{target.__qualname__}"
    _check_prefix(name)
    known = _parameters(target)
    for keyword in keywords:
        if keyword not in known:
            raise UserError(
                f"{target.__qualname__} takes no '{keyword}'.{suggestion(keyword, known)}"
            )
    node = ConfigDict({SPEC: name}, convert_dict=False)
    hints = _hints(target)
    for keyword, value in (_defaults(target) | keywords).items():
        types = [t for t in typing.get_args(hints.get(keyword)) if _plain_type(t) in PLAIN]
        if value is None and types:
            # None with a type, so that an override knows how to read its text.
            value = placeholder(_plain_type(types[0]))
        node[keyword] = ConfigDict(dict(value)) if type(value) is dict else value
    return node


def build(node: Any, **extra: Any) -> Any:
    """Make the object a config node records, children first; `extra` adds keywords at the top.

    Raises:
      UserError: an unknown or missing keyword, a class outside `PREFIXES` or that does not exist.
    """
    if isinstance(node, ConfigDict | dict):
        fields = {key: build(value) for key, value in _fields(node).items()}
        if SPEC not in node:
            return fields
        target = resolve(node[SPEC])
        known = _parameters(target)
        for key in fields:
            if key not in known:
                raise UserError(f"{target.__qualname__} takes no '{key}'.{suggestion(key, known)}")
        fields |= extra
        missing = [k for k, p in known.items() if p.default is p.empty and k not in fields]
        if missing:
            raise UserError(f"{target.__qualname__} needs {', '.join(missing)}.")
        return target(**fields)
    if isinstance(node, list | tuple):
        return tuple(build(value) for value in node)
    return node


def resolve(name: str) -> Callable[..., Any]:
    """The class or function called 'module:qualname'."""
    _check_prefix(name)
    module, _, qualname = name.partition(":")
    try:
        target: Any = importlib.import_module(module)
        for part in qualname.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the config names '{name}', which does not exist ({error}).") from error
    return target


def recorded(value: Any) -> Any:
    """What a config writes for a value made in code: dataclasses as specs, the rest as it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f for f in dataclasses.fields(value) if f.init and f.name not in HIDDEN]
        return spec(type(value), **{f.name: recorded(getattr(value, f.name)) for f in fields})
    if isinstance(value, tuple):
        return tuple(recorded(part) for part in value)
    return value


def problems(node: Any, path: str = "config") -> list[str]:
    """Every number of a config that is out of the range its parameter is annotated with.

    The annotations are those of `types.py` (`Count`, `Positive`, `Fraction`, ...); numbers without
    one must at least be finite.
    """
    found: list[str] = []
    hints: Mapping[str, Any] = {}
    if isinstance(node, ConfigDict | dict):
        if SPEC in node:
            hints = _hints(resolve(node[SPEC]))
        for key, value in _fields(node).items():
            here = f"{path}.{key}"
            if _is_number(value):
                found += _number_problem(here, value, hints.get(key))
            else:
                found += problems(value, here)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            here = f"{path}[{index}]"
            found += (
                _number_problem(here, value, None) if _is_number(value) else problems(value, here)
            )
    return found


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every leaf, in alphabetical order."""
    if isinstance(node, ConfigDict | dict):
        for key in sorted(node):
            yield from leaves(node[key], f"{path}.{key}" if path else key)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from leaves(value, f"{path}[{index}]")
    else:
        yield path, node


def to_json(node: ConfigDict) -> str:
    """The resolved config as JSON; references are replaced by their values."""
    return json.dumps(_plain(node), indent=2, sort_keys=True)


def from_json(text: str) -> ConfigDict:
    """The inverse of `to_json`: what `build` makes of it is equal."""
    return _revive(json.loads(text))


def _revive(node: Any) -> Any:
    if isinstance(node, dict):
        return ConfigDict({key: _revive(value) for key, value in node.items()})
    if isinstance(node, list):
        return tuple(_revive(value) for value in node)
    return node


def _plain(node: Any) -> Any:
    if isinstance(node, ConfigDict | dict):
        return {key: _plain(node[key]) for key in node}
    if isinstance(node, list | tuple):
        return [_plain(value) for value in node]
    return node


def _fields(node: ConfigDict | dict) -> dict[str, Any]:
    return {key: node[key] for key in node if key != SPEC}


def _parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {
        key: parameter
        for key, parameter in inspect.signature(target).parameters.items()
        if key not in HIDDEN
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _defaults(target: Callable[..., Any]) -> dict[str, Any]:
    made = {
        field.name: field.default_factory()
        for field in (dataclasses.fields(target) if dataclasses.is_dataclass(target) else ())
        if field.default_factory is not dataclasses.MISSING and field.name not in HIDDEN
    }
    plain = {
        key: parameter.default
        for key, parameter in _parameters(target).items()
        if parameter.default is not parameter.empty and key not in made
    }
    return {key: recorded(value) for key, value in (plain | made).items()}


def _hints(target: Callable[..., Any]) -> Mapping[str, Any]:
    custom = inspect.isclass(target) and not dataclasses.is_dataclass(target)
    where = target.__init__ if custom else target  # type: ignore[misc]
    return typing.get_type_hints(where, include_extras=True)


def _plain_type(hint: Any) -> Any:
    return getattr(hint, "__origin__", hint)  # of Annotated[int, ...]: int


def _check_prefix(name: str) -> None:
    if name.partition(":")[0].partition(".")[0] not in PREFIXES:
        raise UserError(f"the config names '{name}'; only {', '.join(PREFIXES)} may be named.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number_problem(path: str, value: float, hint: Any) -> list[str]:
    for part in (hint, *typing.get_args(hint)):  # `Positive`, or one arm of `Positive | None`
        for rule in getattr(part, "__metadata__", ()):
            if isinstance(rule, Range) and value not in rule:
                return [f"{path} is {value}; it must be {rule}."]
            if typing.get_origin(part) is typing.Annotated or hasattr(part, "__origin__"):
                whole = getattr(part, "__origin__", None) is int
                if whole and not isinstance(value, int):
                    return [f"{path} is {value}; it must be a whole number."]
    if not math.isfinite(value):
        return [f"{path} is {value}; it must be finite."]
    return []
