"""A small training state to save, and what lies in a directory afterwards."""

from pathlib import Path

import jax
import jax.numpy as jnp
import optax


def state(seed, width=16):
    """Params, EMA and optimizer as training has them: boxless dicts, named tuples, empty nodes."""
    key = jax.random.key(seed)
    params = {
        "params": {
            "layer": {
                "kernel": jax.random.normal(key, (8, width)),
                "bias": jnp.arange(width, dtype=jnp.bfloat16) + seed,
            }
        }
    }
    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return {
        "params": params,
        "ema": {"0.999": jax.tree.map(lambda x: x + 1, params)},
        "opt": transform.init(params),
        "counters": {"step": jnp.int32(seed)},
    }


def abstract(items):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), items
    )


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())
