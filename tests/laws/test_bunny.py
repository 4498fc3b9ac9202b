"""Real footage end to end: the film is fetched, cut, captioned, trained on for some steps."""

import json
import os
import subprocess
import sys

import pytest

from data_pipeline import manifest
from data_pipeline.index import index
from tests.workbench import ROOT, vdm

FILM_SECONDS = 596.46


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """The folder with the film and its captions: this checkout's, if `make bunny` was here."""
    kept = ROOT / "data" / "bunny" / "film"
    folder = kept if (kept / "bbb.mp4").is_file() else tmp_path_factory.mktemp("bunny")
    command = ["sh", "experiments/get_bunny.sh", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PY": sys.executable}, capture_output=True, text=True
    )
    if done.returncode == 6 and "could not download" in done.stderr:
        pytest.skip(f"the archive that holds the film cannot be had: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    if folder != kept:
        (folder / "captions.jsonl").write_bytes(
            (ROOT / "experiments" / "bunny_captions.jsonl").read_bytes()
        )
    return folder


@pytest.mark.slow
def test_the_film_is_cut_captioned_and_trained_on(film, tmp_path):
    found = index(str(film), str(tmp_path / "m"), cut=True, side=96)
    # From small copies, as `make bunny` does it. PySceneDetect on full frames, with a least length
    # of 15 frames, finds 128 shots.
    assert 120 <= found["clips"] <= 136
    assert FILM_SECONDS - 5 < found["seconds"] <= FILM_SECONDS
    assert found["captions"]["table"] >= 0.95 * found["clips"] and found["problems"] == []
    starts = manifest.read(tmp_path / "m").column("start_s")
    # Cuts seen by eye: the bird appears, the burrow, the credits.
    for second in (15.75, 23.0, 488.7):
        assert abs(starts - second).min() < 0.1
    config = ("--config=experiments/bunny.py:smoke", f"--config.knobs.manifest={tmp_path / 'm'}")
    vdm("train", *config, f"--workdir={tmp_path / 'run'}", "--steps=4")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["train"]
    assert summary["steps"] == 4 and summary["compiled_programs"] == 1
