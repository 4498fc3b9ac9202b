"""Does each stage of a cascade do better than interpolation, and how much noise should it hear of?

    python -m tests.benchmarks.cascade runs/cascade/base runs/cascade/time runs/cascade/space \\
        --truth=data/cascade/unseen [--clips=64] [--out=FILE]

truth    each stage that enlarges is given the true video below, made of true clips that nobody
         trained on, and told that no noise is on it; what it makes is held against the true clip,
         beside interpolation (linear in time, cubic in space): PSNR in dB of the squared error's
         mean over all clips, the ratio of edge energies, 1 where edges are as sharp as they are in
         truth, and what the judge sees;
judge    colour, direction and object of what the whole cascade makes for the same captions, and
         of its first stage's videos, interpolated;
sweep    the same scores, and the ratio of edge energies to the true clips', for several times of
         the noise that the later stages put on what is below.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline import generated
from data_pipeline.exam import load, read_scenes
from data_pipeline.judge import look
from vdm_jax.cascade import Cascade
from vdm_jax.links import Link
from vdm_jax.pipeline import load_all
from vdm_jax.requests import Request

SWEEP = (0.0, 0.1, 0.2, 0.4)
Video = np.ndarray


def edges(video: Video) -> float:
    """Mean squared difference of neighbouring pixels."""
    x = video.astype(np.float64)
    return float(np.square(np.diff(x, axis=1)).mean() + np.square(np.diff(x, axis=2)).mean())


def far(video: Video, truth: Video) -> float:
    """Mean squared error."""
    return float(np.square(video.astype(np.float64) - truth).mean())


def below(link: Link, video: Video) -> Video:
    """The true video below, as bytes."""
    k, stride = link.factor, getattr(link.select, "stride", 1)
    f, h, w, c = video[::stride].shape
    small = video[::stride].reshape(f, h // k, k, w // k, k, c).mean((2, 4))
    return np.rint(small).astype(np.uint8)


def interpolated(video: Video, size: tuple[int, int, int]) -> Video:
    """Linear in time, cubic in space."""
    at = np.minimum(np.arange(size[0]) * len(video) / size[0], len(video) - 1)
    low = np.floor(at).astype(int)
    high, part = np.minimum(low + 1, len(video) - 1), (at - low)[:, None, None, None]
    frames = np.rint(video[low] * (1 - part) + video[high] * part).astype(np.uint8)
    turned = (size[2], size[1])
    return np.stack([np.asarray(Image.fromarray(f).resize(turned, Image.BICUBIC)) for f in frames])


def enlarging(
    stage: Any,
    clips: Sequence[tuple[Request, Video]],
    scenes: Sequence[generated.Scene],
    size: tuple[int, int, int],
) -> dict[str, Any]:
    """One stage against interpolation, given the truth below; judged, interpolated to `size`."""
    link = stage.stage.link
    small = [below(link, clip) for _, clip in clips]
    told = stage.override(augmentation=0.0)
    made = dict(told([request for request, _ in clips], small))
    found = {}
    for name, video in (
        ("stage", lambda i, clip: made[i]),
        ("interpolated", lambda i, clip: interpolated(small[i], clip.shape[:3])),
    ):
        pairs = [(video(i, clip), clip) for i, (_, clip) in enumerate(clips)]
        error = np.mean([far(*pair) for pair in pairs])
        found[f"psnr {name}"] = round(float(10 * np.log10(255**2 / error)), 2)
        sharp = np.mean([edges(one) for one, _ in pairs]) / np.mean([edges(t) for _, t in pairs])
        found[f"edges {name}"] = round(float(sharp), 3)
        whole = [interpolated(one, size) for one, _ in pairs]
        found |= {f"{what} {name}": value for what, value in scores(whole, scenes).items()}
    return found


def scores(videos: Sequence[Video], scenes: Sequence[generated.Scene]) -> dict[str, float]:
    """Shares of videos that show what was asked."""
    seen = [look(video) for video in videos]
    right = {
        "colour": [s.colour == one.colour for s, one in zip(seen, scenes, strict=True)],
        "direction": [s.motion == one.motion for s, one in zip(seen, scenes, strict=True)],
        "object": [s.shape == one.shape for s, one in zip(seen, scenes, strict=True)],
    }
    return {name: round(float(np.mean(values)), 3) for name, values in right.items()}


def measure(runs: Sequence[str], truth: str, count: int, report: Any = print) -> dict[str, Any]:
    cascade = load_all(runs)
    assert isinstance(cascade, Cascade)
    scenes = [one for one in read_scenes(truth) if one.motion][:count]
    clips = [load(Path(truth) / generated.file_name(one), one) for one in scenes]
    asked = [Request(**generated.request(one)) for one in scenes]
    per_stage = cascade.asked(asked)
    found: dict[str, Any] = {}
    for number in range(1, len(cascade.stages)):
        links = [stage.stage.link for stage in cascade.stages[number + 1 :]]
        mine = clips
        for link in reversed(links):
            mine = [below(link, clip) for clip in mine]
        pairs = list(zip(per_stage[number], mine, strict=True))
        stage = cascade.stages[number].on(_device())
        found[f"stage {number}"] = enlarging(stage, pairs, scenes, clips[0].shape[:3])
        report(found)
    first = dict(cascade.stages[0].on(_device())(per_stage[0]))
    base = [interpolated(first[i], asked[i].size) for i in range(len(asked))]
    sharp = np.mean([edges(clip) for clip in clips])
    found["truth"] = scores(clips, scenes)
    found["first stage, interpolated"] = scores(base, scenes) | {
        "edges": round(float(np.mean([edges(video) for video in base]) / sharp), 3)
    }
    report(found)
    for at in SWEEP:
        videos = [first[i] for i in range(len(asked))]  # which hears of no noise
        for stage, requests in zip(cascade.stages[1:], per_stage[1:], strict=True):
            made = dict(stage.override(augmentation=at).on(_device())(requests, videos))
            videos = [made[i] for i in range(len(asked))]
        found[f"cascade, noise {at}"] = scores(videos, scenes) | {
            "edges": round(float(np.mean([edges(video) for video in videos]) / sharp), 3)
        }
        report(found)
    return found


def _device() -> Any:
    import jax

    return jax.local_devices()[:1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--truth", required=True)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--out", help="a JSON file")
    args = parser.parse_args()
    found = measure(args.runs, args.truth, args.clips)
    print(json.dumps(found, indent=1))
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
