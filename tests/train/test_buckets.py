"""Buckets in place of packed rows: the same loop, a program for each length, exact resume."""

import json

import numpy as np
import pytest

from tests.workbench import digest, train, vdm
from vdm_jax.train.log import read_lines

BUCKETS = ("--config.data.layout.spec=data_pipeline.layouts:Buckets", "--config.save_every=3")


@pytest.mark.slow
def test_buckets_train_and_go_on(tmp_path, manifest):
    run, fork = tmp_path / "run", tmp_path / "fork"
    vdm(*train(run, manifest, *BUCKETS, "--steps=6"))
    lines = [line for line in read_lines(run / "metrics.jsonl") if "loss" in line]
    assert len(lines) == 6 and np.isfinite([line["loss"] for line in lines]).all()
    programs = json.loads((run / "summary.json").read_text())["train"]["compiled_programs"]
    assert 1 < programs <= 6
    vdm(*train(fork, manifest, *BUCKETS, f"--fork={run}@3", "--steps=6"))
    assert digest(fork) == digest(run)
