"""What is timed decodes the same frames, all of them and no others."""

import argparse

import numpy as np
import pytest

from data_pipeline.decode import decode
from data_pipeline.workers import InProcess
from tests.benchmarks import decoding


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return decoding.make_clips(tmp_path_factory.mktemp("small"), 3, 40, 128)


def test_bare_pyav_gives_the_same_frames(small):
    options = argparse.Namespace(threads=2)
    wanted = decoding.wanted_by(decoding.make_loader(small, options, InProcess()), range(1))
    assert len({path for path, _ in wanted}) == 3 and any(view.offset > 0 for _, view in wanted)
    for path, view in wanted[:12]:
        found = decoding.bare(path, view)
        assert np.array_equal(found, decode(path, view, still=False))


def test_every_way_is_measured_on_all_of_it(small):
    options = argparse.Namespace(threads=2, steps=1, rounds=1)
    found = decoding.measure(small, options)
    ways = ["bare", "here", "workers", "loader, here", "loader, workers"]
    assert [row["way"] for row in found["ways"]] == ways
    assert found["ways"][0]["share"] == 1 and all(row["share"] > 0 for row in found["ways"])
    for row in found["ways"]:
        assert row["frames_per_second"] * row["seconds"] == pytest.approx(found["frames"])
