"""Your own videos, on a CPU: the demo's small transformer on footage of any size and rate.

What     a text-conditioned DiT on pixels, every clip in its own shape, with the area of 24 x 24 to
         40 x 40 pixels, at 8 frames a second; a clip that is longer than a row is seen in
         parts. Captions are those of the index, the first 48 tokens of each.
Paper    none; the parts are those of `demo.py`.
Command  make demo VIDEOS=/my/videos                      (docs/your-videos.md)
         python -m vdm_jax train --config=experiments/own.py --workdir=runs/own
             --config.knobs.manifest=data/own/manifest
Variant  smoke: seconds on a CPU, for tests.
Result   what it learns is yours to see: `loss.png` shows clips that were held out, noised, and as
         the model restores them.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import base


def get_config(arg: str | None = None) -> ConfigDict:
    smoke = base.variant(arg, ("smoke",)) == "smoke"
    knobs = base.footage_knobs("data/own/manifest", smoke)
    return base.small_run(knobs, smoke=smoke, size=base.footage(knobs), prompts=())
