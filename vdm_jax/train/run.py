"""One run: everything that a config names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipeline import rows
from data_pipeline.blocks import PIXELS, Content
from data_pipeline.latents import AGAIN, DTYPE, LATENT
from data_pipeline.loaders import PackedVideo
from data_pipeline.texts import stale
from vdm_jax.axes import HEADS, TOKEN
from vdm_jax.codecs import Pixels
from vdm_jax.config import UserError
from vdm_jax.features import encoder_hash
from vdm_jax.kernels import ulysses
from vdm_jax.objectives.denoise import Objective
from vdm_jax.parallel.mesh import sizes_of
from vdm_jax.parallel.rules import TABLES, mesh_axes
from vdm_jax.requests import size_problems
from vdm_jax.stage import Stage
from vdm_jax.train.optim import Optimizer
from vdm_jax.train.surgery import Inherit
from vdm_jax.types import Count, Natural


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A video to sample while training, to look at."""

    text: str
    frames: Count
    height: Count
    width: Count
    fps: Natural = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """`knobs` are named numbers that several parts refer to (`config.knobs.get_ref`).

    Attributes:
      ema: decay rates; one shadow of the weights is kept for each, the first is sampled from.
      mesh: devices along `data`, `fsdp`, `seq`, `tensor`; -1 takes the rest.
      rules: name of the table that maps logical axes to mesh axes (`parallel/rules.py`).
      skip_limit: so many non-finite steps in a row end the run with exit code 5.
      validation_rows: rows of the held-out batch; 0 for none.
      inherit: where its first weights come from; None begins afresh, or where `--init` says.
      credit: whose pictures the data are; written below the run's own picture.
      wandb: arguments of `wandb.init` (project, name ...) to log there too.
    """

    stage: Stage
    objective: Objective
    data: PackedVideo
    optimizer: Optimizer
    seed: Natural
    steps: Count
    microbatches: Count = 1
    ema: tuple[float, ...] = (0.999,)
    mesh: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {"data": -1, "fsdp": 1, "seq": 1, "tensor": 1}
    )
    rules: str = "dp"
    save_every: Count = 500
    keep: Count = 3
    validate_every: Natural = 0
    validation_rows: Natural = 0
    sample_every: Natural = 0
    prompts: tuple[Prompt, ...] = ()
    skip_limit: Count = 20
    inherit: Inherit | None = None
    credit: str = ""
    wandb: Mapping[str, str] | None = None
    knobs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def problems(self, devices: int) -> list[str]:
        """Everything wrong with this run on so many devices, one sentence each."""
        found = self.stage.problems()
        found += self.objective.problems(self.stage) if not found else []
        try:
            data, fsdp, seq, tensor = sizes_of(self.mesh, devices)
        except UserError as error:
            found.append(str(error))
            data = fsdp = seq = tensor = 1
        found += self.data.problems(devices=data * fsdp, microbatches=self.microbatches)
        if self.data.tokens % seq:
            found.append(
                f"data.tokens is {self.data.tokens}, which mesh axis seq of {seq} devices does not "
                f"divide; take a multiple of {seq}."
            )
        elif seq > 1 and not found and any(k.capacity.tokens % seq for k in self.data.kinds):
            found.append(
                f"data.layout has rows that mesh axis seq of {seq} devices does not divide; set "
                f"its multiple to {seq}."
            )
        found += self._heads_problems(seq=seq, tensor=tensor)
        if tuple(self.data.patch) != tuple(self.stage.patch):
            found.append(f"data.patch is {self.data.patch}, stage.patch is {self.stage.patch}.")
        found += self.codec_problems() if not found else []
        found += self._text_problems() if not found else []
        for encoder in self.stage.encoders.values():
            found += encoder.problems()
        found += self._vocabulary_problems() if not found else []
        found += [
            f"ema rate {rate} must be between 0 and 1." for rate in self.ema if not 0 <= rate < 1
        ]
        if not self.ema:
            found.append("ema is empty; name at least one rate, such as 0.999.")
        if self.validate_every and not (self.validation_rows and self.data.holdout > 0):
            found.append("validate_every needs validation_rows and data.holdout above 0.")
        if self.sample_every and not self.prompts:
            found.append("sample_every needs prompts.")
        if self.prompts and not (self.stage.first and self.stage.makes_videos):
            found.append("a stage that needs others for a video makes no prompts; leave them out.")
        for index, prompt in enumerate(self.prompts):
            size = (prompt.frames, prompt.height, prompt.width)
            found += [f"prompts[{index}]: {line}" for line in size_problems(self.stage, size)]
        return found

    def _heads_problems(self, *, tensor: int, seq: int) -> list[str]:
        """Whether the backbone's heads divide over the devices that the rules give them."""
        backbone, rules = self.stage.denoiser.backbone, TABLES.get(self.rules, {})
        heads = getattr(backbone, "heads", None)
        if not isinstance(heads, int):
            return []
        if mesh_axes(rules.get(HEADS)) and heads % tensor:
            legal = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            return [
                f"stage.denoiser.backbone.heads is {heads}, which mesh axis tensor of {tensor} "
                f"devices does not divide; set mesh.tensor to one of {legal}, or change the heads."
            ]
        if getattr(backbone, "backend", None) != "ulysses":
            return []
        tensor = tensor if mesh_axes(rules.get(HEADS)) else 1
        refusal = ulysses.refusal(heads, tensor, seq if mesh_axes(rules.get(TOKEN)) else 1)
        return [f"stage.denoiser.backbone.backend: {refusal}"] if refusal else []

    def codec_problems(self) -> list[str]:
        """Whether the data are what the stage's codec makes, or pixels that it can be run on."""
        codec, latents = self.stage.codec, self.data.latents
        if latents is None:
            if tuple(codec.stride) == (1, 1, 1) and codec.channels == PIXELS.numbers:
                return []
            return [
                f"stage.codec has a stride of {codec.stride} and {codec.channels} channels, but "
                f"the data are pixels; encode them first: {AGAIN}"
            ]
        where = f"the latents in '{latents.manifest.folder}'"
        if latents.channels != codec.channels:
            return [f"{where} have {latents.channels} channels, stage.codec has {codec.channels}."]
        if latents.key.encoder != encoder_hash(codec):
            return [
                f"{where} are stale: they were made by another encoder than stage.codec; make them "
                f"anew: {AGAIN}"
            ]
        return []

    def _text_problems(self) -> list[str]:
        """Whether the captions' features are what the stage's frozen encoder makes."""
        encoder, texts = self.stage.text, self.data.texts
        if encoder is None:
            return []
        where = self.data.manifests[0].folder
        if texts is None:
            return [
                f"stage.text is a frozen encoder, but '{where}' has no text features; encode them "
                f"first: {AGAIN}"
            ]
        if texts.width != encoder.width:
            return [f"the text features in '{where}' have a width of {texts.width}, stage.text has "
                    f"{encoder.width}."]  # fmt: skip
        same = texts.key.encoder == encoder_hash(encoder)
        return [] if same else [stale(where, ["encoder"])]

    def _vocabulary_problems(self) -> list[str]:
        size = self.data.tokenizer.size
        encoders = [getattr(s.embed, "encoder", None) for s in self.stage.denoiser.signals]
        small = [e.vocab for e in encoders if e is not None and e.vocab < size]
        return [
            f"a text encoder has a vocab of {vocab}, but the captions' tokenizer has {size} ids; "
            f"raise the encoder's vocab to at least {size}."
            for vocab in small
        ]

    def blank_arrays(self, count: int) -> dict[str, np.ndarray]:
        """`count` rows of padding alone, in the shapes and dtypes of the loader."""
        # As the stage's own encoders make them, so that a model has its shapes before its data.
        room, codec = self.data.capacity, self.stage.codec
        if self.stage.text is not None:
            room = dataclasses.replace(room, text_width=self.stage.text.width)
        if self.data.latents is None and not isinstance(codec, Pixels):
            content = Content(name=LATENT, numbers=codec.channels, dtype=DTYPE.name)
            room = dataclasses.replace(room, content=content)
        blank = rows.blank(room)
        return {name: np.stack([leaf] * count) for name, leaf in blank.items()}
