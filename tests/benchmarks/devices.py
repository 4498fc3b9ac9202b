"""The devices a benchmark runs on; to be asked before JAX starts."""

import os

TWO = "--xla_force_host_platform_device_count"
ALONE = "--xla_cpu_multi_thread_eigen=false"


def two_cpu_devices() -> None:
    """Two devices of one core each on a CPU, as `make demo` has them, unless XLA_FLAGS says how
    many."""
    flags = os.environ.get("XLA_FLAGS", "")
    if TWO not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {TWO}=2 {ALONE}".strip()
