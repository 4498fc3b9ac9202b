"""What the TPU's compiler makes of attention, asked on a machine without a TPU."""

import importlib.util
import os
import re

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vdm_jax.kernels import attend

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="needs the TPU compiler: pip install -r requirements-tpu.txt",
    ),
]
HEADS = 4


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch):
    """The compiler must not ask for a TPU, nor mind others who compile."""
    monkeypatch.setitem(os.environ, "TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setitem(os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def compiled(name, *, tokens, keys=None, dim=128, rows=1, backend=None, over="row"):
    """Forward and backward on the chips of a topology: `rows` rows on each, or tokens of as many
    rows divided over all."""
    chips = topologies.get_topology_desc(name, "tpu").devices
    mesh = jax.make_mesh((len(chips),), ("chips",), devices=chips, axis_types=(AxisType.Auto,))
    spec = PartitionSpec("chips") if over == "row" else PartitionSpec(None, "chips")
    rows = rows * len(chips) if over == "row" else rows

    def argument(shape, dtype):
        place = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=place)

    def total(q, k, v, q_group, kv_group):
        out = attend(q, k, v, q_group=q_group, kv_group=kv_group, backend=backend)
        return jnp.square(out.astype(jnp.float32)).sum()

    lengths = (tokens, keys or tokens, keys or tokens)
    arguments = [argument((n, HEADS, dim), jnp.bfloat16) for n in lengths]
    arguments += [argument((n,), jnp.int32) for n in lengths[:2]]
    with jax.set_mesh(mesh), nn.logical_axis_rules(((over, "chips"),)):
        traced = jax.jit(jax.grad(total, (0, 1, 2))).trace(*arguments)
        return traced.lower(lowering_platforms=("tpu",)).compile()


def check(program, *, tokens, rows=1):
    text = program.as_text()
    for name in ("fwd", "dq", "dkv"):
        assert f"splash_mha_{name}_segmented" in text
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text
    # Less than the scores of one of the heads.
    assert program.memory_analysis().temp_size_in_bytes < 4 * rows * tokens**2


@pytest.mark.parametrize("tokens", [4096, 32768])
@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_rows_over_chips(name, tokens):
    check(compiled(name, tokens=tokens), tokens=tokens)


@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_the_longest_rows(name):
    check(compiled(name, tokens=131072), tokens=131072)


@pytest.mark.parametrize("dim", [64, 72, 96, 256])
def test_widths_of_heads(dim):
    check(compiled("v5e:2x2", tokens=4096, dim=dim, rows=2), tokens=4096, rows=2)


def test_lengths_that_fill_no_block():
    check(compiled("v5e:2x2", tokens=4001, keys=77, rows=3), tokens=4001, rows=3)


@pytest.mark.parametrize("way, move", [("ring", "collective-permute"), ("ulysses", "all-to-all")])
def test_tokens_over_chips(way, move):
    text = compiled("v5p:2x2x1", tokens=8192, backend=way, over="token").as_text()
    for name in ("fwd", "dq", "dkv"):
        assert f"splash_mha_{name}_segmented" in text
    assert move in text
    # Ids may be gathered; keys and values not.
    assert not re.search(r"bf16\S* all-gather", text)
