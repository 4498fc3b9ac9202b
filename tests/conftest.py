"""Set before JAX starts: eight simulated devices, no accelerator, shapes checked at call time."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = os.environ.get("XLA_FLAGS", "")
if "host_platform_device_count" not in flags:
    # Tests compile much and compute little.
    flags += " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = flags.strip()
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Pytest's workers, and the processes that tests start, share what one of them has compiled.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache = tempfile.mkdtemp(prefix="vdm-jax-cache-")
    os.environ.setdefault("VDM_CACHE", os.path.join(cache, "vdm"))
    atexit.register(shutil.rmtree, cache, ignore_errors=True)

import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook(["vdm_jax.batch", "vdm_jax.diffusion"], "beartype.beartype")

from tests import workbench  # noqa: E402


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that all of pytest's workers know."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def manifest(shared):
    """The manifest of a small generated data set."""
    return workbench.once(shared / "data", workbench.make_data) / "manifest"


@pytest.fixture(scope="session")
def trained(shared, manifest):
    """A smoke run of six steps, checkpoints at 3 and 6."""

    def train(workdir):
        words = workbench.train(workdir, manifest, "--steps=6", "--config.save_every=3")
        workbench.vdm(*words)

    return workbench.once(shared / "trained", train)
