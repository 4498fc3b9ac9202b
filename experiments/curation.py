"""Curation by the recipe of Stable Video Diffusion: what each clip is worth, before any is chosen.

What     motion by optical flow, brightness, text, watermarks; black, static and repeated clips are
         left out. Cuts are found before, by `index --shots`; clips are chosen after, by a condition
         over the scores. The paper found its thresholds by people's votes, on its own data.
Paper    Blattmann et al. 2023 (2311.15127), appendix C: Farneback flow at 2 frames a second, with
         16 pixels at the shorter side; text by CRAFT, here by strokes; CLIP similarity and
         aesthetics of the first, middle and last frame. Watermarks, prints and light are ours.
Command  python -m data_pipeline index FILMS --out data/all --shots
         python -m data_pipeline curate data/all --out data/scored --config=experiments/curation.py
Variant  any other word is a module of yours, whose functions `aesthetic` and `similarity` score
         frames and captions: --config=experiments/curation.py:my.scores (docs/curation.md).
Result   docs/curation.md: the shots of Big Buck Bunny.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from data_pipeline.curation.chain import Chain
from data_pipeline.curation.duplicates import Duplicates
from data_pipeline.curation.lettering import TextArea
from data_pipeline.curation.light import Light
from data_pipeline.curation.model import Model
from data_pipeline.curation.motion import Flow
from data_pipeline.curation.watermark import Watermark
from vdm_jax.config import spec

MODELS = {"aesthetic": "aesthetic", "clip": "similarity"}  # score: function


def get_config(arg: str | None = None) -> ConfigDict:
    models = [
        spec(Model, score=score, function=f"{arg}:{function}") for score, function in MODELS.items()
    ]
    return spec(
        Chain,
        stages=(spec(Light), spec(Flow), spec(TextArea)),
        models=tuple(models) if arg else (),
        watermark=spec(Watermark),
        duplicates=spec(Duplicates),
    )
