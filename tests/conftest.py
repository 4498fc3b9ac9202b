"""Set before JAX starts: eight simulated devices, shape checks on, no accelerator."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = os.environ.get("XLA_FLAGS", "")
if "host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook(["vdm_jax.batch", "vdm_jax.diffusion"], "beartype.beartype")
