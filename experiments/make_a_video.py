"""Make-A-Video: text to an image's embedding, that to a video; no video needs a caption.

What     a prior, which alone reads words, makes the embedding of an image; a decoder of images that
         is told it is inflated (convolutions in time that begin as the identity, attention in time
         that begins at zero) and told the frame rate; inflated again, told every fifth frame, it
         makes those between; two stages enlarge, the second frame by frame from the same noise.
Paper    Singer et al., "Make-A-Video: Text-to-Video Generation without Text-Video Data" (2022);
         the prior, a model of x0, and the decoder's image after Ramesh et al. (2022). From them:
         the stages' sizes, 16 frames and 76 at a skip of five, what acts in time and how it begins,
         masked frames and their mask as channels, frame rates from 1 to 30, one noise for all
         frames of the last stage. ASSUMED: every width and depth, chosen to come near the published
         sizes, which therefore prove nothing; the prior as a DiT of one token beside its text, with
         a text encoder trained along; v-prediction; noise on what is enlarged; rates uniform in
         their logarithm, with no curriculum.
         Embeddings are CLIP's (ViT-L/14), of pictures of 64 x 64 in all stages alike, since that is
         what a decoder's clip holds. The interpolation is told that of the middle frame below it,
         in sampling as in training, and not the prior's; the stages that enlarge are told none.

         stage   frames, size        published   here
         prior   an embedding        1.3 B       1.30 B
         base    16 x 64 x 64        3.1 B       3.11 B
         interp  76 x 64 x 64        3.1 B       3.11 B
         space1  76 x 256 x 256      1.4 B       1.36 B
         space2  76 x 768 x 768      0.7 B       0.70 B

Command  python -m vdm_jax encode --config=experiments/make_a_video.py:embed --views=4
             --config.knobs.manifest=PICTURES --out=data/embeddings
         python -m vdm_jax train --config=experiments/make_a_video.py:prior --workdir=runs/mav/prior
             --config.knobs.manifest=data/embeddings
         ... :image, of PICTURES; :base of videos, with --init=runs/mav/image; :interp, with
             --init=runs/mav/base; :space1 and :space2
         python -m vdm_jax sample runs/mav/prior runs/mav/base runs/mav/interp runs/mav/space1
             runs/mav/space2 --prompt="..." --frames=76 --height=768 --width=768 --out=samples
         --config.knobs.clip names the folder of CLIP's weights.
Variant  image: the decoder of images alone; embed: what `encode` sees, a frame of each clip.
         smoke-prior, smoke-embed and so on: seconds on a CPU, for tests; their encoder is drawn.
Result   smoke-prior, 600 steps on 2,000 generated clips: of 64 captions whose combinations were
         never trained on, the embedding made has a cosine of 0.98 to that of the caption's own clip
         and 0.67 to those of the others, and is nearer to its own than to 96 of 100 of these;
         guidance between 1 and 5 changes little. The other stages: smoke only.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from data_pipeline.clips import LogFrames, LogRate
from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.sizes import Crop, Native
from experiments import base
from vdm_jax.codecs import Embedding
from vdm_jax.config import spec
from vdm_jax.denoiser import Denoiser
from vdm_jax.diffusion.guides import Constant, DynamicThreshold, Guidance
from vdm_jax.diffusion.parameterization import X0, V
from vdm_jax.diffusion.prior import Iid, Prior, Shared
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sample import Sampler
from vdm_jax.diffusion.schedule import Cosine
from vdm_jax.images import Tower
from vdm_jax.links import Augment, EveryFrame, Link, Strided
from vdm_jax.nets import modulation
from vdm_jax.nets.clip import HeadWidth
from vdm_jax.nets.dit import DiT
from vdm_jax.nets.positions import Sincos
from vdm_jax.nets.temporal import Attention, Pseudo3d, Temporal
from vdm_jax.nets.vision import VisionTower
from vdm_jax.signals import Channels, Signal, Sinusoid, Vector
from vdm_jax.stage import Stage
from vdm_jax.train.surgery import Copy, Fresh, Inherit, Wider
from vdm_jax.windows import Windows

FRAME_RATE = 64  # features of it
# What the decoder has that the image model has not.
INFLATE = ((r"/after_[a-z_]+_\d+_\d+/|/signals_1/|/time/early/", Fresh), (".*", Copy))
INTERPOLATE = ((r"^params/backbone/conv_in/kernel$", Wider), (".*", Copy))
VIT_L = {"side": 224, "patch": 14, "width": 1024, "depth": 24, "heads": 16, "hidden": 4096,
         "features": 768, "dtype": "bfloat16"}  # fmt: skip
TINY = {"side": 16, "patch": 4, "width": 32, "depth": 2, "heads": 2, "hidden": 64, "features": 16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """One UNet: it is trained on `window` frames of `side` pixels; levels in `attend` attend in
    space; `factor` and `stride` are what it enlarges, in space and in time."""

    side: int
    window: int
    width: int
    mults: tuple[int, ...]
    blocks: int | tuple[int, ...]
    attend: tuple[int, ...] = ()
    factor: int = 1
    stride: int = 1


DECODER = Sizes(
    side=64, window=16, width=512, mults=(1, 2, 3, 4), blocks=(3, 3, 4, 4), attend=(1, 2, 3)
)
SMALL = Sizes(side=16, window=4, width=16, mults=(1, 2), blocks=1, attend=(1,))
STAGES = {
    "image": dataclasses.replace(DECODER, window=1),
    "base": DECODER,
    "interp": dataclasses.replace(DECODER, window=76, stride=5),
    "space1": Sizes(
        side=256, window=16, width=224, mults=(1, 2, 4, 6), blocks=(2, 4, 6, 6), attend=(3,),
        factor=4,
    ),
    "space2": Sizes(
        side=768, window=1, width=128, mults=(1, 2, 4, 8), blocks=(2, 4, 8, 10), factor=3
    ),
    "smoke-image": dataclasses.replace(SMALL, window=1),
    "smoke-base": SMALL,
    "smoke-interp": dataclasses.replace(SMALL, window=7, stride=2),
    "smoke-space1": dataclasses.replace(SMALL, side=32, factor=2),
    "smoke-space2": dataclasses.replace(SMALL, side=48, window=1, attend=(), factor=3),
}  # fmt: skip
PRIORS = ("prior", "embed", "smoke-prior", "smoke-embed")


def get_config(arg: str | None = None) -> ConfigDict:
    name = base.variant(arg, (*STAGES, *PRIORS, "smoke"))
    name = {"": "base", "smoke": "smoke-base"}.get(name, name)
    smoke, kind = name.startswith("smoke"), name.removeprefix("smoke-")
    knobs = ConfigDict(
        {
            "manifest": f"data/make_a_video/{'embeddings' if kind == 'prior' else 'manifest'}",
            "clip": "" if smoke else "weights/clip-vit-large-patch14",
            "seed": 0,
            "steps": 8 if smoke else 500_000,
            "learning_rate": 1e-3 if smoke else 1e-4,
            "drop": 0.1,
            "guidance": 3.0 if smoke else 4.0,
            "augmentation": 0.1,
        }
    )
    tower = spec(Tower, module=spec(VisionTower, **(TINY if smoke else VIT_L)),
                 folder=knobs.get_ref("clip"))  # fmt: skip
    image = spec(Embedding, encoder=tower, side=16 if smoke else 64)
    if name in PRIORS:
        stage, data = _prior(image, knobs, smoke), _embeddings(kind, image, knobs, smoke)
        return base.frames_run(knobs, stage=stage, data=data, smoke=smoke)
    sizes = STAGES[name]
    rules = {"base": INFLATE, "interp": INTERPOLATE}.get(kind)
    inherit = rules and spec(Inherit, rules=tuple((path, spec(rule)) for path, rule in rules))
    return base.frames_run(
        knobs, stage=_stage(kind, sizes, image, knobs, smoke), smoke=smoke, inherit=inherit,
        data=_frames(kind, sizes, knobs, smoke),
    )  # fmt: skip


def _embeddings(kind: str, image: ConfigDict, knobs: ConfigDict, smoke: bool) -> ConfigDict:
    """Rows of embeddings, of one frame each; 'embed' makes them of pixels, cut to their middle."""
    size = spec(Native) if kind == "prior" else spec(Crop, height=image.side, width=image.side)
    count, words = 16, 32 if smoke else 128
    return spec(
        PackedVideo, sources=(spec(Source, manifest=knobs.get_ref("manifest")),), patch=(1, 1, 1),
        tokens=count, text_tokens=count * words, segments=count, rows=4 if smoke else 256,
        seed=knobs.get_ref("seed"), size=size, duration=spec(LogFrames, low=1, high=1),
        holdout=0.3 if smoke else 0.01, block=256 if smoke else 2**16,
    )  # fmt: skip


def _prior(image: ConfigDict, knobs: ConfigDict, smoke: bool) -> ConfigDict:
    width, channels = 64 if smoke else 2048, image.encoder.module.features
    vocab, length = (base.SMALL_VOCAB, 32) if smoke else (49_408, 77)
    text = {"vocab": vocab, "length": length, "drop": knobs.get_ref("drop")}
    backbone = spec(
        DiT, width=width, depth=2 if smoke else 18, heads=2 if smoke else 32,
        patch_features=channels, modulation=spec(modulation.Shared), positions=(), cross=("text",),
        dtype="float32" if smoke else "bfloat16",
    )  # fmt: skip
    signals = (base.text_vector(width=width, **text),)
    signals += (base.text_tokens(width=32 if smoke else 768, **text),)
    guidance = spec(Guidance, scales=(spec(Constant, value=knobs.get_ref("guidance")),))
    return spec(
        Stage,
        denoiser=spec(Denoiser, backbone=backbone, parameterization=spec(X0), signals=signals),
        process=spec(Process, schedule=spec(Cosine)),
        prior=spec(Prior),
        sampler=spec(Sampler, steps=8 if smoke else 64, guides=(guidance,)),
        patch=(1, 1, 1),
        codec=image,
    )


def _frames(kind: str, sizes: Sizes, knobs: ConfigDict, smoke: bool) -> ConfigDict:
    stills, films = 15 if kind == "image" else 0, kind in ("base", "interp")
    return base.frames_data(
        knobs, frames=sizes.window, images=3 if smoke and stills else stills,
        size=(sizes.side, sizes.side), rows=2 if smoke else 128, words=32 if smoke else 64,
        where="n_frames > 1" if films else "", block=64 if smoke else 4096,
        fps=spec(LogRate, low=1.0, high=30.0) if films and not smoke else None,
        holdout=0.3 if smoke else 0.01,
    )  # fmt: skip


def _stage(
    kind: str, sizes: Sizes, image: ConfigDict, knobs: ConfigDict, smoke: bool
) -> ConfigDict:
    width, enlarges, link = 4 * sizes.width, sizes.factor > 1, None
    embedding = spec(Signal, key="image", slot="vector", drop=knobs.get_ref("drop"),
                     embed=spec(Vector, width=width))  # fmt: skip
    # Before the time's layers, where what joins begins at zero.
    rate = spec(Signal, key="fps", slot="pre_time", embed=spec(Sinusoid, width=FRAME_RATE))
    signals = () if enlarges else (embedding,) if kind == "image" else (embedding, rate)
    if enlarges:
        signals = base.told_below(width)
        augment = spec(Augment, at=knobs.get_ref("augmentation"))
        link = spec(Link, select=spec(EveryFrame), factor=sizes.factor, augment=augment)
    elif sizes.stride > 1:
        signals += (spec(Signal, key="below", slot="channels", embed=spec(Channels)),)
        link = spec(Link, select=spec(Strided, stride=sizes.stride, fill="blank"))
    head = 16 if smoke else 64
    in_time = spec(Attention, heads=spec(HeadWidth, features=head), position=spec(Sincos, axes="t"))
    levels = sizes.attend if enlarges else None
    temporal = (
        spec(Temporal, part=spec(Pseudo3d), at="after_conv"),
        spec(Temporal, part=in_time, at="after_attention", levels=levels),
    )
    backbone = base.unet(
        width=sizes.width, mults=sizes.mults, blocks=sizes.blocks, attend=sizes.attend, head=head,
        groups=4 if smoke else 32, temporal=() if sizes.window == 1 else temporal, smoke=smoke,
        resample="before" if enlarges else "after",
    )  # fmt: skip
    guidance = spec(Guidance, scales=(spec(Constant, value=knobs.get_ref("guidance")),))
    guides = (spec(DynamicThreshold),) if enlarges else (guidance, spec(DynamicThreshold))
    windows = {"space1": spec(Windows, frames=sizes.window, carry=sizes.window // 4),
               "space2": spec(Windows, frames=4, same_noise=True)}  # fmt: skip
    return base.frames_stage(
        backbone=backbone,
        parameterization=spec(V),
        signals=signals,
        sampler=spec(Sampler, steps=4 if smoke else 100, guides=guides),
        size=(sizes.side, sizes.side),
        prior=spec(Prior, factor=spec(Shared if kind == "space2" else Iid)),
        link=link,
        image=None if enlarges else image,
        windows=windows.get(kind),
    )
