"""The envelope finds every kind of damage by itself; only the file system is involved."""

import hashlib
import json
import os
import shutil

import pytest
from etils import epath

from vdm_jax.parallel.hosts import Hosts
from vdm_jax.train import envelope
from vdm_jax.train.envelope import Damaged

HOSTS = Hosts("test")
PRINT = {"params": [{"path": ["w"], "shape": [2], "dtype": "float32"}]}


def sealed(folder, step, content=b"content"):
    path = epath.Path(folder) / str(step)
    (path / "items" / "d").mkdir(parents=True)
    (path / "items" / "d" / "one").write_bytes(content * 50 + str(step).encode())
    (path / "items" / "two").write_bytes(b"")
    (path / "items" / "three").write_bytes(b"3" * 10)
    envelope.seal(path, step=step, fingerprint=PRINT, meta={"cursor": step}, hosts=HOSTS)
    return path


def reseal_marker(path):
    """What someone who edits the manifest and knows the format would do to COMMIT."""
    text = (path / "MANIFEST.json").read_bytes()
    marker = {"format": 1, "manifest": hashlib.sha256(text).hexdigest()}
    (path / "COMMIT").write_text(json.dumps(marker))


def edit_manifest(path, **fields):
    found = json.loads((path / "MANIFEST.json").read_text())
    (path / "MANIFEST.json").write_text(json.dumps(found | fields))
    reseal_marker(path)


def test_round_trip(tmp_path):
    path = sealed(tmp_path, 7)
    manifest = envelope.verify(path, HOSTS)
    assert envelope.sealed(path)
    assert (manifest.step, manifest.meta, manifest.fingerprint) == (7, {"cursor": 7}, PRINT)
    # The digests are those that any other tool computes.
    content = (path / "items" / "three").read_bytes()
    assert manifest.files["items/three"] == (10, hashlib.sha256(content).hexdigest())
    assert set(manifest.files) == {"items/d/one", "items/two", "items/three"}


def flip(path):
    content = bytearray((path / "items/d/one").read_bytes())
    content[100] ^= 4
    (path / "items/d/one").write_bytes(content)


def swap(path):
    other = sealed(path.parent / "elsewhere", 8)
    shutil.copy(other / "items/d/one", path / "items/d/one")  # same size, valid by itself


def stale(path):
    other = sealed(path.parent / "elsewhere", 6)
    shutil.copy(other / "MANIFEST.json", path / "MANIFEST.json")


def other_envelope(path):
    other = sealed(path.parent / "elsewhere", 6)
    for name in ("MANIFEST.json", "COMMIT"):
        shutil.copy(other / name, path / name)


def link_file(path):
    shutil.copy(path / "items/three", path.parent / "away")
    (path / "items/three").unlink()
    os.symlink(path.parent / "away", path / "items/three")


def link_folder(path):
    shutil.move(path / "items/d", path.parent / "away")
    os.symlink(path.parent / "away", path / "items/d")


def pipe(path):
    (path / "items/three").unlink()
    os.mkfifo(path / "items/three")


def link_marker(path):
    shutil.move(path / "COMMIT", path.parent / "COMMIT")
    os.symlink(path.parent / "COMMIT", path / "COMMIT")


def huge_marker(path):
    (path / "COMMIT").write_bytes(b" " * 10_000 + (path / "COMMIT").read_bytes())


DAMAGE = {
    "flip": (flip, "digest", "items/d/one"),
    "truncate": (lambda p: os.truncate(p / "items/d/one", 20), "size", "items/d/one"),
    "empty": (lambda p: os.truncate(p / "items/three", 0), "size", "items/three"),
    "delete": (lambda p: (p / "items/two").unlink(), "missing-file", "items/two"),
    "extra": (lambda p: (p / "items/more").write_text("x"), "extra-file", "items/more"),
    "swap": (swap, "digest", "items/d/one"),
    "stale": (stale, "manifest", "MANIFEST.json"),
    "other": (other_envelope, "step", "MANIFEST.json"),
    "no-commit": (lambda p: (p / "COMMIT").unlink(), "no-commit", "COMMIT"),
    "no-manifest": (lambda p: (p / "MANIFEST.json").unlink(), "no-manifest", "MANIFEST.json"),
    "half-commit": (lambda p: os.truncate(p / "COMMIT", 9), "manifest", "COMMIT"),
    "link-file": (link_file, "not-regular", "items/three"),
    "link-folder": (link_folder, "not-regular", "items/d"),
    "pipe": (pipe, "not-regular", "items/three"),
    "link-marker": (link_marker, "not-regular", "COMMIT"),
    "huge-marker": (huge_marker, "size", "COMMIT"),
    "future": (lambda p: edit_manifest(p, format=2), "format", "MANIFEST.json"),
    "deep": (
        lambda p: ((p / "MANIFEST.json").write_text("[" * 200_000), reseal_marker(p)),
        "manifest",
        "MANIFEST.json",
    ),
    "no-object": (
        lambda p: ((p / "MANIFEST.json").write_text("3"), reseal_marker(p)),
        "manifest",
        "MANIFEST.json",
    ),
    "bad-files": (lambda p: edit_manifest(p, files={"a": 3}), "manifest", "MANIFEST.json"),
    "outside": (
        lambda p: edit_manifest(p, files={"../../etc/passwd": [1, "x"]}),
        "missing-file",
        "../../etc/passwd",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(tmp_path, name):
    damage, reason, file = DAMAGE[name]
    path = sealed(tmp_path, 7)
    envelope.verify(path, HOSTS)
    damage(path)
    with pytest.raises(Damaged) as caught:
        envelope.verify(path, HOSTS)
    assert (caught.value.step, caught.value.reason, caught.value.file) == ("7", reason, file)
    assert caught.value.code == 4
    assert "checkpoint 7" in str(caught.value) and file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_any_bit_of_the_markers(tmp_path):
    path = sealed(tmp_path, 7)
    for name in ("COMMIT", "MANIFEST.json"):
        whole = (path / name).read_bytes()
        for place in range(0, len(whole), 13):
            changed = bytearray(whole)
            changed[place] ^= 1
            (path / name).write_bytes(changed)
            with pytest.raises(Damaged):
                envelope.verify(path, HOSTS)
        (path / name).write_bytes(whole)
    envelope.verify(path, HOSTS)


def test_a_step_that_is_a_link(tmp_path):
    sealed(tmp_path / "real", 7)
    os.symlink(tmp_path / "real" / "7", tmp_path / "7")
    with pytest.raises(Damaged) as caught:
        envelope.verify(epath.Path(tmp_path) / "7", HOSTS)
    assert caught.value.reason == "not-a-folder"
    name = envelope.quarantine(epath.Path(tmp_path) / "7", caught.value.reason)
    assert (tmp_path / name).is_symlink() and not (tmp_path / "7").exists()
    assert envelope.sealed(epath.Path(tmp_path) / "real" / "7")


def test_quarantine_keeps_everything(tmp_path):
    for content in (b"first", b"second"):
        path = sealed(tmp_path, 7, content)
        envelope.quarantine(path, "digest")
    kept = sorted(p.name for p in tmp_path.iterdir())
    assert kept == ["7.corrupt-digest", "7.corrupt-digest-2"]
    assert (tmp_path / kept[1] / "items/d/one").read_bytes().startswith(b"second")


def test_hosts_share_the_work_and_agree(tmp_path, monkeypatch):
    """Two hosts, played in turn: their shares are disjoint, complete, and each finds its damage."""
    path = sealed(tmp_path, 7)
    flip(path)
    problems = {}
    for index in (0, 1):

        class Two(Hosts):
            index, count = 0, 2

            def agree(self, name, work):
                problems[self.index] = work()
                return [problems[self.index]]

        Two.index = index
        if index == 0:
            with pytest.raises(Damaged):
                envelope.verify(path, Two("two"))
        else:
            assert envelope.verify(path, Two("two")).step == 7
    assert problems[0][:2] == ["items/d/one", "digest"] and problems[1] is None


def test_object_store_walks_and_marks(tmp_path, monkeypatch):
    """Without rename and fsync: the same files, and quarantine leaves a marker."""
    monkeypatch.setattr(envelope, "is_local", lambda path: False)
    path = sealed(tmp_path, 7)
    assert set(envelope.verify(path, HOSTS).files) == {"items/d/one", "items/two", "items/three"}
    flip(path)
    with pytest.raises(Damaged):
        envelope.verify(path, HOSTS)
    envelope.quarantine(path, "digest")
    assert (tmp_path / "7").is_dir() and (tmp_path / "7.corrupt-digest").is_file()


def test_seal_makes_everything_durable(tmp_path, monkeypatch):
    """Every file and folder goes through fsync, COMMIT after all of them."""
    synced = []
    real = os.fsync

    def spy(handle):
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), tmp_path))
        real(handle)

    monkeypatch.setattr(os, "fsync", spy)
    sealed(tmp_path, 7)
    needed = {"7/items/d/one", "7/items/two", "7/items/three", "7/items", "7/items/d", "7"}
    assert needed | {"7/MANIFEST.json", "7/COMMIT"} <= set(synced)
    assert synced.index("7/COMMIT") > max(synced.index(name) for name in needed)
    assert synced.index("7/COMMIT") > synced.index("7/MANIFEST.json")
