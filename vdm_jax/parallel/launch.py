"""How a process learns that it is one of several, and joins them through `jax.distributed`.

    asked for      --coordinator=HOST:PORT --process=I/N, or JAX_COORDINATOR_ADDRESS,
                   JAX_NUM_PROCESSES and JAX_PROCESS_ID
    found          SLURM (`srun`), Open MPI (`mpirun`), TPU pods of GKE and of Compute Engine
    else           alone: nothing is connected to and nothing waited for

Only what the environment says is looked at to decide; JAX then works out address and number, which
on Compute Engine asks the machine's own metadata server.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence

import jax

from vdm_jax.config import UserError
from vdm_jax.parallel import rollcall
from vdm_jax.parallel.hosts import HostError
from vdm_jax.parallel.rollcall import Place

WAIT_S = 300.0
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """Where this process stands, and which of the machine's devices are its own (None: all)."""

    place: Place
    devices: tuple[int, ...] | None = None


def asked(
    coordinator: str | None, process: str | None, environment: Mapping[str, str]
) -> Launch | None:
    """What the command line or the variables of JAX say; None where they say nothing.

    Raises:
      UserError: half of it, or something that is no address or no number.
    """
    if coordinator is None and process is None:
        given = [name for name in VARIABLES if environment.get(name)]
        if not given or (tuple(given) == VARIABLES[:1] and found(environment)):
            return None  # an address alone may go with a cluster that says the rest
        lacking = [name for name in VARIABLES if name not in given]
        if lacking:
            raise UserError(
                f"{given[0]} is set, but not {' and '.join(lacking)}; set all three, or none."
            )
        coordinator, count, index = (environment[name] for name in VARIABLES)
        process = f"{index}/{count}"
    elif coordinator is None or process is None:
        one, other = ("--process", "--coordinator=HOST:PORT")
        if process is None:
            one, other = ("--coordinator", "--process=I/N")
        raise UserError(f"{one} is given without {other}; give both, or neither.")
    numbers = re.fullmatch(r"(\d+)/(\d+)", process)
    if not numbers or not int(numbers[1]) < int(numbers[2]):
        raise UserError(
            f"process {process} is no process; write I/N, such as 0/2 on one host and 1/2 on the "
            "other."
        )
    host, port = address(coordinator)
    own = environment.get("JAX_LOCAL_DEVICE_IDS", "")
    return Launch(
        place=Place(host=host, port=port, index=int(numbers[1]), count=int(numbers[2])),
        devices=tuple(map(int, own.split(","))) if re.fullmatch(r"\d+(,\d+)*", own) else None,
    )


def address(text: str) -> tuple[str, int]:
    """'host:8476' or '[::1]:8476' -> (host, port)."""
    parts = re.fullmatch(r"\[?([^\[\]/\s]+?)\]?:(\d+)", text)
    if not parts or not 0 < int(parts[2]) < 2**16:
        raise UserError(
            f"the coordinator '{text}' is no address; write HOST:PORT, such as 10.0.0.1:8476."
        )
    return parts[1], int(parts[2])


def found(environment: Mapping[str, str], *, tpu: bool = False) -> str | None:
    """The kind of cluster that an environment belongs to, if it runs several processes.

    Args:
      tpu: whether this machine has TPU chips, and the library for them.
    """
    if _several(environment, "SLURM_STEP_NUM_TASKS") and "SLURM_PROCID" in environment:
        return "SLURM"
    if _several(environment, "OMPI_COMM_WORLD_SIZE"):
        return "Open MPI"
    if "tpu" not in (environment.get("JAX_PLATFORMS") or "tpu"):
        return None  # a try on the processors of one of a pod's machines
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if workers is not None:
        several = "," in workers or _several(environment, "MEGASCALE_NUM_SLICES")
        return "GKE" if several else None
    if tpu and "TPU_SKIP_MDS_QUERY" not in environment:
        return "Compute Engine"
    return None


def _several(environment: Mapping[str, str], name: str) -> bool:
    value = environment.get(name, "")
    return value.isdigit() and int(value) > 1


def settle(
    coordinator: str | None = None, process: str | None = None, wait: float = WAIT_S
) -> Launch | None:
    """Where this process stands among those started with it; None where it is alone.

    Raises:
      UserError: settings that make no sense. HostError: the cluster does not say what it must.
    """
    launch = asked(coordinator, process, os.environ)
    if launch is None:
        kind = found(os.environ, tpu=_has_tpu())
        launch = _detected(kind, wait) if kind else None
    return launch if launch is not None and launch.place.count > 1 else None


@contextlib.contextmanager
def joined(launch: Launch | None, wait: float = WAIT_S) -> Iterator[None]:
    """Be one of the processes of a launch while the block runs; alone, nothing happens.

    Must be entered before JAX looks at its devices. A process that dies meanwhile ends all.

    Raises:
      HostError: code 77; not all processes came within `wait` seconds, or the port is taken.
    """
    if launch is None:
        yield
        return
    place = launch.place
    lines = rollcall.take(place, wait)
    with rollcall.watch(place, lines):
        try:
            jax.distributed.initialize(
                coordinator_address=place.address,
                num_processes=place.count,
                process_id=place.index,
                local_device_ids=launch.devices,
                cluster_detection_method="deactivate",
                initialization_timeout=max(1, round(wait)),
            )
        except RuntimeError as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise HostError(
                f"process {place.index} of {place.count} could not join at {place.address}: "
                f"{reason}; take another port for all of them."
            ) from error
        yield


def _has_tpu() -> bool:
    from jax._src import cloud_tpu_init  # no public name says it without starting the chips

    return cloud_tpu_init.running_in_cloud_tpu_vm


def _detected(kind: str, wait: float) -> Launch:
    """What JAX makes of a cluster. It has no public name: this function is the place to mend."""
    from jax._src import clusters

    try:
        where, count, index, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get(VARIABLES[0]), None, None, None, None, max(1, round(wait))
        )
        if where is None or count is None or index is None:
            raise RuntimeError("no address, or no number of processes")
    except Exception as error:  # of a metadata server, of variables that are no numbers ...
        raise HostError(
            f"this looks like {kind}, but it does not say how many processes there are "
            f"({str(error).splitlines()[0]}); give --coordinator=HOST:PORT and --process=I/N."
        ) from error
    host, port = address(where)
    own: Sequence[int] | None = devices
    return Launch(
        place=Place(host=host, port=port, index=index, count=count),
        devices=None if own is None else tuple(own),
    )
