"""What experiments share: choosing a variant, text conditions, small runs of a CPU, cascades.

`small_run` is what `demo.py`, `own.py` and `bunny.py` train; its numbers are those named at the
top, those in `knobs`, and the arguments. `frames_run` is what UNets train: on rows of whole frames,
each stage of a cascade on its own view of the data.
"""

from __future__ import annotations

import math

from ml_collections import ConfigDict

from data_pipeline.clips import LogFrames, Strides
from data_pipeline.loaders import PackedVideo, Source
from data_pipeline.sizes import Area, Crop
from vdm_jax.config import UserError, spec, suggestion
from vdm_jax.denoiser import Denoiser, ScaledTime
from vdm_jax.diffusion.grids import Linspace, Shifted
from vdm_jax.diffusion.guides import Constant, Guidance, Interval
from vdm_jax.diffusion.parameterization import X0
from vdm_jax.diffusion.prior import Prior
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sample import Sampler
from vdm_jax.diffusion.schedule import Cosine, Straight
from vdm_jax.diffusion.steppers import Euler
from vdm_jax.diffusion.times import LogitNormal, Stratified
from vdm_jax.diffusion.weights import MinSnr, Uniform
from vdm_jax.nets.clip import HeadWidth
from vdm_jax.nets.dit import DiT
from vdm_jax.nets.encoders import TextEmbedding
from vdm_jax.nets.modulation import PerBlock
from vdm_jax.nets.positions import Fractional, Rotary, Sincos
from vdm_jax.nets.spatial import Attend, Cross, Norm
from vdm_jax.nets.unet3d import ImageUNet, UNet3D
from vdm_jax.objectives.denoise import Denoise
from vdm_jax.signals import Channels, NoiseTime, PackedText, PooledText, Signal
from vdm_jax.stage import Stage
from vdm_jax.train.optim import AdamW, Muon, Optimizer, WarmupCosine
from vdm_jax.train.run import Run

SMALL_PATCH = (2, 4, 4)
SMALL_VOCAB = 2048


def variant(arg: str | None, known: tuple[str, ...]) -> str:
    """The part after the colon of `--config=FILE.py:variant`; '' is the full size.

    Raises:
      UserError: a variant the file does not have.
    """
    if (arg or "") not in ("", *known):
        raise UserError(f"there is no variant '{arg}'.{suggestion(arg or '', known)}")
    return arg or ""


def text_tokens(*, vocab: int, width: int, length: int, drop: float, **encoder) -> ConfigDict:
    """Captions, through a small encoder trained along, as the token set 'text'."""
    embedding = spec(TextEmbedding, vocab=vocab, width=width, max_length=length, **encoder)
    tokens = spec(PackedText, max_length=length, encoder=embedding)
    return spec(Signal, key="text", slot="tokens.text", drop=drop, embed=tokens)


def text_vector(*, vocab: int, width: int, length: int, drop: float) -> ConfigDict:
    """Captions, through word embeddings trained along, as one vector beside the time's."""
    embedding = spec(TextEmbedding, vocab=vocab, width=width, max_length=length)
    vector = spec(PooledText, max_length=length, width=width, encoder=embedding)
    return spec(Signal, key="text", slot="vector", drop=drop, embed=vector)


def small_knobs(manifest: str, smoke: bool, **other: float) -> ConfigDict:
    """What `small_run` reads; `other` numbers join these or take their place."""
    usual = {
        "manifest": manifest,
        "seed": 0,
        "steps": 8 if smoke else 2000,
        "width": 32 if smoke else 96,
        "learning_rate": 6e-3,
        "muon_rate": 2e-2,
        "text_drop": 0.1,
        "guidance": 5.0,
    }
    return ConfigDict(usual | other)


def footage_knobs(manifest: str, smoke: bool, **other: float) -> ConfigDict:
    """`small_knobs` for videos that were not made to be small: how large, and how fast.

    Half the demo's learning rates: a step holds fewer clips, and at the demo's the loss was seen
    to jump (`bunny.py`).
    """
    usual = {"steps": 8 if smoke else 4000, "fps": 8.0, "guidance": 3.0}
    usual |= {"learning_rate": 3e-3, "muon_rate": 1e-2}
    areas = {"least_area": 24.0 * 24, "most_area": 40.0 * 40}
    return small_knobs(manifest, smoke, **(usual | areas | other))


def footage(knobs: ConfigDict) -> ConfigDict:
    """Every clip shrunk to an area within `footage_knobs`; of one longer than a row, a part."""
    return spec(Area, low=knobs.get_ref("least_area"), high=knobs.get_ref("most_area"))


def small_run(
    knobs: ConfigDict,
    *,
    smoke: bool,
    size: ConfigDict,
    prompts: tuple[ConfigDict, ...],
    words: int = 48,
    row_words: int = 256,
    credit: str = "",
) -> ConfigDict:
    """A packed transformer that trains in minutes on a CPU; `demo.py` says why each part.

    Args:
      size: law of the clips' sizes; `knobs.fps`, where there is one, is their frame rate.
      words: tokens of a caption that are read; row_words: of all captions of a row.
    """
    data = spec(
        PackedVideo,
        sources=(spec(Source, manifest=knobs.get_ref("manifest")),),
        patch=SMALL_PATCH,
        tokens=256 if smoke else 512,
        text_tokens=row_words,
        segments=8 if smoke else 16,
        rows=2 if smoke else 4,
        seed=knobs.get_ref("seed"),
        size=size,
        fps=knobs.get_ref("fps") if "fps" in knobs else None,
        holdout=0.3 if smoke else 0.05,
        block=64 if smoke else 4096,
    )
    times = spec(LogitNormal, mean=0.5, base=spec(Stratified))
    return spec(
        Run,
        stage=_small_stage(smoke, knobs, words),
        objective=spec(Denoise, times=times, weight=spec(MinSnr, floor=1.0)),
        data=data,
        optimizer=_optimizer(knobs, r"backbone/unit.*kernel$"),
        seed=knobs.get_ref("seed"),
        steps=knobs.get_ref("steps"),
        ema=(0.995,),
        save_every=4 if smoke else 500,
        validate_every=4 if smoke else 500,
        validation_rows=2 if smoke else 4,
        prompts=() if smoke else prompts,
        credit=credit,
        knobs=knobs,
    )


def _small_stage(smoke: bool, knobs: ConfigDict, words: int) -> ConfigDict:
    width = knobs.get_ref("width")
    text = text_vector(
        vocab=SMALL_VOCAB, width=width, length=words, drop=knobs.get_ref("text_drop")
    )
    backbone = spec(
        DiT,
        width=width,
        depth=2 if smoke else 4,
        heads=4,
        patch_features=3 * math.prod(SMALL_PATCH),
        positions=(
            spec(Fractional, entries=16),
            spec(Sincos, axes="xy"),
            spec(Sincos, axes="t"),
            spec(Rotary),
        ),
        modulation=spec(PerBlock),
        layers="loop",  # on two CPU devices a scan was a fifth slower
    )
    guidance = spec(Guidance, scales=(spec(Constant, value=knobs.get_ref("guidance")),))
    sampler = spec(
        Sampler,
        stepper=spec(Euler),
        grid=spec(Shifted, grid=spec(Linspace), factor=3.0),
        steps=4 if smoke else 24,
        # At low noise guidance only makes outlines ragged.
        guides=(guidance, spec(Interval, low=1.0)),
    )
    return spec(
        Stage,
        denoiser=spec(Denoiser, backbone=backbone, parameterization=spec(X0), signals=(text,)),
        process=spec(Process, schedule=spec(Straight), path="linear"),
        prior=spec(Prior),
        sampler=sampler,
        patch=SMALL_PATCH,
    )


def frames_data(
    knobs: ConfigDict,
    *,
    frames: int,
    size: tuple[int, int],
    rows: int,
    images: int = 0,
    stride: int = 1,
    fps: ConfigDict | None = None,
    where: str = "",
    words: int = 64,
    block: int = 4096,
    holdout: float = 0.05,
) -> ConfigDict:
    """Rows of whole frames: a video and as many stills as there is room for, or stills alone.

    Args:
      frames: of a video; images: frames of a row beside it.
      size: height and width that every clip is cropped to.
      rows: of a step; stride: every how manieth frame is seen; fps: or a law of the rate.
      where: only clips of which this holds; words: tokens of a text.
    """
    height, width = size
    return spec(
        PackedVideo,
        sources=(spec(Source, manifest=knobs.get_ref("manifest"), where=where),),
        patch=(1, height, width),
        tokens=frames + images,
        text_tokens=(frames + images) * words // 4 + words,
        segments=frames + images,
        rows=rows,
        seed=knobs.get_ref("seed"),
        size=spec(Crop, height=height, width=width),
        fps=spec(Strides, choices=(stride,)) if stride > 1 else fps,
        duration=spec(LogFrames, low=frames, high=frames),
        holdout=holdout,
        block=block,
    )


def unet(
    *,
    width: int,
    mults: tuple[int, ...],
    blocks: int | tuple[int, ...],
    attend: tuple[int, ...],
    head: int,
    groups: int,
    temporal: tuple[ConfigDict, ...] = (),
    cross: tuple[str, ...] = (),
    smoke: bool,
    **image,
) -> ConfigDict:
    """A UNet whose time embedding scales and shifts. Levels in `attend` and, if there are any, the
    middle attend in space, and to the token sets in `cross`; without any the middle attends to
    these alone. `image` are fields of `ImageUNet`."""
    norm, heads = spec(Norm, groups=groups), spec(HeadWidth, features=head)
    block = spec(Attend, heads=heads, norm=norm, cross=cross)
    middle = block if attend else None
    if cross and not attend:
        middle = spec(Cross, heads=heads, norm=norm, cross=cross)
    follow = tuple(block if level in attend else None for level in range(len(mults)))
    return spec(
        UNet3D,
        image=spec(
            ImageUNet, width=width, mults=mults, blocks=blocks, follow=follow,
            middle=middle, norm=norm, time="scale_shift", **image,
        ),
        temporal=temporal,
        cross=cross,
        remat="none" if smoke else "full",
        dtype="float32" if smoke else "bfloat16",
    )  # fmt: skip


def told_below(width: int) -> tuple[ConfigDict, ConfigDict]:
    """What a stage is told of the one below: its video, and how much noise was put on it."""
    return (
        spec(Signal, key="below", slot="channels", embed=spec(Channels)),
        spec(Signal, key="augmentation", slot="vector", embed=spec(NoiseTime, width=width)),
    )


def frames_stage(
    *,
    backbone: ConfigDict,
    parameterization: ConfigDict,
    signals: tuple[ConfigDict, ...],
    sampler: ConfigDict,
    size: tuple[int, int],
    prior: ConfigDict | None = None,
    **more,
) -> ConfigDict:
    """A UNet of frames of this size under a cosine schedule; `more` are fields of the stage."""
    denoiser = spec(
        Denoiser, backbone=backbone, parameterization=parameterization, signals=signals,
        time_input=spec(ScaledTime),
    )  # fmt: skip
    return spec(
        Stage, denoiser=denoiser, process=spec(Process, schedule=spec(Cosine)),
        prior=prior or spec(Prior), sampler=sampler, patch=(1, *size), **more,
    )  # fmt: skip


def frames_run(
    knobs: ConfigDict, *, stage: ConfigDict, data: ConfigDict, smoke: bool, **changes
) -> ConfigDict:
    """A UNet on rows of whole frames, trained by Adam, with a `muon_rate` among the knobs by Muon;
    `changes` are fields of the run."""
    usual = {
        "objective": spec(Denoise, times=spec(Stratified), weight=spec(Uniform)),
        "optimizer": _optimizer(knobs, r"backbone/(down|middle|up)_?.*kernel$"),
        "ema": (0.995,) if smoke else (0.9999,),
        "save_every": 500,
        "validate_every": 500,
        "validation_rows": 4,
        "rules": "dp" if smoke else "fsdp",
        "mesh": {"data": -1 if smoke else 1, "fsdp": 1 if smoke else -1, "seq": 1, "tensor": 1},
        **changes,
    }
    return spec(
        Run, stage=stage, data=data, seed=knobs.get_ref("seed"), steps=knobs.get_ref("steps"),
        knobs=knobs, **usual,
    )  # fmt: skip


def _optimizer(knobs: ConfigDict, matrices: str) -> ConfigDict:
    """Where there is a `muon_rate`, what matches `matrices`, those inside the blocks, is Muon's;
    embeddings, the head and vectors are Adam's."""
    adam = spec(AdamW, learning_rate=knobs.get_ref("learning_rate"))
    rules = ((".*", adam),)
    if "muon_rate" in knobs:
        rules = ((matrices, spec(Muon, learning_rate=knobs.get_ref("muon_rate"))), *rules)
    schedule = spec(WarmupCosine, steps=50, total=knobs.get_ref("steps"), final=0.05)
    return spec(Optimizer, rules=rules, schedule=schedule)
