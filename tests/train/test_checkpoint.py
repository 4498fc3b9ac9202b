"""Checkpoints come back byte for byte, on any mesh; a damaged one is never used."""

import json
import logging
import os
import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.train.saved import abstract, names, state
from vdm_jax.config import UserError
from vdm_jax.parallel.hosts import Hosts
from vdm_jax.train import envelope
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.train.digest import digest
from vdm_jax.train.envelope import Damaged

FLIPS = 60


def test_what_was_saved_comes_back(run):
    with Checkpoints(run) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3] and checkpoints.newest() == 3
        assert checkpoints.meta(2) == {"cursor": 20}
        truth = state(2)
        restored = checkpoints.restore(2, abstract(truth))
        assert jax.tree.structure(restored) == jax.tree.structure(truth)
        for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(truth), strict=True):
            assert ours.dtype == theirs.dtype and ours.sharding == theirs.sharding
            assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
        assert digest(restored) == digest(truth) == digest(checkpoints.restore_numpy(2))
        assert digest(restored) != digest(state(3))


def test_one_item_alone(run):
    with Checkpoints(run) as checkpoints:
        truth = {"ema": state(3)["ema"]}
        assert digest(checkpoints.restore(3, abstract(truth))) == digest(truth)
        shadows = checkpoints.restore_numpy(3, ("ema",))
        assert list(shadows) == ["ema"] and digest(shadows) == digest(truth)
        leaf = shadows["ema"]["0.999"]["params"]["layer"]["bias"]
        assert isinstance(leaf, np.ndarray) and leaf.dtype == jnp.bfloat16


def test_plain_orbax_can_read_it(run):
    """The envelope is around, not inside: another program needs none of ours."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(run / "3" / "items" / "params")
    assert digest({"params": found}) == digest({"params": state(3)["params"]})


# Damage (battery A7, A8)


def test_no_flipped_bit_is_missed(run):
    """Single-bit flips over all files of a checkpoint: each is found, and found before use."""
    files = sorted(p for p in (run / "3").rglob("*") if p.is_file() and p.stat().st_size)
    kinds = {p.name if p.parent.name != "d" else "data" for p in files}
    assert {"data", "manifest.ocdbt", "_METADATA", "COMMIT", "MANIFEST.json"} <= kinds
    draw = random.Random(0)
    caught = 0
    with Checkpoints(run) as checkpoints:
        for trial in range(FLIPS):
            file = files[trial % len(files)]
            whole = file.read_bytes()
            place, bit = draw.randrange(len(whole)), 1 << draw.randrange(8)
            file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            checkpoints._verified.clear()
            try:
                checkpoints.restore_numpy(3, ("params",))
            except Damaged as damage:
                # Where COMMIT and the manifest disagree, no one can say which is at fault.
                named = "MANIFEST.json" if file.name == "COMMIT" else ""
                assert damage.step == "3"
                assert damage.file in (str(file.relative_to(run / "3")), named)
                caught += 1
            file.write_bytes(whole)
        assert caught == FLIPS
        assert checkpoints.newest() == 3


def a_file(run, step, kind):
    found = sorted((run / str(step) / "items" / "params").rglob(kind))
    return max((p for p in found if p.is_file()), key=lambda p: p.stat().st_size)


def bit(run):
    file = a_file(run, 3, "d/*")
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)


def shard_of_another_step(run):
    shutil.copy(a_file(run, 2, "d/*"), a_file(run, 3, "d/*"))


def copy_without_commit(run):
    shutil.copytree(run / "2", run / "4")
    (run / "4" / "COMMIT").unlink()


def link_folder(run):
    os.symlink("/etc", run / "9")


def link_file(run):
    file = a_file(run, 3, "d/*")
    shutil.move(file, run.parent / "away")
    os.symlink(run.parent / "away", file)


DAMAGE = {
    "bit flip": (bit, 3, "digest"),
    "truncated": (lambda run: os.truncate(a_file(run, 3, "d/*"), 10), 3, "size"),
    "zero length": (lambda run: os.truncate(a_file(run, 3, "_METADATA"), 0), 3, "size"),
    "deleted": (lambda run: a_file(run, 3, "d/*").unlink(), 3, "missing-file"),
    "another step's shard": (shard_of_another_step, 3, None),
    "stale manifest": (
        lambda run: shutil.copy(run / "2" / "MANIFEST.json", run / "3" / "MANIFEST.json"),
        3,
        "manifest",
    ),
    "empty folder": (lambda run: (run / "5").mkdir(), 5, "no-commit"),
    "copy without COMMIT": (copy_without_commit, 4, "no-commit"),
    "copy under another number": (lambda run: shutil.copytree(run / "2", run / "8"), 8, "step"),
    "link to a folder": (link_folder, 9, "not-a-folder"),
    "link to a file": (link_file, 3, "not-regular"),
    "a file for a folder": (lambda run: (run / "6").write_text("x"), 6, "not-a-folder"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_falls_back_to_the_newest_good_step(run, caplog, name):
    damage, step, reason = DAMAGE[name]
    damage(run)
    with Checkpoints(run) as checkpoints, caplog.at_level(logging.WARNING):
        newest = checkpoints.newest()
        assert newest == (2 if step == 3 else 3)
        assert digest(checkpoints.restore_numpy(newest)) == digest(state(newest))
    away = [name for name in names(run) if name.startswith(f"{step}.corrupt-")]
    assert len(away) == 1 and str(step) not in names(run)
    assert reason is None or away == [f"{step}.corrupt-{reason}"]
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("vdm_jax")]
    assert len(lines) == 1 and "\n" not in lines[0] and f"checkpoint {step} " in lines[0]
    assert Path("/etc/passwd").exists()


def test_all_corrupt_is_an_error_and_stays_one(run):
    for step in (1, 2, 3):
        (run / str(step) / "COMMIT").write_text("{}")
    for _ in range(2):  # the second time they are in quarantine already
        with Checkpoints(run) as checkpoints, pytest.raises(UserError) as caught:
            checkpoints.newest()
        assert caught.value.code == 4
        assert all(f"{step}" in str(caught.value) for step in (1, 2, 3))
        assert "Put back an intact copy" in str(caught.value)


def test_nothing_there(tmp_path):
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.newest() is None and checkpoints.steps() == []
    assert not (tmp_path / "run").exists()


# What does not fit (wrong dtype of A7; strictness)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda k: jax.ShapeDtypeStruct(k.shape, jnp.bfloat16), "dtype float32"),
        (lambda k: jax.ShapeDtypeStruct((8, 17), k.dtype), "shape [8, 16]"),
        (lambda k: {"inner": k}, "which this model does not have"),
    ],
)
def test_another_tree_is_refused_by_name(run, change, words):
    wanted = abstract({"params": state(3)["params"]})
    layer = wanted["params"]["params"]["layer"]
    layer["kernel"] = change(layer["kernel"])
    with Checkpoints(run) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.restore(3, wanted)
    assert "params/params/layer/kernel" in str(caught.value) and words in str(caught.value)


def test_left_over_leaves_and_items_are_refused(run):
    wanted = abstract({"params": state(3)["params"]})
    del wanted["params"]["params"]["layer"]["bias"]
    with Checkpoints(run) as checkpoints:
        with pytest.raises(UserError, match="params/params/layer/bias, which this model does not"):
            checkpoints.restore(3, wanted)
        with pytest.raises(UserError, match="has no 'teacher'"):
            checkpoints.restore_numpy(3, ("teacher",))


@pytest.mark.parametrize(
    "field, value", [("shape", [2**34, 16]), ("chunks", [2**34, 16]), ("shape", [-8, 16])]
)
def test_a_whole_envelope_around_a_hostile_array(run, field, value):
    """Its digests agree, and reading it would end this process (battery G4)."""
    import tensorstore

    store = tensorstore.KvStore.open(
        {"driver": "ocdbt", "base": f"file://{run}/3/items/params/"}
    ).result()
    key = "params.layer.kernel/.zarray"
    header = json.loads(store.read(key).result().value) | {field: value}
    store.write(key, json.dumps(header).encode()).result()
    manifest = envelope.read_manifest(epath.Path(run) / "3")
    envelope.seal(
        epath.Path(run) / "3",
        step=3,
        fingerprint=manifest.fingerprint,
        meta=manifest.meta,
        hosts=Hosts("test"),
    )
    with Checkpoints(run) as checkpoints:
        assert checkpoints.newest() == 3
        with pytest.raises(Damaged, match="params/params/layer/kernel: stored as"):
            checkpoints.restore_numpy(3)
        with pytest.raises(Damaged, match="params/params/layer/kernel: stored as"):
            checkpoints.restore(3, abstract(state(3)))


# Writing


def test_pruning_keeps_the_newest(run):
    with Checkpoints(run, keep=2) as checkpoints:
        for step in (4, 5):
            checkpoints.save(step, state(step), {}, wait=True)
            assert checkpoints.steps() == [step - 1, step]
    assert names(run) == ["4", "5"]


def test_a_step_is_never_overwritten(run):
    before = envelope.read_manifest(Checkpoints(run).shelf.folder(2))
    with Checkpoints(run) as checkpoints, pytest.raises(UserError, match="step 2 already"):
        checkpoints.save(2, state(7), {})
    assert envelope.read_manifest(Checkpoints(run).shelf.folder(2)) == before


def test_saving_an_earlier_step_prunes_no_later_one(run):
    shutil.rmtree(run / "1")
    with Checkpoints(run, keep=1) as checkpoints:
        checkpoints.save(1, state(1), {}, wait=True)
        assert checkpoints.steps() == [1, 2, 3]


def test_the_state_saved_is_that_of_the_call(tmp_path):
    """Training goes on in the same buffers while the save is written."""
    big = {"params": {"w": jnp.arange(2**20, dtype=jnp.float32)}}
    expected = digest(big)
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2 + 1, tree), donate_argnums=0)
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(1, big, {})
        for _ in range(20):
            big = advance(big)
        checkpoints.wait()
        assert digest(checkpoints.restore_numpy(1)) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_refused(run, value):
    items = state(4)
    items["opt"][1][0].mu["params"]["layer"]["bias"] = jnp.full(16, value, jnp.bfloat16)
    with Checkpoints(run) as checkpoints:
        with pytest.raises(UserError, match="opt/1/0/mu/params/layer/bias") as caught:
            checkpoints.save(4, items, {}, check_finite=("params", "opt", "counters"))
        assert caught.value.code == 5 and names(run) == ["1", "2", "3"]
        checkpoints.save(4, items, {}, wait=True, check_finite=("params",))
        assert checkpoints.steps()[-1] == 4


# Other meshes (B1, B5)


@pytest.mark.parametrize("devices", [4, 2, 1])
def test_restored_on_fewer_devices_byte_for_byte(tmp_path_factory, devices):
    def placed(count):
        mesh = Mesh(np.array(jax.devices()[:count]), ("fsdp",))
        kernel = NamedSharding(mesh, PartitionSpec("fsdp"))
        whole = NamedSharding(mesh, PartitionSpec())
        return lambda x: jax.device_put(x, kernel if x.ndim == 2 else whole)

    folder = tmp_path_factory.getbasetemp() / "eight"
    items = jax.tree.map(placed(8), state(1))
    assert len(items["params"]["params"]["layer"]["kernel"].sharding.device_set) == 8
    with Checkpoints(folder) as checkpoints:
        if checkpoints.newest() is None:
            checkpoints.save(1, items, {}, wait=True)
        wanted = abstract(jax.tree.map(placed(devices), state(1)))
        restored = checkpoints.restore(1, wanted)
    for ours, theirs, ask in zip(*map(jax.tree.leaves, (restored, items, wanted)), strict=True):
        assert ours.sharding == ask.sharding
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    assert digest(restored) == digest(items)
