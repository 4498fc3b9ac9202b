"""The variational bound, in bits a dimension, and a schedule that learns to make it steady.

    -log p(x) <= prior + diffusion + reconstruction             (Kingma et al. 2021, equation 11)

    prior           snr(1) x^2 / 2 : of x_1 against the noise sigma_1 eps that sampling starts from
    diffusion       -1/2 dlogsnr/dt |eps - eps_hat|^2, t uniform: their equation 17, continuous time
    reconstruction  -log p(x | x_0), x being one of the 256 values of a byte, its probability in
                    proportion to exp(-(x_0 / alpha_0 - value)^2 / 2 e^gamma_0): equation 8

Of the schedule the bound sees its ends alone. What lies between them decides how much an estimate
of it varies, so the parameters of a learnt schedule's curve (`nets/gamma.py`) follow the gradient
of the squared estimate of each example instead: that of its variance (appendix I.2).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vdm_jax.batch import Frames, Packed
from vdm_jax.codecs import Pixels
from vdm_jax.diffusion.prior import Prior
from vdm_jax.diffusion.process import PATHS, Level
from vdm_jax.diffusion.times import Stratified, Times
from vdm_jax.diffusion.weights import Vlb as VlbWeight
from vdm_jax.objectives.denoise import Denoise, attempt
from vdm_jax.signals import draw_dropped
from vdm_jax.stage import Stage
from vdm_jax.types import Params, PerExample

BIT = math.log(2.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vlb:
    """`times`: uniform, at best spread evenly over the examples of a batch (their appendix I.1)."""

    times: Times = dataclasses.field(default_factory=Stratified)

    @property
    def frozen(self):
        return {}

    def problems(self, stage):
        found = []
        if not isinstance(stage.codec, Pixels):
            found.append("Vlb bounds the likelihood of bytes; stage.codec must be Pixels.")
        if stage.process.shift is not None:
            found.append("Vlb needs one schedule for all; leave stage.process.shift out.")
        if stage.prior != Prior():
            found.append("Vlb needs noise that is independent; stage.prior must be Prior().")
        if stage.denoiser.gamma is None:
            with jax.ensure_compile_time_eval():
                if not jnp.isfinite(stage.process.schedule(jnp.zeros(()))):
                    found.append("Vlb: log SNR is infinite at t = 0; use a Clip.")
        return found

    def __call__(self, stage, params, batch, raw, seed):
        terms, probe, largest = self.terms(stage, params, batch, raw, seed)
        total, weight = batch.total(sum(terms.values()))
        metrics = {
            f"mean_bits_{name}": batch.total(term)[0] / jnp.maximum(weight, 1)
            for name, term in terms.items()
        }
        if probe is not None:  # adds 0, and brings each example's estimate to its gate
            each = batch.reduce(batch.spread(batch.examples.valid) * terms["diffusion"], "mean")
            total += jnp.sum(jax.lax.stop_gradient(each) * probe)
        return total, weight, metrics | {"max_logit": largest}

    def terms(
        self,
        stage: Stage,
        params: Params,
        batch: Frames | Packed,
        raw: Mapping[str, Any],
        seed: int,
    ) -> tuple[dict[str, Array], Array | None, Array]:
        """(the bound's three terms like x, in bits; `gate`'s probe; largest attention logit)."""
        denoiser = stage.denoiser
        t = self.times(batch.keys(seed, "time"), batch, stage.process)
        logsnr, slope, probe = _gated(stage, params, t)
        at = Level(t, logsnr, *PATHS[stage.process.path](logsnr))
        dropped = draw_dropped(denoiser.signals, batch, seed)
        made = attempt(stage, params, batch, raw, at, batch.keys(seed, "noise"), dropped, seed)
        here = jax.tree.map(batch.spread, at)
        estimate = denoiser.parameterization.split(made.out, made.x_t, here)
        diffusion = batch.spread(-slope / 2) * jnp.square(made.eps - estimate.eps)

        first, last = _ends(stage, params)
        prior = jnp.exp(last) * jnp.square(batch.x) / 2
        noise = stage.prior(batch.keys(seed, "reconstruction"), batch)
        lost = -log_likelihood(batch.x, batch.x + jnp.exp(-first / 2) * noise, first)
        nats = {"diffusion": diffusion, "prior": prior, "reconstruction": lost}
        return {name: term / BIT for name, term in nats.items()}, probe, made.largest

    def errors(self, stage, params, batch, raw, seed, t):
        plain = Denoise(times=self.times, weight=VlbWeight())
        return plain.errors(stage, params, batch, raw, seed, t)


def log_likelihood(x: Array, seen: Array, logsnr: Array) -> Array:
    """log p(x | seen) of bytes in [-1, 1], `seen` being x with noise of variance e^-logsnr."""
    values = jnp.arange(256) / 127.5 - 1
    byte = jnp.clip(jnp.round((x + 1) * 127.5), 0, 255).astype(jnp.int32)
    logits = -jnp.square(seen[..., None] - values) * jnp.exp(logsnr) / 2
    chosen = jnp.take_along_axis(logits, byte[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _gated(
    stage: Stage, params: Params, t: PerExample
) -> tuple[PerExample, PerExample, Array | None]:
    """(log SNR, its slope, probe): of a learnt schedule, with its curve behind `gate`."""
    gamma, ones = stage.denoiser.gamma, jnp.ones_like(t)
    if gamma is None:
        return *jax.jvp(stage.process.schedule, (t,), (ones,)), None
    variables = {"params": params["params"]["gamma"]}
    curve, rise = jax.jvp(lambda t: gamma.apply(variables, t, method="curve"), (t,), (ones,))
    curve, rise, probe = gate(curve, rise)
    low, high = gamma.apply(variables, method="ends")
    return -(low + (high - low) * curve), -(high - low) * rise, probe


@jax.custom_vjp
def gate(curve: PerExample, rise: PerExample) -> tuple[PerExample, PerExample, Array]:
    """The same, and a probe (b e) of zeros. Backwards, twice the probe's gradient multiplies that
    of the others: L d L becomes d L^2 where the probe is multiplied by L."""
    return curve, rise, jnp.zeros(curve.shape[:2], curve.dtype)


def _forwards(curve, rise):
    return gate(curve, rise), None


def _backwards(_, slopes):
    curve, rise, probe = slopes
    return 2 * probe[..., None] * curve, 2 * probe[..., None] * rise


gate.defvjp(_forwards, _backwards)


def _ends(stage: Stage, params: Params) -> tuple[Array, Array]:
    """log SNR at the beginning and at the end of time."""
    if stage.denoiser.gamma is None:
        return stage.process.schedule(jnp.zeros(())), stage.process.schedule(jnp.ones(()))
    variables = {"params": params["params"]["gamma"]}
    low, high = cast(Any, stage.denoiser.gamma.apply(variables, method="ends"))
    return -low, -high
