"""One diffusion model: codec + denoiser + process + noise prior + sampler, at one patch size."""

from __future__ import annotations

import dataclasses

from vdm_jax.codecs import Codec, Pixels
from vdm_jax.denoiser import Denoiser
from vdm_jax.diffusion.prior import Prior
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sample import Sampler
from vdm_jax.signals import GUIDANCE, FrozenText
from vdm_jax.texts import TextEncoder
from vdm_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """`patch` is (t, h, w) in cells of the codec's grid; `prior` correlates the noise of frames;
    `text` is a frozen encoder, whose features `FrozenText` reads."""

    denoiser: Denoiser
    process: Process
    prior: Prior
    sampler: Sampler
    patch: tuple[int, int, int]
    codec: Codec = dataclasses.field(default_factory=Pixels)
    text: TextEncoder | None = None
    name: str = "base"

    def learnt_process(self, params: Params) -> Process:
        """`process`; where the denoiser learns its schedule, with that of `params`."""
        return self.denoiser.process(params, self.process)

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
        told = any(signal.key == GUIDANCE for signal in self.denoiser.signals)
        if told != (self.sampler.guidance is not None):
            reads = "a signal reads 'guidance'" if told else "no signal reads 'guidance'"
            found.append(f"{reads}, but stage.sampler.guidance is {self.sampler.guidance}.")
        beyond = getattr(self.sampler.stepper, "process", None)
        if beyond is not None and (beyond != self.process or self.denoiser.gamma is not None):
            found.append("stage.sampler.stepper.process is not the stage's; give it the same.")
        return found + self._text_problems()

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
