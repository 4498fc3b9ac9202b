"""Variational diffusion models: pictures, by a bound of their likelihood and a learnt schedule.

What     a UNet of one level, 32 residual blocks each way at full size, attention in the middle
         alone, shown its input's fine detail (Fourier features, n = 7 and 8) and trained on the
         variational bound in bits a dimension; log SNR is a monotone network of time, its ends
         trained on the bound, its curve on the variance of the bound's estimate.
Paper    Kingma et al. 2021, "Variational Diffusion Models": CIFAR-10 without augmentation. Sizes
         and optimizer are those of section 6 and of the authors' code. The number of parameters
         is not published; ours is 30,588,934, the schedule's 3,075 among them.
Not so   the network answers eps, theirs eps - x_t; bytes are k / 127.5 - 1, theirs the middles of
         256 equal bins; queries, keys and values have no bias.
Command  python -m vdm_jax train --config=experiments/vdm_kingma.py --workdir=runs/vdm
         with the pictures indexed in data/cifar10/manifest
Variant  smoke: seconds on a CPU, for tests.
Result   smoke only.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from data_pipeline.clips import LogFrames
from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.sizes import Crop
from experiments import base
from vdm_jax.codecs import Pixels
from vdm_jax.config import spec
from vdm_jax.denoiser import Denoiser, NoiseLevel
from vdm_jax.diffusion.parameterization import Eps
from vdm_jax.diffusion.prior import Prior
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sample import Sampler
from vdm_jax.diffusion.schedule import LinearLogSNR
from vdm_jax.diffusion.steppers import Ancestral
from vdm_jax.nets.clip import HeadCount
from vdm_jax.nets.gamma import Gamma
from vdm_jax.nets.spatial import Attend, Norm
from vdm_jax.nets.unet3d import ImageUNet, UNet3D
from vdm_jax.objectives.vlb import Vlb
from vdm_jax.stage import Stage
from vdm_jax.train.optim import AdamW, Optimizer, Warmup
from vdm_jax.train.run import Run

LOW, HIGH = -13.3, 5.0  # of -log SNR, where it begins


def get_config(arg: str | None = None) -> ConfigDict:
    smoke = base.variant(arg, ("smoke",)) == "smoke"
    knobs = ConfigDict(
        {
            "manifest": "data/cifar10/manifest",
            "seed": 0,
            "steps": 8 if smoke else 10_000_000,
            "learning_rate": 2e-4,
            "side": 8 if smoke else 32,
        }
    )
    side = knobs.side
    norm = spec(Norm, groups=4 if smoke else 32, eps=1e-6)
    image = spec(
        ImageUNet,
        width=8 if smoke else 128,
        mults=(1,),
        blocks=1 if smoke else 32,
        follow=(None,),
        middle=spec(Attend, heads=spec(HeadCount, count=1), norm=norm),
        norm=norm,
        dropout=0.1,
    )
    gamma = spec(Gamma, low=LOW, high=HIGH, hidden=16 if smoke else 1024)
    denoiser = spec(
        Denoiser,
        backbone=spec(UNet3D, image=image, waves=(7, 8)),
        parameterization=spec(Eps),
        time_input=spec(NoiseLevel),
        gamma=gamma,
    )
    stage = spec(
        Stage,
        denoiser=denoiser,
        # Of the schedule until `gamma` takes its place.
        process=spec(Process, schedule=spec(LinearLogSNR, logsnr_min=-HIGH, logsnr_max=-LOW)),
        prior=spec(Prior),
        sampler=spec(Sampler, stepper=spec(Ancestral), steps=4 if smoke else 1000),
        patch=(1, side, side),
        codec=spec(Pixels),
    )
    data = spec(
        PackedVideo,
        sources=(spec(Source, manifest=knobs.get_ref("manifest")),),
        patch=(1, side, side),
        tokens=4 if smoke else 16,
        text_tokens=128,  # of captions, which nothing reads
        segments=4 if smoke else 16,
        rows=2 if smoke else 8,
        seed=knobs.get_ref("seed"),
        size=spec(Crop, height=side, width=side),
        duration=spec(LogFrames, low=1, high=1),
        holdout=0.3 if smoke else 0.05,
        block=64 if smoke else 2**16,
    )
    adam = spec(AdamW, learning_rate=knobs.get_ref("learning_rate"), b2=0.99, weight_decay=0.01)
    return spec(
        Run,
        stage=stage,
        objective=spec(Vlb),
        data=data,
        optimizer=spec(
            Optimizer, rules=((".*", adam),), schedule=spec(Warmup, steps=100), clip=None
        ),
        seed=knobs.get_ref("seed"),
        steps=knobs.get_ref("steps"),
        ema=(0.9999,),
        save_every=4 if smoke else 10_000,
        validate_every=4 if smoke else 10_000,
        validation_rows=2 if smoke else 8,
        knobs=knobs,
    )
