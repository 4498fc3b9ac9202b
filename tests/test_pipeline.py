"""Sampling from a run: law 11, sizes, metadata, nothing half-written."""

import dataclasses
import json

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.workbench import vdm
from vdm_jax import gallery, pipeline
from vdm_jax.config import UserError
from vdm_jax.nets.gamma import Gamma
from vdm_jax.parallel.mesh import make_mesh
from vdm_jax.parallel.rules import table
from vdm_jax.requests import Request, grid


@pytest.fixture(scope="module")
def made(trained):
    return pipeline.load(trained)


def request(seed=0, frames=4, height=16, width=16, prompt="a red circle", **more):
    return Request(prompt=prompt, frames=frames, height=height, width=width, seed=seed, **more)


def videos(made, requests):
    return dict(made(requests))


def test_the_same_seed_gives_the_same_bytes_anywhere_in_the_queue(made):
    """Law 11: within one compiled shape, whatever else is asked for and in which order."""
    alone = videos(made, [request(seed=5)])[0]
    crowd = [request(seed=1, height=8), request(seed=2, frames=1), request(seed=5), request(seed=3)]
    found = videos(made, crowd)
    np.testing.assert_array_equal(found[2], alone)
    backwards = videos(made, crowd[::-1])
    for index in range(4):
        np.testing.assert_array_equal(found[index], backwards[3 - index])


def test_seed_and_guidance_matter(made):
    base = videos(made, [request()])[0]
    assert np.any(videos(made, [request(seed=1)])[0] != base)
    weak, strong = (dict(made.override(guidance=g)([request()]))[0] for g in (1.0, 30.0))
    assert weak.shape == strong.shape == base.shape and np.any(weak != strong)


def test_a_learnt_schedule_is_what_is_sampled_with(made):
    gamma = Gamma(hidden=2)
    curve = {"first": 1.0, "second": [1.0, 1.0], "places": [0.0, 0.0], "third": [1.0, 1.0]}
    denoiser = made.stage.denoiser.clone(gamma=gamma)
    stage = dataclasses.replace(made.stage, denoiser=denoiser)

    def video(high):
        ends = {"gamma_0": -4.0, "gamma_1": high}
        learnt = {name: jnp.asarray(value) for name, value in (curve | ends).items()}
        params = {"params": made.params["params"] | {"gamma": learnt}}
        bound = dataclasses.replace(made, stage=stage, params=params, traced=None)
        return videos(bound, [request()])[0]

    assert np.any(video(6.0) != video(1.0))


def test_prompt_and_negative_matter(made):
    """Guided hard, since six steps of training have taught the network little about words."""
    words = ({}, {"prompt": "a blue square"}, {"negative": "a red circle"}, {"negative": "dark"})
    # All in one call: the same seed, so that words alone tell the videos apart.
    found = dict(made.override(guidance=30.0)([request(**more) for more in words]))
    for one in range(len(words)):
        for other in range(one):
            assert np.any(found[one] != found[other]), (words[one], words[other])
    # Guided away from the prompt itself, guidance has nothing to add.
    plain = dict(made.override(guidance=1.0)([request()]))[0]
    np.testing.assert_allclose(found[2].astype(int), plain, atol=1)


@pytest.mark.parametrize("size", [(1, 8, 12), (3, 16, 24), (5, 32, 8), (7, 24, 24)])
def test_any_size_the_patches_allow(made, size):
    frames, height, width = size
    found = videos(made, [request(frames=frames, height=height, width=width)])
    assert found[0].shape == (*size, 3) and found[0].dtype == np.uint8


def test_a_size_they_do_not_allow_is_said(made):
    with pytest.raises(UserError, match=r"height is 18.*16"):
        videos(made, [request(height=18)])


def test_a_video_longer_than_the_trained_row(made):
    frames, height, width = 16, 32, 48
    assert np.prod(grid(made.stage, request(frames=frames, height=height, width=width))) > 256
    found = videos(made, [request(frames=frames, height=height, width=width)])
    assert found[0].shape == (frames, height, width, 3)


def test_files_carry_what_made_them(trained, tmp_path):
    out = tmp_path / "out"
    words = ("--prompt", "A red/../circle!", "--frames=3,1", "--height=16", "--width=16,8")
    done = vdm("sample", trained, *words, "--num=2", "--seed=7", f"--out={out}", "--json")
    found = json.loads(done.stdout)
    index = json.loads((out / "index.json").read_text())
    assert len(found["files"]) == len(index) == 4 and found["failed"] == []
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [*(record["file"] for record in index), "index.json", "sheet.webp"]
    )
    with av.open(found["files"][1]) as container:
        about = json.loads(container.metadata["comment"])
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert about["prompt"] == "A red/../circle!" and about["seed"] == 8
    assert about["model"] == found["model"] and len(about["config"]) == 64
    assert np.stack(frames).shape == (3, 16, 16, 3)


def test_a_video_that_is_not_finite_is_named_and_the_others_kept(made, tmp_path, monkeypatch):
    whole = pipeline._generate

    def broken(stage, params, arrays):
        return whole(stage, params, arrays).at[0, 0, 0].set(np.nan)

    monkeypatch.setattr(pipeline, "_generate", broken)
    made = dataclasses.replace(made, traced=None)  # what was traced before is whole
    found = gallery.write_all(made, [request(), request(1)], tmp_path)
    assert found["failed"] == [0] and len(found["files"]) == 1


def test_a_mesh_changes_no_video(made, monkeypatch):
    """Rows, tokens and heads over eight devices, before values are rounded to bytes."""
    crowd = [request(seed=5), request(seed=1, height=8), request(seed=2, frames=1), request(seed=3)]
    whole, found, programs = pipeline._generate, [], []

    def watched(stage, params, arrays):
        programs.append(whole.lower(stage, params, arrays).compile().as_text())
        batch = whole(stage, params, arrays)
        found.append(np.asarray(batch))
        return batch

    monkeypatch.setattr(pipeline, "_generate", watched)
    made = dataclasses.replace(made, traced=None)  # what was traced before is not watched
    list(made(crowd))
    mesh = make_mesh({"data": 2, "seq": 2, "tensor": 2})
    with jax.set_mesh(mesh), nn.logical_axis_rules(table("all")):
        list(made(crowd))
    alone, divided = found
    np.testing.assert_allclose(divided, alone, atol=1e-5)
    assert [" all-to-all(" in text for text in programs] == [False, True]


def test_an_unwritable_folder_is_found_before_sampling(made, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write") as caught:
        gallery.write_all(made, [request()], tmp_path / "file" / "out")
    assert caught.value.code == 6
