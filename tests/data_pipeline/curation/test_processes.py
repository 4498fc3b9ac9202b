"""Processes that die, fail or lose the one who started them; a cluster that is not there."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pyarrow as pa
import pytest

from data_pipeline import manifest, parts
from data_pipeline.curation.chain import Chain, Look, batches
from data_pipeline.curation.curate import curate
from data_pipeline.curation.light import Light
from data_pipeline.curation.model import Model
from data_pipeline.curation.processes import Processes
from data_pipeline.curation.ray_data import RayData
from data_pipeline.encode import write_mp4
from data_pipeline.errors import DataError
from tests.data_pipeline.curation.engines import Inline
from tests.data_pipeline.curation.scenes import RATE, indexed, pan
from tests.workbench import ROOT, environment

MODELS = "tests.data_pipeline.curation.models"
DEADLY = ("2.mp4", "5.mp4")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Eight films, two of them deadly and one patient, as their captions say."""
    folder = tmp_path_factory.mktemp("films")
    (folder / "in").mkdir()
    for number in range(8):
        name = f"{number}.mp4"
        write_mp4(folder / "in" / name, pan(0.2, size=(32, 48), seed=number, frames=13), RATE)
        said = {"2.mp4": "deadly", "5.mp4": "deadly", "6.mp4": "patient"}.get(name, "harmless")
        (folder / "in" / f"{number}.txt").write_text(said)
    indexed(folder)
    return folder / "manifest"


def chain(name):
    return Chain(stages=(Light(),), models=(Model(score="clip", function=f"{MODELS}:{name}"),))


def test_a_clip_that_kills_its_process_costs_that_clip_alone(source, tmp_path):
    engine = Processes(count=2, batch=4)
    found = curate(str(source), str(tmp_path / "m"), chain("dies"), engine)
    assert found["skipped"] == {"crashed": 2} and found["clips"] == 6
    kept = manifest.read(tmp_path / "m").table.to_pylist()
    assert {row["clip_id"] for row in kept}.isdisjoint(DEADLY)
    assert {row["scores"]["clip"] for row in kept} == {0.5}
    lines = (tmp_path / "m" / manifest.SKIPPED).read_text().splitlines()
    assert sorted(json.loads(line)["file"] for line in lines) == list(DEADLY)


def test_a_model_that_fails_in_a_process_ends_the_work(source, tmp_path):
    with pytest.raises(DataError, match="no room on the device") as error:
        curate(str(source), str(tmp_path / "m"), chain("fails"), Processes(count=1))
    assert error.value.code == 3


PROGRAM = f"""
from data_pipeline.curation.chain import Chain
from data_pipeline.curation.curate import curate
from data_pipeline.curation.light import Light
from data_pipeline.curation.model import Model
from data_pipeline.curation.processes import Processes
import sys
if __name__ == "__main__":
    waiting = Model(score="clip", function="{MODELS}:waits")
    chain = Chain(stages=(Light(),), models=(waiting,))
    curate(sys.argv[1], sys.argv[2], chain, Processes(count=1, part=4, batch=4))
"""


def children(pid):
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    return [child for child, parent in pairs if parent == pid]


def lives(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_at_any_moment_it_leaves_nobody_behind_and_goes_on(source, tmp_path, monkeypatch):
    """Killed by SIGKILL while the second part of two is under way."""
    (tmp_path / "program.py").write_text(PROGRAM)
    wait, out = tmp_path / "wait", tmp_path / "m"
    wait.write_text("")
    monkeypatch.setenv("WAIT", str(wait))
    command = [sys.executable, str(tmp_path / "program.py"), str(source), str(out)]
    with subprocess.Popen(command, env=environment(), cwd=ROOT) as process:
        try:
            until((out / parts.FOLDER / "000000.parquet").exists, 60)
            others = children(process.pid)
        finally:
            process.kill()
    assert others and not (out / manifest.TABLE).exists()
    try:
        until(lambda: not any(map(lives, others)), 5)
    finally:
        for one in filter(lives, others):
            os.kill(one, signal.SIGKILL)
    wait.unlink()
    engine = Inline(part=4, batch=4)
    curate(str(source), str(out), chain("waits"), engine)
    assert engine.seen == [f"{number}.mp4" for number in range(4, 8)]
    curate(str(source), str(tmp_path / "straight"), chain("waits"), Inline(part=4))
    assert manifest.read(out).table == manifest.read(tmp_path / "straight").table


class TaskError(Exception):
    """What Ray raises where a task did; of its `cause` it keeps what pickle does."""

    def __init__(self, cause):
        super().__init__("a long traceback")
        self.cause = pickle.loads(pickle.dumps(cause))


class FakeDataset:
    """The functions of Ray Data that are called, on this thread; blocks come as they please."""

    context = types.SimpleNamespace(raise_original_map_exception=False)

    def __init__(self, table):
        self.tables = [table]

    def map_batches(self, task, *, batch_size, batch_format, num_cpus):
        assert batch_format == "pyarrow" and num_cpus == 1.0
        self.task, self.size = task, batch_size
        return self

    def iter_batches(self, *, batch_size, batch_format):
        assert batch_size is None and batch_format == "pyarrow"
        asked = [one for table in self.tables for one in batches(table, self.size)]
        try:
            yield from [self.task(one) for one in asked][::-1]
        except Exception as error:
            if not self.context.raise_original_map_exception:
                raise TaskError(RuntimeError("user code failed")) from None
            error.args = (f"{error}\nadvice of Ray's own", *error.args[1:])
            raise TaskError(error) from None


@pytest.fixture
def ray(monkeypatch):
    """Ray, as far as it is called."""
    fake, data, raised = (types.ModuleType(f"ray{part}") for part in ("", ".data", ".exceptions"))
    fake.data, fake.exceptions = data, raised
    data.from_arrow, raised.RayTaskError = FakeDataset, TaskError
    data.DataContext = types.SimpleNamespace(get_current=lambda: FakeDataset.context)
    for one in (fake, data, raised):
        monkeypatch.setitem(sys.modules, one.__name__, one)


def test_a_model_that_fails_on_a_cluster_ends_the_work(ray, source, tmp_path):
    with pytest.raises(DataError, match=r"no room on the device\)\.$") as error:
        curate(str(source), str(tmp_path / "m"), chain("fails"), RayData())
    assert error.value.code == 3 and not FakeDataset.context.raise_original_map_exception


def test_a_cluster_finds_what_one_process_finds(ray, source, tmp_path):
    one = curate(str(source), str(tmp_path / "one"), chain("redness"), RayData(batch=3))
    other = curate(str(source), str(tmp_path / "other"), chain("redness"), Inline())
    assert one | {"manifest": ""} == other | {"manifest": ""}


def test_without_ray_it_is_said_what_to_install(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"pip install '\.\[ray\]'") as error:
        curate(str(source), str(tmp_path / "m"), chain("redness"), RayData())
    assert error.value.code == 2
    assert "cpus" in RayData(cpus=0).problems()[0]


def test_what_is_sent_to_processes_can_be_sent(source):
    """Tasks are pickled: a chain of everything survives it."""
    look = Look(root="r", stages=chain("redness").stages, models=chain("redness").models)
    assert pickle.loads(pickle.dumps(look)) == look
    assert [len(one) for one in batches(pa.table({"a": range(7)}), 3)] == [3, 3, 1]
