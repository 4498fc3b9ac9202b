"""One diffusion model: codec, denoiser, process, noise prior, sampler, its place in a cascade."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from vdm_jax.batch import Frames, Packed, as_frames
from vdm_jax.codecs import Codec, Embedding, Pixels
from vdm_jax.denoiser import Denoiser
from vdm_jax.diffusion.constraints import Keep
from vdm_jax.diffusion.guides import DynamicThreshold, Reconstruct, Threshold
from vdm_jax.diffusion.prior import Prior
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sample import Sampler
from vdm_jax.image_prompt import IMAGE
from vdm_jax.images import ImageEncoder
from vdm_jax.links import Link
from vdm_jax.signals import GUIDANCE, FrozenText
from vdm_jax.texts import TextEncoder
from vdm_jax.types import Params
from vdm_jax.windows import Windows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A model of videos.

    Attributes:
      patch: (t, h, w) in cells of the codec's grid; of a backbone that reads whole frames (1, h, w)
        is their size, and a token a frame.
      prior: correlates the noise of frames.
      text: a frozen encoder, whose features `FrozenText` reads.
      link: what it is told of the video of the stage below, or, where no signal reads it, held to
        in sampling (`Keep`, `Reconstruct`); None where it is the first.
      image: makes the embedding of one picture, of which it is told (`image_prompt.py`).
      windows: how videos longer than a row are made.
    """

    denoiser: Denoiser
    process: Process
    prior: Prior
    sampler: Sampler
    patch: tuple[int, int, int]
    codec: Codec = dataclasses.field(default_factory=Pixels)
    text: TextEncoder | None = None
    link: Link | None = None
    image: Embedding | None = None
    windows: Windows | None = None

    def learnt_process(self, params: Params) -> Process:
        """`process`; where the denoiser learns its schedule, with that of `params`."""
        return self.denoiser.process(params, self.process)

    @property
    def whole_frames(self) -> bool:
        """Whether the backbone reads whole frames, not packed patches."""
        return getattr(self.denoiser.backbone, "carrier", Packed) is Frames

    def carry(self, batch: Packed) -> Frames | Packed:
        """The batch as the backbone reads it."""
        return as_frames(batch) if self.whole_frames else batch

    @property
    def told_below(self) -> bool:
        """Whether the network itself is told of the video below."""
        return any(signal.key == "below" for signal in self.denoiser.signals)

    @property
    def first(self) -> bool:
        """Whether it is told of nothing but words."""
        return self.link is None and self.image is None

    @property
    def makes_videos(self) -> bool:
        """Whether pixels come out of it, and not what another stage is told."""
        return not isinstance(self.codec, Embedding)

    @property
    def encoders(self) -> Mapping[str, ImageEncoder]:
        """Frozen networks that are asked while it is trained; see `Objective.frozen`."""
        return {} if self.image is None else {IMAGE: self.image.encoder}

    @property
    def unit(self) -> tuple[int, int, int]:
        """Frames, height and width of its videos are whole multiples of these."""
        t, h, w = self.codec.stride
        if self.whole_frames:
            factor = 1 if self.link is None else self.link.factor
            side = math.lcm(self.denoiser.backbone.unit, factor)
            return t, h * side, w * side
        return t * self.patch[0], h * self.patch[1], w * self.patch[2]

    @property
    def patch_features(self) -> int:
        t, h, w = self.patch
        return t * h * w * self.codec.channels

    def problems(self) -> list[str]:
        """What does not fit together, one sentence each."""
        found = []
        given = getattr(self.denoiser.backbone, "patch_features", self.patch_features)
        if given != self.patch_features:
            found.append(
                f"stage.denoiser.backbone.patch_features is {given}, but a patch of {self.patch} "
                f"with {self.codec.channels} channels has {self.patch_features}."
            )
        if self.whole_frames and self.patch[0] != 1:
            found.append(
                f"stage.patch is {self.patch}, but its backbone reads whole frames; set it to "
                f"{(1, *self.patch[1:])}."
            )
        elif self.whole_frames and any(a % b for a, b in zip(self.patch, self.unit, strict=True)):
            found.append(
                f"stage.patch is {self.patch}, but its frames must be whole multiples of "
                f"{self.unit[1]} x {self.unit[2]}."
            )
        found += self._sampler_problems()
        return found + self._link_problems() + self._image_problems() + self._text_problems()

    def _sampler_problems(self) -> list[str]:
        found, scale = [], self.sampler.guidance
        told = any(signal.key == GUIDANCE for signal in self.denoiser.signals)
        if told != (scale is not None):
            reads = "a signal reads" if told else "no signal reads"
            found.append(f"{reads} '{GUIDANCE}', but stage.sampler.guidance is {scale}.")
        beyond = getattr(self.sampler.stepper, "process", None)
        if beyond is not None and (beyond != self.process or self.denoiser.gamma is not None):
            found.append("stage.sampler.stepper.process is not the stage's; give it the same.")
        return found

    def _link_problems(self) -> list[str]:
        told = [signal.key for signal in self.denoiser.signals]
        if self.link is None:
            return [
                f"a signal reads '{key}', but stage.link is None; say what the stage is told."
                for key in ("below", "augmentation")
                if key in told
            ]
        found = []
        if not self.whole_frames:
            found.append("stage.link is given, but its backbone reads packed patches; take a UNet.")
        rules = (*self.sampler.guides, *self.sampler.constraints)
        if self.link.detail is not None and not self.told_below:
            found.append("stage.link.detail is given, but no signal reads 'below'; leave it out.")
        for rule in rules if self.link.detail is not None else ():
            if isinstance(rule, Threshold | DynamicThreshold):
                found.append(
                    f"stage.sampler clips pixels ({type(rule).__name__}), but stage.link.detail "
                    "leaves the stage what is beyond them; take one of the two out."
                )
        if not self.told_below and not any(isinstance(r, Keep | Reconstruct) for r in rules):
            found.append(
                "stage.link is given, but no signal reads 'below', and its sampler has neither "
                "Keep nor Reconstruct."
            )
        return found

    def _image_problems(self) -> list[str]:
        read = any(signal.key == IMAGE for signal in self.denoiser.signals)
        if self.image is None:
            said = f"a signal reads '{IMAGE}', but stage.image is None; name an image encoder."
            return [said] if read else []
        found = [] if read else [f"stage.image is given, but no signal reads '{IMAGE}'."]
        if not (self.whole_frames and isinstance(self.codec, Pixels)):
            found.append("stage.image looks at whole frames of pixels; take a UNet, and Pixels.")
        shown = self.patch if self.link is None else self.link.size(*self.patch)
        if shown[1:] != self.image.stride[1:]:
            found.append(
                f"stage.image.side is {self.image.side}, but it is shown {shown[1]} x {shown[2]} "
                "pixels; pictures of other sizes embed otherwise."
            )
        return found

    def _text_problems(self) -> list[str]:
        read = [s.embed for s in self.denoiser.signals if isinstance(s.embed, FrozenText)]
        if self.text is None:
            said = "a signal is FrozenText, but stage.text is None; name an encoder."
            return [said] if read else []
        most = self.text.max_length
        return [
            f"FrozenText.max_length is {one.max_length}, but stage.text reads {most} ids at most."
            for one in read
            if one.max_length > most
        ]
