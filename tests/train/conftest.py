"""Checkpoints of steps 1, 2 and 3: made once, copied for each test that may spoil them."""

import shutil

import pytest

from tests.train.saved import state
from vdm_jax.train.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pristine")
    with Checkpoints(folder / "run") as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state(step), {"cursor": 10 * step})
    return folder / "run"


@pytest.fixture
def run(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path / "run")
    return tmp_path / "run"
