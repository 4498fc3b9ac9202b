"""PYoCo: noise that frames share, for a video model that grows out of an image model.

What     a UNet with temporal attention whose noise is correlated over frames, as the noise maps of
         a video's frames are under an image model: a part shared by all (mixed), or each frame's
         continuing the one before (progressive); injected and initial noise in sampling come from
         the same prior.
Paper    Ge et al., "Preserve Your Own Correlation: A Noise Prior for Video Diffusion Models"
         (2023). From it: both priors (equations 2 and 3), temporal attention in a pretrained image
         UNet, joint training, text by CLIP and T5, experts for intervals of noise. ASSUMED, since
         the paper gives no sizes: every width and depth, alpha, one text encoder trained along.
         Its number of parameters therefore proves nothing.
Command  python -m vdm_jax train --config=experiments/pyoco.py --workdir=runs/pyoco
             --config.knobs.manifest=... --config.mesh.fsdp=-1
         with --config.knobs.low=0.5 for the expert of the noisier half, high=0.5 for the other
Variant  progressive: the other prior; smoke, smoke-progressive: seconds on a CPU, for tests.
Result   smoke only.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import base
from vdm_jax.config import spec
from vdm_jax.diffusion.guides import Constant, DynamicThreshold, Guidance
from vdm_jax.diffusion.parameterization import V
from vdm_jax.diffusion.prior import Mixed, Prior, Progressive
from vdm_jax.diffusion.sample import Sampler
from vdm_jax.diffusion.steppers import Ancestral
from vdm_jax.diffusion.times import Stratified, Within
from vdm_jax.diffusion.weights import Uniform
from vdm_jax.nets.clip import HeadWidth
from vdm_jax.nets.positions import Sincos
from vdm_jax.nets.temporal import Attention, Temporal
from vdm_jax.objectives.denoise import Denoise


def get_config(arg: str | None = None) -> ConfigDict:
    name = base.variant(arg, ("progressive", "smoke", "smoke-progressive"))
    smoke, progressive = name.startswith("smoke"), name.endswith("progressive")
    knobs = ConfigDict(
        {
            "manifest": "data/videos/manifest",
            "seed": 0,
            "steps": 8 if smoke else 300_000,
            "learning_rate": 1e-3 if smoke else 1e-4,
            "text_drop": 0.1,
            "guidance": 7.5,
            "alpha": 2.0 if progressive else 1.0,
            "low": 0.0,
            "high": 1.0,
        }
    )
    frames, side = (4, 16) if smoke else (16, 64)
    data = base.frames_data(
        knobs, frames=frames, images=2 if smoke else 8, size=(side, side), rows=2 if smoke else 256,
        words=32 if smoke else 128, block=64 if smoke else 4096, holdout=0.3 if smoke else 0.05,
    )  # fmt: skip
    times = spec(
        Within, base=spec(Stratified), low=knobs.get_ref("low"), high=knobs.get_ref("high")
    )
    factor = spec(Progressive if progressive else Mixed, alpha=knobs.get_ref("alpha"))
    return base.frames_run(
        knobs,
        stage=_stage(factor, side, knobs, smoke),
        data=data,
        smoke=smoke,
        objective=spec(Denoise, times=times, weight=spec(Uniform)),
    )


def _stage(factor: ConfigDict, side: int, knobs: ConfigDict, smoke: bool) -> ConfigDict:
    width, head = (16, 16) if smoke else (320, 64)
    text = {"vocab": base.SMALL_VOCAB if smoke else 32_128, "length": 32 if smoke else 128}
    text["drop"] = knobs.get_ref("text_drop")
    in_time = spec(Attention, heads=spec(HeadWidth, features=head), position=spec(Sincos, axes="t"))
    backbone = base.unet(
        width=width, mults=(1, 2) if smoke else (1, 2, 3, 4), blocks=1 if smoke else 3,
        attend=(1,) if smoke else (1, 2, 3), head=head, groups=4 if smoke else 32,
        temporal=(spec(Temporal, part=in_time, at="after_attention"),), cross=("text",),
        smoke=smoke,
    )  # fmt: skip
    guidance = spec(Guidance, scales=(spec(Constant, value=knobs.get_ref("guidance")),))
    signals = (
        base.text_vector(width=4 * width, **text),
        base.text_tokens(width=16 if smoke else 1024, **text),
    )
    sampler = spec(
        Sampler, stepper=spec(Ancestral), steps=4 if smoke else 256,
        guides=(guidance, spec(DynamicThreshold)),
    )  # fmt: skip
    return base.frames_stage(
        backbone=backbone, parameterization=spec(V), signals=signals, sampler=sampler,
        size=(side, side), prior=spec(Prior, factor=factor),
    )  # fmt: skip
