"""Networks of a finished run, frozen: what later stages, or another run, reuse."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from vdm_jax import pipeline
from vdm_jax.config import UserError, build, from_json
from vdm_jax.denoiser import Denoiser
from vdm_jax.texts import Module
from vdm_jax.train.surgery import average
from vdm_jax.types import Count, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromRun:
    """The denoiser of a finished run, its weights those of the first EMA at `step`.

    Nothing is read before it is asked for: a student's run can be sampled without its teacher's.
    """

    run: str
    step: Count

    @functools.cached_property
    def denoiser(self) -> Denoiser:
        """Raises: UserError, code 4, no run there."""
        file = Path(self.run) / "config.json"
        if not file.is_file():
            raise UserError(f"'{self.run}' is no run directory: it has no config.json.", code=4)
        return build(from_json(file.read_text()).stage.denoiser)

    def weights(self) -> Params:
        """Raises: UserError, code 4, no such checkpoint."""
        return average(self.run, self.step)


def of_run(run: str) -> Module:
    """The encoder that a run trained along with its model: `spec(of_run, run="runs/base")`.

    Its weights are those of the run's first EMA in its newest checkpoint that verifies.

    Raises:
      UserError: no run there, no checkpoint, or its model has no text encoder of its own.
    """
    made = pipeline.load(run)
    for index, signal in enumerate(made.stage.denoiser.signals):
        encoder = getattr(signal.embed, "encoder", None)
        if encoder is not None:
            # Flax names the parts of a tuple by their place.
            params = made.params["params"][f"signals_{index}"]["embed"]["encoder"]
            return Module(
                module=encoder, params={"params": params}, tokenizer=made.tokenizer.digest
            )
    raise UserError(f"'{run}' trained no text encoder; name a run that did.")
