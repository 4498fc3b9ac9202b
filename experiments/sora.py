"""Sora-style: one packed transformer for videos and images of native size, shape and duration.

What     full attention over packed spacetime patches, 3-D rotary positions with time in seconds,
         RMS QK-norm, four registers per example, adaLN-single, cross-attention to text; flow
         matching with logit-normal times, shifted by token count.
Paper    OpenAI, "Video generation models as world simulators" (2024), which discloses no size, loss
         or schedule. From it: joint training on images and videos at native sizes, patches of space
         and time as tokens, an image as a one-frame video, size at inference set by the grid of
         noise. ASSUMED, all of it: every width, depth and rate below, flow matching, and pixels
         with large patches in place of its video autoencoder, with x0 prediction, which large
         patches need (Li & He 2025).
Command  python -m vdm_jax train --config=experiments/sora.py --workdir=runs/sora
             --config.knobs.manifest=... --config.mesh.fsdp=-1
Variant  smoke: seconds on a CPU, for tests. 14b: width 5120, 40 blocks, 40 heads, for planning
             (docs/tpu.md); its sizes are assumed, too.
Result   none at full size: it has not been trained. Its parameters are counted in
         tests/laws/test_experiments.py.
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
from vdm_jax.diffusion.process import Process, TokenShift
from vdm_jax.diffusion.sample import Sampler
from vdm_jax.diffusion.schedule import Clip, Straight
from vdm_jax.diffusion.steppers import Euler
from vdm_jax.diffusion.times import LogitNormal
from vdm_jax.diffusion.weights import MinSnr
from vdm_jax.nets.dit import DiT
from vdm_jax.nets.modulation import Shared
from vdm_jax.nets.positions import Rotary
from vdm_jax.objectives.denoise import Denoise
from vdm_jax.signals import Signal, Sinusoid
from vdm_jax.stage import Stage
from vdm_jax.train.optim import AdamW, Muon, Optimizer, Warmup
from vdm_jax.train.run import Prompt, Run

SIZES = {
    "": {"width": 2304, "depth": 32, "heads": 18, "mlp_ratio": 4.0},
    "14b": {"width": 5120, "depth": 40, "heads": 40, "mlp_ratio": 3.5},
    "smoke": {"width": 32, "depth": 2, "heads": 2, "mlp_ratio": 4.0},
}


def get_config(arg: str | None = None) -> ConfigDict:
    size = base.variant(arg, ("smoke", "14b"))
    smoke = size == "smoke"
    patch = (2, 4, 4) if smoke else (4, 16, 16)
    tokens = 256 if smoke else 32768
    knobs = ConfigDict(
        {
            "manifest": "data/demo/manifest",
            "seed": 0,
            "width": SIZES[size]["width"],
            "learning_rate": 1e-3 if smoke else 1e-4,
            "text_drop": 0.1,
            "guidance": 5.0,
        }
    )
    data = spec(
        PackedVideo,
        sources=(spec(Source, manifest=knobs.get_ref("manifest")),),
        patch=patch,
        tokens=tokens,
        text_tokens=128 if smoke else 4096,
        segments=8 if smoke else 64,
        rows=2 if smoke else 512,
        seed=knobs.get_ref("seed"),
        size=spec(Native),
        block=64 if smoke else 2**18,
    )
    rate = knobs.get_ref("learning_rate")
    rules = (
        (r"backbone/units/.*kernel$", spec(Muon, learning_rate=rate)),
        (".*", spec(AdamW, learning_rate=rate, b2=0.95)),
    )
    prompt = spec(Prompt, text="a dog runs on a beach", frames=96, height=480, width=848, fps=24)
    return spec(
        Run,
        stage=_stage(size, patch, tokens, knobs),
        objective=spec(Denoise, times=spec(LogitNormal), weight=spec(MinSnr), power=0.5),
        data=data,
        optimizer=spec(Optimizer, rules=rules, schedule=spec(Warmup, steps=4 if smoke else 2000)),
        seed=knobs.get_ref("seed"),
        steps=8 if smoke else 500_000,
        ema=(0.99,) if smoke else (0.9999,),
        mesh={"data": -1 if smoke else 1, "fsdp": 1 if smoke else -1, "seq": 1, "tensor": 1},
        rules="dp" if smoke else "fsdp",
        save_every=4 if smoke else 1000,
        sample_every=0 if smoke else 5000,
        prompts=() if smoke else (prompt,),
        knobs=knobs,
    )


def _stage(size: str, patch: tuple[int, int, int], tokens: int, knobs: ConfigDict) -> ConfigDict:
    smoke = size == "smoke"
    process = spec(
        Process,
        schedule=spec(Clip, schedule=spec(Straight), logsnr_min=-14.0, logsnr_max=14.0),
        path="linear",
        shift=spec(TokenShift, reference=float(tokens // 4)),
    )
    guidance = spec(Guidance, scales=(spec(Constant, value=knobs.get_ref("guidance")),))
    sampler = spec(Sampler, stepper=spec(Euler), steps=4 if smoke else 50, guides=(guidance,))
    return spec(
        Stage,
        denoiser=_denoiser(size, patch, knobs),
        process=process,
        prior=spec(Prior),
        sampler=sampler,
        patch=patch,
    )


def _denoiser(size: str, patch: tuple[int, int, int], knobs: ConfigDict) -> ConfigDict:
    smoke = size == "smoke"
    width = knobs.get_ref("width")
    text = base.text_tokens(
        vocab=2048 if smoke else 32768,
        width=16 if smoke else 1024,
        length=24 if smoke else 256,
        drop=knobs.get_ref("text_drop"),
        depth=1 if smoke else 12,
        heads=4 if smoke else 16,
        dtype="float32" if smoke else "bfloat16",
    )
    rate = spec(Signal, key="fps", slot="vector", embed=spec(Sinusoid, width=width))
    backbone = spec(
        DiT,
        **(SIZES[size] | {"width": width}),
        patch_features=3 * patch[0] * patch[1] * patch[2],
        positions=(spec(Rotary, fps=24.0 / patch[0]),),
        modulation=spec(Shared),
        registers=4,
        cross=("text",),
        remat="none" if smoke else "attention",
        dtype="float32" if smoke else "bfloat16",
    )
    return spec(Denoiser, backbone=backbone, parameterization=spec(X0), signals=(text, rate))
