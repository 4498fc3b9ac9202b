"""The demo: a small packed video transformer on captioned moving shapes, on a CPU.

What     a text-conditioned DiT on pixels: straight path, patches of 2 x 4 x 4, videos and images of
         any size in one row, muon and AdamW, EMA, classifier-free guidance. It predicts x0: a
         patch has as many features as the trunk is wide, and a velocity would have to carry the
         noise of every pixel through it. The error of x0 counts at every noise level (`floor`):
         weighted by SNR alone, the levels at which a video's layout is decided count for nothing.
Paper    none; the parts are those of `sora.py` at toy size.
Command  make demo                                 (MINUTES=10 on 2 cores)
         python -m vdm_jax train --config=experiments/demo.py --workdir=runs/demo
Variant  smoke: seconds on a CPU, for tests.
Result   382 steps in 3 minutes on 2 cores, one device, 3,900 useful tokens a second: docs/demo.png.
         Objects have the colour asked for and stay in one place. Worst visible fault: their outline
         is ragged, patch by patch, so that hardly a shape can be told, and few move as asked.
Tried    64 captions of another seed (32 where marked *), on 2,400 clips, trunk unrolled; all but
         the last with one text path alone (cross-attention unless named) and t about 0.5 unless
         named; right by a judge of pixels, of 8 colours, 7 motions, 5 shapes:
                                                               colour  motion  shape
           min-SNR without a floor, AdamW alone, 400 steps      0.28    0.09   0.23
           floor 1, AdamW alone, 400 steps                      0.98    0.09   0.19
           floor 1, t about 0.73, AdamW alone, 300 steps *      1.00    0.12   0.34
           vector alone, floor 1, AdamW, 300 steps *            0.31    0.06   0.22
           vector alone, muon, t about 0.62, 500 steps *        0.97    0.12   0.28
           all of this file, 300 steps *                        1.00    0.19   0.28
         Velocity prediction, 463 steps: each patch noise of its own. Rotary positions alone: the
         object scattered over the frame.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.sizes import Native
from experiments import base
from vdm_jax.config import spec
from vdm_jax.denoiser import Denoiser
from vdm_jax.diffusion.guides import Constant, Guidance
from vdm_jax.diffusion.parameterization import X0
from vdm_jax.diffusion.prior import Prior
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sample import Sampler
from vdm_jax.diffusion.schedule import Straight
from vdm_jax.diffusion.steppers import Euler
from vdm_jax.diffusion.times import LogitNormal, Stratified
from vdm_jax.diffusion.weights import MinSnr
from vdm_jax.nets.dit import DiT
from vdm_jax.nets.modulation import Shared
from vdm_jax.nets.positions import Rotary, Sincos
from vdm_jax.objectives.denoise import Denoise
from vdm_jax.stage import Stage
from vdm_jax.train.optim import AdamW, Muon, Optimizer, WarmupCosine
from vdm_jax.train.run import Prompt, Run

PATCH = (2, 4, 4)
VOCAB = 2048
TEXT_LENGTH = 24
PROMPTS = (
    "a red circle moving right over a plain dark background",
    "a blue square moving down over light stripes",
    "a photo of a green triangle over a light gradient",
)


def get_config(arg: str | None = None) -> ConfigDict:
    smoke = base.variant(arg, ("smoke",)) == "smoke"
    knobs = ConfigDict(
        {
            "manifest": "data/demo/manifest",
            "seed": 0,
            "steps": 8 if smoke else 2000,
            "width": 32 if smoke else 96,
            "learning_rate": 2e-3,
            "muon_rate": 1e-2,
            "text_drop": 0.1,
            "guidance": 2.0,
        }
    )
    data = spec(
        PackedVideo,
        sources=(spec(Source, manifest=knobs.get_ref("manifest")),),
        patch=PATCH,
        tokens=256 if smoke else 512,
        text_tokens=96 if smoke else 160,
        segments=8 if smoke else 16,
        rows=2 if smoke else 4,
        seed=knobs.get_ref("seed"),
        size=spec(Native),
        holdout=0.3 if smoke else 0.1,
        block=64 if smoke else 4096,
    )
    # Matrices inside the blocks are muon's; embeddings, the head and vectors are Adam's.
    muon = spec(Muon, learning_rate=knobs.get_ref("muon_rate"))
    adam = spec(AdamW, learning_rate=knobs.get_ref("learning_rate"))
    rules = ((r"backbone/unit.*kernel$", muon), (".*", adam))
    schedule = spec(WarmupCosine, steps=50, total=knobs.get_ref("steps"), final=0.05)
    return spec(
        Run,
        stage=_stage(smoke, knobs),
        objective=spec(
            Denoise,
            times=spec(LogitNormal, mean=0.5, base=spec(Stratified)),
            weight=spec(MinSnr, floor=1.0),
        ),
        data=data,
        optimizer=spec(Optimizer, rules=rules, schedule=schedule),
        seed=knobs.get_ref("seed"),
        steps=knobs.get_ref("steps"),
        ema=(0.995,),
        save_every=4 if smoke else 500,
        validate_every=4 if smoke else 250,
        validation_rows=2 if smoke else 4,
        sample_every=0 if smoke else 1000,
        prompts=tuple(
            spec(Prompt, text=text, frames=8, height=24, width=24)
            for text in (() if smoke else PROMPTS)
        ),
        knobs=knobs,
    )


def _stage(smoke: bool, knobs: ConfigDict) -> ConfigDict:
    width = knobs.get_ref("width")
    signals = base.text_signals(
        vocab=VOCAB,
        width=width,
        length=TEXT_LENGTH,
        drop=knobs.get_ref("text_drop"),
        pooled=True,
    )
    backbone = spec(
        DiT,
        width=width,
        depth=2 if smoke else 4,
        heads=4,
        patch_features=3 * PATCH[0] * PATCH[1] * PATCH[2],
        positions=(spec(Sincos, axes="xy"), spec(Sincos, axes="t"), spec(Rotary)),
        modulation=spec(Shared),
        cross=("text",),
        layers="loop",  # on two CPU devices 268 ms a step against 327 of a scan
    )
    guidance = spec(Guidance, scales=(spec(Constant, value=knobs.get_ref("guidance")),))
    sampler = spec(Sampler, stepper=spec(Euler), steps=4 if smoke else 32, guides=(guidance,))
    return spec(
        Stage,
        denoiser=spec(Denoiser, backbone=backbone, parameterization=spec(X0), signals=signals),
        process=spec(Process, schedule=spec(Straight), path="linear"),
        prior=spec(Prior),
        sampler=sampler,
        patch=PATCH,
    )
