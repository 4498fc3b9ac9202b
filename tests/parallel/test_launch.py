"""Which processes belong together is read from flags and variables; one alone asks nobody."""

import os
import socket
import time

import pytest

from vdm_jax.config import UserError
from vdm_jax.parallel import launch
from vdm_jax.parallel.launch import address, asked, found, joined, settle
from vdm_jax.parallel.rollcall import Place

SRUN = {
    "SLURM_JOB_ID": "4097", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4", "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "node[007,9-12],big", "SLURM_STEP_NUM_NODES": "2",
}  # fmt: skip
GKE = {"TPU_WORKER_HOSTNAMES": "a-0,a-1", "TPU_WORKER_ID": "1"}
THREE = dict(zip(launch.VARIABLES, ("10.0.0.1:99", "4", "2"), strict=True))


@pytest.mark.parametrize(
    "environment, tpu, kind",
    [
        ({}, False, None),
        (SRUN, False, "SLURM"),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, False, None),
        # A batch script before its `srun`: it is one process, though the job has four tasks.
        ({k: v for k, v in SRUN.items() if k != "SLURM_STEP_NUM_TASKS"}, False, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, False, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False, None),
        (GKE, True, "GKE"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, True, None),
        ({"TPU_WORKER_HOSTNAMES": "a-0", "MEGASCALE_NUM_SLICES": "2"}, True, "GKE"),
        ({}, True, "Compute Engine"),
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, None),
        ({"JAX_PLATFORMS": "cpu"}, True, None),
        (GKE | {"JAX_PLATFORMS": "cpu"}, True, None),
        (GKE | {"JAX_PLATFORMS": "tpu,cpu"}, True, "GKE"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False, None),
    ],
)
def test_what_kind_of_cluster(environment, tpu, kind):
    assert found(environment, tpu=tpu) == kind


def test_what_is_asked_for():
    one = asked("h:8476", "1/2", {})
    assert one.place == Place(host="h", port=8476, index=1, count=2) and one.devices is None
    other = asked(None, None, THREE | {"JAX_LOCAL_DEVICE_IDS": "0,2"})
    assert other.place == Place(host="10.0.0.1", port=99, index=2, count=4)
    assert other.devices == (0, 2)
    assert asked("h:1", "0/2", THREE).place.count == 2  # flags before variables
    assert asked(None, None, {}) is None
    # The address of a cluster that says the rest by itself.
    assert asked(None, None, SRUN | {"JAX_COORDINATOR_ADDRESS": "h:1"}) is None


@pytest.mark.parametrize(
    "flags, environment, words",
    [
        (("h:1", None), {}, "--coordinator is given without --process=I/N"),
        ((None, "0/2"), {}, "--process is given without --coordinator=HOST:PORT"),
        (("h:1", "2/2"), {}, "process 2/2"),
        (("h:1", "one"), {}, "process one is no process"),
        (("h", "0/2"), {}, "'h' is no address"),
        (("h:99999", "0/2"), {}, "'h:99999' is no address"),
        (
            (None, None),
            {"JAX_NUM_PROCESSES": "2"},
            "not JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID",
        ),
        ((None, None), THREE | {"JAX_PROCESS_ID": "4"}, "process 4/4"),
    ],
)
def test_half_of_it_is_a_mistake(flags, environment, words):
    with pytest.raises(UserError, match=words) as caught:
        asked(*flags, environment)
    assert caught.value.code == 2 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, known",
    [("a.b:1", ("a.b", 1)), ("[::1]:8476", ("::1", 8476)), ("10.0.0.1:9", ("10.0.0.1", 9))],
)
def test_addresses(text, known):
    assert address(text) == known


@pytest.fixture
def environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(
            ("SLURM", "OMPI", "TPU_", "MEGASCALE", "JAX_NUM", "JAX_COORD", "JAX_PROC")
        ):
            monkeypatch.delenv(name)
    return monkeypatch


def test_slurm_as_jax_reads_it(environment):
    for name, value in SRUN.items():
        environment.setenv(name, value)
    one = settle()
    assert (one.place.index, one.place.count) == (3, 4) and one.devices == (1,)
    assert one.place.host == "node007" and 61440 <= one.place.port < 65536
    environment.setenv("JAX_COORDINATOR_ADDRESS", "first:1234")
    assert settle().place.address == "first:1234"


def test_a_process_alone_asks_nobody(environment):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    environment.setattr(launch, "_has_tpu", lambda: False)
    environment.setattr(socket, "create_connection", refuse)
    environment.setattr(socket, "create_server", refuse)
    environment.setattr(launch.jax.distributed, "initialize", refuse)
    start = time.monotonic()
    for flags in ((None, None), ("localhost:1", "0/1")):
        with joined(settle(*flags)):
            pass
    assert time.monotonic() - start < 0.5
