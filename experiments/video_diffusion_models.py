"""Video Diffusion Models: the first space-time UNet, images packed beside videos, reconstruction.

What     a UNet whose convolutions see one frame at a time and whose attention is divided: in space,
         then in time with learnt relative positions; stills packed beside each video take part in
         space alone. One model makes 16 frames from words; it extends them, window by window, and
         enlarges others' videos, by guidance through its own gradient: it was trained for neither.
Paper    Ho et al., "Video Diffusion Models" (2022). From it: 16 x 64 x 64, width 256 (small: 128)
         x 1, 2, 4, 8, attention at 8, 16 and 32, heads of 64, cosine schedule cut at log SNR +-20,
         eps, ancestral sampling with Langevin steps of 0.1 for what is known, weight 9 of the
         guidance, eight stills beside a video; 9 x 128 x 128 in space: width 128 x 1, 2, 4, 8, 16,
         heads of 128. ASSUMED: two blocks a level; a text encoder trained along for its BERT-large;
         images and text as in the config. No number of parameters is published.
Command  python -m vdm_jax train --config=experiments/video_diffusion_models.py --workdir=runs/vdm
             --config.knobs.manifest=... --config.mesh.fsdp=-1
         python -m vdm_jax sample runs/vdm --prompt="..." --frames=64 --out=long
         python -m vdm_jax sample runs/vdm --below=small-videos --out=large
Variant  small; size: trained super-resolution; smoke: seconds on a CPU, for tests.
Result   smoke only.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import base
from vdm_jax.config import spec
from vdm_jax.diffusion.constraints import Keep, Langevin
from vdm_jax.diffusion.guides import Constant, Guidance, Reconstruct, Threshold
from vdm_jax.diffusion.parameterization import Eps
from vdm_jax.diffusion.sample import Sampler
from vdm_jax.diffusion.steppers import Ancestral
from vdm_jax.links import Augment, Link
from vdm_jax.nets.clip import HeadWidth
from vdm_jax.nets.relative import Shaw
from vdm_jax.nets.temporal import Attention, Temporal
from vdm_jax.windows import Windows

SIZES = {
    "": {"side": 64, "width": 256, "mults": (1, 2, 4, 8), "attend": (1, 2, 3), "head": 64},
    "small": {"side": 64, "width": 128, "mults": (1, 2, 4, 8), "attend": (1, 2, 3), "head": 64},
    "size": {"side": 128, "width": 128, "mults": (1, 2, 4, 8, 16), "attend": (2, 3, 4),
             "head": 128},
    "smoke": {"side": 16, "width": 16, "mults": (1, 2), "attend": (1,), "head": 16},
}  # fmt: skip
FACTOR = 2  # of what is enlarged


def get_config(arg: str | None = None) -> ConfigDict:
    name = base.variant(arg, ("small", "size", "smoke"))
    smoke, sizes = name == "smoke", SIZES[name]
    frames = {"size": 9, "smoke": 8}.get(name, 16)
    knobs = ConfigDict(
        {
            "manifest": "data/videos/manifest",
            "seed": 0,
            "steps": 8 if smoke else 700_000,
            "learning_rate": 1e-3 if smoke else 1e-4,
            "text_drop": 0.1,
            "guidance": 2.0,
            "reconstruction": 9.0,
        }
    )
    data = base.frames_data(
        knobs, frames=frames, size=(sizes["side"], sizes["side"]), rows=4 if smoke else 128,
        images=2 if smoke else 8, words=32 if smoke else 64, block=64 if smoke else 4096,
        holdout=0.3 if smoke else 0.05,
    )  # fmt: skip
    return base.frames_run(
        knobs, stage=_stage(name, sizes, frames, knobs, smoke), data=data, smoke=smoke
    )


def _stage(name: str, sizes: dict, frames: int, knobs: ConfigDict, smoke: bool) -> ConfigDict:
    width = 4 * sizes["width"]
    vocab = base.SMALL_VOCAB if smoke else 32_128
    length = 32 if smoke else 64
    signals = (
        base.text_vector(vocab=vocab, width=width, length=length, drop=knobs.get_ref("text_drop")),
    )
    heads = spec(HeadWidth, features=sizes["head"])
    in_time = spec(Attention, heads=heads, relative=spec(Shaw, reach=frames))
    enlarges = name == "size"
    if enlarges:
        signals += base.told_below(width)
    backbone = base.unet(
        width=sizes["width"], mults=sizes["mults"], blocks=1 if smoke else 2,
        attend=sizes["attend"], head=sizes["head"], groups=4 if smoke else 32,
        temporal=(spec(Temporal, part=in_time, at="after_sa"),), smoke=smoke,
    )  # fmt: skip
    guidance = spec(Guidance, scales=(spec(Constant, value=knobs.get_ref("guidance")),))
    weight = knobs.get_ref("reconstruction")
    guides = (guidance, spec(Threshold))
    if not enlarges:
        guides += (spec(Reconstruct, weight=weight), spec(Reconstruct, weight=weight, pool=FACTOR))
    sampler = spec(
        Sampler,
        stepper=spec(Ancestral),
        steps=8 if smoke else 256,
        guides=guides,
        constraints=() if enlarges else (spec(Keep), spec(Langevin, delta=0.1)),
        known="clean" if enlarges else "noised",
    )
    return base.frames_stage(
        backbone=backbone, parameterization=spec(Eps), signals=signals, sampler=sampler,
        size=(sizes["side"], sizes["side"]),
        link=spec(Link, factor=FACTOR, augment=spec(Augment) if enlarges else None),
        windows=None if enlarges else spec(Windows, frames=frames, carry=frames // 2),
    )  # fmt: skip
