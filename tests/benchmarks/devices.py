"""The devices a benchmark runs on; to be asked before JAX starts."""

import argparse
import os

TWO = "--xla_force_host_platform_device_count"
ALONE = "--xla_cpu_multi_thread_eigen=false"


def two_cpu_devices() -> None:
    """Two devices of one core each on a CPU, as `make demo` has them, unless XLA_FLAGS says how
    many."""
    flags = os.environ.get("XLA_FLAGS", "")
    if TWO not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {TWO}=2 {ALONE}".strip()


def keep_to_cores(default: int) -> None:
    """As many cores as the command line's `--threads` says, for all that this process starts."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--threads", type=int, default=default)
    threads = parser.parse_known_args()[0].threads
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
