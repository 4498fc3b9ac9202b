"""Reads `--config=FILE.py[:variant] --config.a.b=value` into a `ConfigDict`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from vdm_jax.config import SPEC, UserError, leaves, suggestion


def load(arguments: Sequence[str]) -> ConfigDict:
    """The config of the arguments, overrides applied.

    Raises:
      UserError: no such file, an unknown key, a value of the wrong type, any other argument.
    """
    foreign = [word for word in arguments if not re.match(r"--config($|[=.])", word)]
    if foreign:
        raise UserError(f"unknown argument '{foreign[0]}'; see --help.")
    path = next((w.partition("=")[2] for w in arguments if w.startswith("--config=")), "")
    if not path:
        raise UserError("say which experiment: --config=experiments/demo.py")
    file = path.partition(":")[0]
    if not Path(file).is_file():
        near = sorted(str(p) for p in Path("experiments").glob("*.py"))
        raise UserError(f"there is no config file '{file}'.{suggestion(file, near)}")
    overrides = [word for word in arguments if not word.startswith("--config=")]
    try:
        _check_overrides(_parse([f"--config={path}"]), overrides)
        return _parse([f"--config={path}", *overrides])
    except UserError:
        raise
    except flags.Error as error:
        raise UserError(_one_line(error)) from error
    except Exception as error:  # the file is code: anything may come out of it
        raise UserError(f"{file}: {type(error).__name__}: {_one_line(error)}") from error


def _parse(words: Sequence[str]) -> ConfigDict:
    values = flags.FlagValues()  # private: absl's global state stays as it is
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["vdm", *words])
    values(["vdm", *words])
    return values.config


def _check_overrides(config: ConfigDict, overrides: Sequence[str]) -> None:
    known = [path for path, _ in leaves(config)]
    for word in overrides:
        path, equals, _ = word.removeprefix("--config.").partition("=")
        if not equals:
            raise UserError(f"write the override as --config.{path}=VALUE.")
        if not any(path == name or name.startswith((path + ".", path + "[")) for name in known):
            raise UserError(f"the config has no '{path}'.{_near(config, path, known)}")


def _near(config: ConfigDict, path: str, known: Sequence[str]) -> str:
    """A path that is spelt almost so, else the fields beside the first wrong part."""
    hint = suggestion(path, known)
    if hint.startswith(" Did"):
        return hint
    node = config
    for part in path.split("."):
        if not isinstance(node, ConfigDict) or part not in node:
            break
        node = node[part]
    beside = node.keys() if isinstance(node, ConfigDict) else ()
    return suggestion(part, [name for name in beside if name != SPEC])


def _one_line(error: Exception) -> str:
    text = str(error.args[0] if error.args else error).replace("\\n", " ").replace("\\'", "'")
    return " ".join(text.split()).rstrip(".?") + "."
