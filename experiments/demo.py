"""The demo: a small packed video transformer on captioned moving shapes, on a CPU.

What     a text-conditioned DiT on pixels: straight path, patches of 2 x 4 x 4, videos and images of
         any size in one row, muon and AdamW, EMA, classifier-free guidance. It predicts x0: a
         patch has as many features as the trunk is wide, and a velocity would have to carry the
         noise of every pixel through it. The error of x0 counts at every noise level (`floor`):
         weighted by SNR alone, the levels at which a video's layout is decided count for nothing.
Paper    none; the parts are those of `sora.py` at toy size.
Command  make demo                                 (MINUTES=10 on 2 cores)
         python -m vdm_jax train --config=experiments/demo.py --workdir=runs/demo
Variant  smoke: seconds on a CPU, for tests.
Result   382 steps in 3 minutes on 2 cores, one device, 3,900 useful tokens a second: docs/demo.png.
         Objects have the colour asked for and stay in one place. Worst visible fault: their outline
         is ragged, patch by patch, so that hardly a shape can be told, and few move as asked.
Tried    64 captions of another seed (32 where marked *), on 2,400 clips, trunk unrolled; all but
         the last with one text path alone (cross-attention unless named) and t about 0.5 unless
         named; right by a judge of pixels, of 8 colours, 7 motions, 5 shapes:
                                                               colour  motion  shape
           min-SNR without a floor, AdamW alone, 400 steps      0.28    0.09   0.23
           floor 1, AdamW alone, 400 steps                      0.98    0.09   0.19
           floor 1, t about 0.73, AdamW alone, 300 steps *      1.00    0.12   0.34
           vector alone, floor 1, AdamW, 300 steps *            0.31    0.06   0.22
           vector alone, muon, t about 0.62, 500 steps *        0.97    0.12   0.28
           all of this file, 300 steps *                        1.00    0.19   0.28
         Velocity prediction, 463 steps: each patch noise of its own. Rotary positions alone: the
         object scattered over the frame.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from data_pipeline.sizes import Native
from experiments import base
from vdm_jax.config import spec
from vdm_jax.train.run import Prompt

PROMPTS = (
    "a red circle moving right over a plain dark background",
    "a blue square moving down over light stripes",
    "a yellow triangle growing over a dark gradient",
    "a photo of a green cross over dark checks",
)


def get_config(arg: str | None = None) -> ConfigDict:
    smoke = base.variant(arg, ("smoke",)) == "smoke"
    knobs = base.small_knobs("data/demo/manifest", smoke)
    prompts = tuple(
        spec(Prompt, text=text, frames=1 if "photo" in text else 8, height=24, width=24)
        for text in PROMPTS
    )
    return base.small_run(
        knobs, smoke=smoke, size=spec(Native), prompts=prompts, words=24, row_words=160
    )
