"""Imagen: pictures from words, a base model and two that enlarge.

What     three UNets of pixels: 64 x 64, 256 x 256, 1024 x 1024; text by attention and as a vector;
         noise on what is enlarged; dynamic thresholding.
Paper    Saharia et al., "Photorealistic Text-to-Image Diffusion Models with Deep Language
         Understanding" (2022). From it: the stages' sizes, the efficient UNet of the stages that
         enlarge (fewer channels and more blocks, sampled down before and up after the blocks, skips
         scaled by 1 / sqrt 2), noise on the condition, guidance with dynamic thresholding, a
         frozen T5-XXL. ASSUMED: widths and depths, of which the paper gives some, so that counts
         prove nothing; v-prediction in all stages; the text encoder is trained along, or
         `stage.text` names a frozen one.

         stage   size           published   here
         base    64 x 64        2 B         2.26 B
         space1  256 x 256      600 M       791 M
         space2  1024 x 1024    400 M       447 M

Command  python -m vdm_jax train --config=experiments/imagen.py:base --workdir=runs/imagen/base
             --config.knobs.manifest=... --config.mesh.fsdp=-1           and so for every stage
         python -m vdm_jax sample runs/imagen/base runs/imagen/space1 runs/imagen/space2
             --prompt="..." --frames=1 --height=1024 --width=1024 --out=pictures
Variant  smoke, smoke-space: seconds on a CPU, for tests.
Result   smoke only.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import base
from vdm_jax.config import spec
from vdm_jax.diffusion.guides import Constant, DynamicThreshold, Guidance
from vdm_jax.diffusion.parameterization import V
from vdm_jax.diffusion.sample import Sampler
from vdm_jax.diffusion.steppers import Ancestral
from vdm_jax.links import Augment, Link

GAIN = 0.5**0.5
SIZES = {
    "base": {"side": 64, "width": 512, "mults": (1, 2, 3, 4), "blocks": 3, "attend": (1, 2, 3)},
    "space1": {"side": 256, "width": 128, "mults": (1, 2, 4, 8), "blocks": (2, 4, 8, 8),
               "attend": (3,)},
    # Trained on crops.
    "space2": {"side": 256, "width": 128, "mults": (1, 2, 4, 8), "blocks": (2, 4, 8, 4),
               "attend": ()},
    "smoke": {"side": 16, "width": 16, "mults": (1, 2), "blocks": 1, "attend": (1,)},
    "smoke-space": {"side": 32, "width": 16, "mults": (1, 2), "blocks": (1, 2), "attend": ()},
}  # fmt: skip
FACTORS = {"space1": 4, "space2": 4, "smoke-space": 2}


def get_config(arg: str | None = None) -> ConfigDict:
    name = base.variant(arg or "base", tuple(SIZES))
    smoke, side = name.startswith("smoke"), SIZES[name]["side"]
    knobs = ConfigDict(
        {
            "manifest": "data/pictures/manifest",
            "seed": 0,
            "steps": 8 if smoke else 2_500_000,
            "learning_rate": 1e-3 if smoke else 1e-4,
            "text_drop": 0.1,
            "guidance": 7.5,
            "augmentation": 0.1,
        }
    )
    data = base.frames_data(
        knobs, frames=1, images=3 if smoke else 15, size=(side, side), rows=2 if smoke else 128,
        words=32 if smoke else 128, block=64 if smoke else 4096, holdout=0.3 if smoke else 0.01,
    )  # fmt: skip
    return base.frames_run(knobs, stage=_stage(name, knobs, smoke), data=data, smoke=smoke)


def _stage(name: str, knobs: ConfigDict, smoke: bool) -> ConfigDict:
    sizes, factor = dict(SIZES[name]), FACTORS.get(name, 1)
    side, width = sizes.pop("side"), 4 * sizes["width"]
    text = {"vocab": base.SMALL_VOCAB if smoke else 32_128, "length": 32 if smoke else 128}
    text["drop"] = knobs.get_ref("text_drop")
    signals = (base.text_vector(width=width, **text),)
    signals += (base.text_tokens(width=16 if smoke else 1024, **text),)
    link = None
    if factor > 1:
        signals += base.told_below(width)
        link = spec(Link, factor=factor, augment=spec(Augment, at=knobs.get_ref("augmentation")))
    backbone = base.unet(
        **sizes, head=16 if smoke else 64, groups=4 if smoke else 32, cross=("text",), smoke=smoke,
        gain=GAIN, resample="before" if link else "after",
    )  # fmt: skip
    guidance = spec(Guidance, scales=(spec(Constant, value=knobs.get_ref("guidance")),))
    sampler = spec(
        Sampler, stepper=spec(Ancestral), steps=4 if smoke else 256,
        guides=(guidance, spec(DynamicThreshold, quantile=0.995)),
    )  # fmt: skip
    return base.frames_stage(
        backbone=backbone, parameterization=spec(V), signals=signals, sampler=sampler,
        size=(side, side), link=link,
    )  # fmt: skip
