"""Manifests of clips that do not exist: what a plan is made of, and nothing to decode."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipeline import manifest, text


def write(folder: Path, clips: int, seed: int = 0, **more) -> Path:
    """A manifest of `clips` films and images, four in ten; `more` is of each row, or a function of
    its number."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(clips):
        still = rng.random() < 0.4
        frames = 1 if still else int(rng.integers(2, 40))
        row = {
            "clip_id": f"{seed}/{i:06d}", "uri": f"{i:06d}.{'png' if still else 'mp4'}",
            "still": still, "start_s": 0.0, "end_s": 0.0 if still else frames / 8,
            "fps_num": 0 if still else 8, "fps_den": 1,
            "height": int(rng.integers(16, 80)), "width": int(rng.integers(16, 80)),
            "n_frames": frames, "rotation": 0, "captions": [f"a caption {i}", "another"][: i % 3],
            "label": "", "split": "", "source": "", "licence": "", "sha256": "", "bytes": 1,
        }  # fmt: skip
        rows.append(row | {k: v(i) if callable(v) else v for k, v in more.items()})
    manifest.write(folder, manifest.table_of(rows), folder)
    text.train(["a caption", "another"] * 3, str(folder / manifest.TOKENIZER))
    return folder
