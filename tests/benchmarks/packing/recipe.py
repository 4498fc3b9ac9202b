"""The model, objective and optimizer that all arms share: a small text-conditioned DiT on pixels.

The learning rate's factor lies in the optimizer's state, so that one compiled step serves every
rate that is tried. It multiplies the update; without weight decay that is the learning rate.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from data_pipeline.loaders import PackedVideo
from vdm_jax.denoiser import Denoiser
from vdm_jax.diffusion.parameterization import X0
from vdm_jax.diffusion.prior import Prior
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sample import Sampler
from vdm_jax.diffusion.schedule import Straight
from vdm_jax.diffusion.steppers import Euler
from vdm_jax.diffusion.times import LogitNormal, Stratified
from vdm_jax.diffusion.weights import MinSnr
from vdm_jax.nets.dit import DiT
from vdm_jax.nets.encoders import TextEmbedding
from vdm_jax.nets.modulation import Shared
from vdm_jax.nets.positions import Rotary, Sincos
from vdm_jax.objectives.denoise import Denoise
from vdm_jax.signals import PackedText, PooledText, Signal
from vdm_jax.stage import Stage
from vdm_jax.train.optim import AdamW, Optimizer, Warmup
from vdm_jax.train.run import Run
from vdm_jax.train.state import TrainState

WIDTH, DEPTH, HEADS = 64, 4, 4
TEXT_LENGTH = 24
LEARNING_RATE = 2e-3
WARMUP = 20
EMA = 0.98
VALIDATION_ROWS = 8


@struct.dataclass
class Factor:
    value: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adjustable(Optimizer):
    def transform(self) -> optax.GradientTransformation:
        def update(updates, state, params=None):
            del params
            return jax.tree.map(lambda leaf: leaf * state.value, updates), state

        factor = optax.GradientTransformation(lambda _: Factor(jnp.ones(())), update)
        return optax.chain(super().transform(), factor)


def at_rate(state: TrainState, factor: float) -> TrainState:
    """The state with its learning rate set to `factor` times `LEARNING_RATE`."""
    *before, old = state.opt
    value = jax.device_put(jnp.float32(factor), old.value.sharding)
    return state.replace(opt=(*before, Factor(value)))


def make_run(data: PackedVideo, seed: int) -> Run:
    def words() -> TextEmbedding:
        return TextEmbedding(vocab=data.tokenizer.size, width=WIDTH, max_length=TEXT_LENGTH)

    tokens = PackedText(max_length=TEXT_LENGTH, encoder=words())
    vector = PooledText(max_length=TEXT_LENGTH, width=WIDTH, encoder=words())
    text: dict[str, Any] = dict(key="text", drop=0.1)
    backbone = DiT(
        width=WIDTH,
        depth=DEPTH,
        heads=HEADS,
        patch_features=data.capacity.features,
        positions=(Sincos(axes="xy"), Sincos(axes="t"), Rotary()),
        modulation=Shared(),
        cross=("text",),
        layers="loop",
    )
    denoiser = Denoiser(
        backbone=backbone,
        parameterization=X0(),
        signals=(
            Signal(slot="tokens.text", embed=tokens, **text),
            Signal(slot="vector", embed=vector, **text),
        ),
    )
    return Run(
        stage=Stage(
            denoiser=denoiser,
            process=Process(schedule=Straight(), path="linear"),
            prior=Prior(),
            sampler=Sampler(stepper=Euler(), steps=4),
            patch=data.capacity.patch,
        ),
        objective=Denoise(times=LogitNormal(mean=0.5, base=Stratified()), weight=MinSnr(floor=1.0)),
        data=data,
        optimizer=Adjustable(
            rules=((".*", AdamW(learning_rate=LEARNING_RATE)),), schedule=Warmup(steps=WARMUP)
        ),
        seed=seed,
        steps=1,
        ema=(EMA,),
        validation_rows=VALIDATION_ROWS,
    )
