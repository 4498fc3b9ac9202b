"""The text encoder of a finished run, frozen: what later stages, or another run, reuse."""

from __future__ import annotations

from vdm_jax import pipeline
from vdm_jax.config import UserError
from vdm_jax.texts import Module


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
