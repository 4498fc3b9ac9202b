"""Big Buck Bunny: real footage, cut into shots, on a CPU.

What     `own.py` on one film of ten minutes: its shots are the clips, of 16 x 28 to 24 x 42 pixels.
Film     (c) 2008 Blender Foundation / www.bigbuckbunny.org, CC-BY 3.0; get_bunny.sh takes it from
         an archive that holds it and checks its SHA-256. Captions: bunny_captions.jsonl, ours.
Command  make bunny                                       (MINUTES=30 on 2 cores)
         python -m vdm_jax train --config=experiments/bunny.py --workdir=runs/bunny
Variant  smoke: seconds on a CPU, for tests.
Result   `make bunny` on 2 cores without AVX-512, with other work on the machine: 4,868 steps in 38
         minutes, fill 0.929, 4,091 useful tokens a second, one program; held-out loss 0.044 after
         500 steps, 0.0332 after 2,000, least after 3,500 (0.0315), 0.0317 after 4,500.
         docs/bunny.png. Worst visible fault: no rabbit is in the samples that ask for one, only the
         meadow or the forest around it; the squirrel in the sky is a brown blot without a shape.
Tried    at the demo's learning rates, twice these, and one size, 24 x 40: 1,843 steps, held-out
         loss 0.051 after 500, 0.036 after 1,500, a jump at step 660; samples were a mosaic.
Data     129 shots (137 found, 8 of them below half a second), copied in 49 s and cut in 9 s on one
         core without AVX-512.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import base
from vdm_jax.config import spec
from vdm_jax.train.run import Prompt

CREDIT = "film: (c) 2008 Blender Foundation / www.bigbuckbunny.org, CC-BY 3.0"
PROMPTS = (
    "a big grey rabbit on a green meadow",
    "a brown squirrel flies in a blue sky",
    "three rodents on the root of a tree",
    "a grey rabbit in a dark forest",
)


def get_config(arg: str | None = None) -> ConfigDict:
    smoke = base.variant(arg, ("smoke",)) == "smoke"
    # 16 x 28.4 to 24 x 42.7, of which whole patches are kept.
    areas = {"least_area": 16.0 * 16 * 16 / 9, "most_area": 24.0 * 24 * 16 / 9}
    knobs = base.footage_knobs("data/bunny/manifest", smoke, **areas)
    prompts = tuple(spec(Prompt, text=text, frames=8, height=24, width=40) for text in PROMPTS)
    size = base.footage(knobs)
    return base.small_run(knobs, smoke=smoke, size=size, prompts=prompts, credit=CREDIT)
