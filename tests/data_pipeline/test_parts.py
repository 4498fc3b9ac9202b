"""An index that is stopped goes on, and ends as if it had not been."""

import pytest

from data_pipeline import index as indexing
from data_pipeline import manifest, parts
from data_pipeline.index import index
from tests.data_pipeline.corpus import mp4

FILES = 7


@pytest.fixture
def films(tmp_path, monkeypatch):
    """A folder of seven films and a broken one; parts hold two entries each."""
    monkeypatch.setattr(indexing, "ENTRIES", 2)
    (tmp_path / "in").mkdir()
    for number in range(FILES):
        mp4(tmp_path / "in" / f"{number}.mp4", seed=number)
    (tmp_path / "in" / "0-broken.mp4").write_text("no film")
    return tmp_path / "in"


def watched(monkeypatch, stop_at=None):
    """Names of the files probed; from `stop_at` on the machine is switched off."""
    seen, real = [], indexing.probe

    def probe(place, *, still, **how):
        if place.uri == stop_at:
            raise KeyboardInterrupt
        seen.append(place.uri)
        return real(place, still=still, **how)

    monkeypatch.setattr(indexing, "probe", probe)
    return seen


def content(folder):
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != manifest.TABLE
    } | {manifest.TABLE: manifest.read(folder).table}


def test_an_index_goes_on_where_it_was_stopped(films, tmp_path, monkeypatch):
    straight = index(str(films), str(tmp_path / "one"), threads=1)
    with monkeypatch.context() as first, pytest.raises(KeyboardInterrupt):
        watched(first, "4.mp4")
        index(str(films), str(tmp_path / "two"), threads=1)
    assert not (tmp_path / "two" / manifest.TABLE).exists()
    seen = watched(monkeypatch)
    resumed = index(str(films), str(tmp_path / "two"), threads=1)
    assert resumed | {"manifest": ""} == straight | {"manifest": ""}
    # The four files in front of 3.mp4 were whole parts; 3.mp4 and 4.mp4 are one.
    assert set(seen) == {"3.mp4", "4.mp4", "5.mp4", "6.mp4"}
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert not (tmp_path / "two" / parts.FOLDER).exists()


def test_a_part_of_other_files_or_settings_is_made_again(films, tmp_path, monkeypatch):
    def stopped(**how):
        with monkeypatch.context() as first, pytest.raises(KeyboardInterrupt):
            watched(first, "4.mp4")
            index(str(films), str(tmp_path / "m"), threads=1, **how)

    stopped()
    mp4(films / "1-new.mp4", seed=9)
    with monkeypatch.context() as then:
        seen = watched(then, "4.mp4")
        with pytest.raises(KeyboardInterrupt):
            index(str(films), str(tmp_path / "m"), threads=1)
    # Only the first part, in front of the new file, is as it was.
    # Its neighbour may have been begun when the machine was switched off.
    assert set(seen) - {"5.mp4"} == {"1-new.mp4", "1.mp4", "2.mp4", "3.mp4"}
    seen = watched(monkeypatch)
    index(str(films), str(tmp_path / "m"), threads=1, side=8)
    assert len(seen) == FILES + 1  # copies are other files


@pytest.mark.parametrize("damage", [b"", b"no table"])
def test_a_damaged_part_is_made_again(films, tmp_path, monkeypatch, damage):
    with monkeypatch.context() as first, pytest.raises(KeyboardInterrupt):
        watched(first, "4.mp4")
        index(str(films), str(tmp_path / "m"), threads=1)
    for part in (tmp_path / "m" / parts.FOLDER).iterdir():
        part.write_bytes(damage)
    assert index(str(films), str(tmp_path / "m"))["clips"] == FILES
