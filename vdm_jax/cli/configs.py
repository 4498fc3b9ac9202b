"""Reads `--config=FILE.py[:variant] --config.a.b=value` into a `ConfigDict`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from vdm_jax.config import UserError, leaves, suggestion


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
    values = flags.FlagValues()  # private: nothing of absl's global state is touched
    config_flags.DEFINE_config_file("config", flag_values=values)
    try:
        values(["vdm", *(word for word in arguments if word.startswith("--config="))])
        config = values.config
        overrides = [word for word in arguments if not word.startswith("--config=")]
        _check_overrides(config, overrides)
        values.unparse_flags()
        values(["vdm", *arguments])
        return values.config
    except UserError:
        raise
    except flags.Error as error:
        raise UserError(_first_sentence(error)) from error
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{file}: {_first_sentence(error)}") from error


def _check_overrides(config: ConfigDict, overrides: Sequence[str]) -> None:
    known = [path for path, _ in leaves(config)]
    for word in overrides:
        path, equals, _ = word.removeprefix("--config.").partition("=")
        if not equals:
            raise UserError(f"write the override as --config.{path}=VALUE.")
        if not any(path == name or name.startswith((path + ".", path + "[")) for name in known):
            raise UserError(f"the config has no '{path}'.{suggestion(path, known)}")


def _first_sentence(error: Exception) -> str:
    text = str(error.args[0] if error.args else error)
    return " ".join(text.strip().strip("'\"").splitlines()[0].split()).rstrip(".") + "."
