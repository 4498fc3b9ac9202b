"""One diffusion model: codec + denoiser + process + noise prior + sampler, at one patch size."""

from __future__ import annotations

import dataclasses

from vdm_jax.codecs import Codec, Pixels
from vdm_jax.denoiser import Denoiser
from vdm_jax.diffusion.prior import Prior
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.sample import Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """`patch` is (t, h, w) in cells of the codec's grid; `prior` correlates the noise of frames."""

    denoiser: Denoiser
    process: Process
    prior: Prior
    sampler: Sampler
    patch: tuple[int, int, int]
    codec: Codec = dataclasses.field(default_factory=Pixels)
    name: str = "base"

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
        return found
