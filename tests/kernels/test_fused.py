"""The GPU kernel: what it skips, that it lowers, and that it is used only where it is right."""

import dataclasses
import importlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from vdm_jax.kernels import attend, fused, trial
from vdm_jax.kernels.chunked import Chunked
from vdm_jax.kernels.fused import Fused
from vdm_jax.kernels.kernel import attend as run

N, HEADS, DIM, BLOCK = 80, 2, 24, 16


def inputs(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(2, N, HEADS, DIM)), dtype) for _ in "qkv"]


def test_skipped_blocks_are_not_touched():
    """Whatever lies in blocks that cannot meet, nan even, is never multiplied."""
    ids = jnp.asarray([[1] * 32 + [2] * 48, [7] * 64 + [0] * 16])
    clean = inputs()
    poison = [x.at[0, 32:].set(jnp.nan).at[1, 64:].set(jnp.nan) for x in clean]
    weight = jnp.cos(jnp.arange(clean[0].size)).reshape(clean[0].shape)

    @jax.jit
    def answers(*qkv):
        out, pull = jax.vjp(lambda *qkv: run(Fused(BLOCK, True), *qkv, ids, ids), *qkv)
        return out, *pull(weight)

    for one, other in zip(answers(*poison), answers(*clean), strict=True):
        np.testing.assert_array_equal(one[0, :32], other[0, :32])
        np.testing.assert_array_equal(one[1, :64], other[1, :64])
        assert np.isnan(one[0, 32:]).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("dim", [64, 72, 128])
def test_it_lowers_for_a_gpu(dim, dtype):
    """To Triton, on a machine without a GPU; whether that compiles only a GPU can say."""
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)
    tokens = jax.ShapeDtypeStruct((1, 1000, 2, dim), dtype)
    ids = jax.ShapeDtypeStruct((1, 1000), jnp.int32)

    def total(q, k, v, q_group, kv_group):
        out = attend(q, k, v, q_group=q_group, kv_group=kv_group, backend="fused")
        return out.astype(jnp.float32).sum()

    with jax.sharding.use_abstract_mesh(mesh):
        assert not fused.kernel().interpret
        traced = jax.jit(jax.grad(total, (0, 1, 2))).trace(tokens, tokens, tokens, ids, ids)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("gpu.triton") == 3


@dataclasses.dataclass(frozen=True)
class Blurred(Chunked):
    """Right but for a neighbour of the last group, which it lets in; or as other cases say."""

    fault: str

    def forward(self, q, k, v, q_group, kv_group):
        if self.fault == "ignores groups":
            q_group, kv_group = jnp.ones_like(q_group), jnp.ones_like(kv_group)
        if self.fault == "one group too many":
            kv_group = jnp.where(kv_group == 2, 1, kv_group)
        if self.fault == "does not compile":
            raise RuntimeError("ptxas would not\nand says why at length")
        return super().forward(q, k, v, q_group, kv_group)

    def backward(self, saved, d_out):
        d_q, d_k, d_v = super().backward(saved, d_out)
        if self.fault == "nan":
            d_v = d_v.at[0, 0, 0, 0].set(jnp.nan)
        return d_q, d_k * (1.1 if self.fault == "slope" else 1), d_v


@pytest.mark.parametrize(
    "fault, said",
    [
        ("ignores groups", "out differs"),
        ("one group too many", "out differs"),
        ("slope", "dk differs"),
        ("nan", "dv differs from 'dense' by nan"),
        ("does not compile", "RuntimeError: ptxas would not"),
    ],
)
def test_a_wrong_kernel_does_not_pass(fault, said, caplog):
    trial.passes.cache_clear()
    with caplog.at_level(logging.INFO, logger="vdm_jax.kernels.trial"):
        for _ in range(3):
            assert not trial.passes(Blurred(64, fault), 16, "float32")
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "'blurred' is not used" in record.getMessage()
    assert record.getMessage().partition(": ")[2].startswith(said)
    assert "\n" not in record.getMessage()


def test_a_right_kernel_passes_once(caplog):
    trial.passes.cache_clear()
    with caplog.at_level(logging.INFO, logger="vdm_jax.kernels.trial"):
        assert trial.passes(Fused(64, True), 16, "bfloat16")
        assert trial.passes(Fused(64, True), 16, "bfloat16")
    (record,) = caplog.records
    assert record.levelname == "INFO" and "'fused' agrees" in record.getMessage()


@pytest.mark.parametrize("right", [True, False])
def test_a_gpu_runs_what_passed(right, monkeypatch):
    """Inside a trace and under a mesh, where most attention is; and only where it can be tried."""
    tried = []

    def passes(kernel, width, dtype):
        tried.append((type(kernel), width, dtype))
        return right

    module = importlib.import_module("vdm_jax.kernels.attend")
    monkeypatch.setattr(trial, "passes", passes)
    monkeypatch.setattr(module, "platform", lambda: "gpu")
    q = jax.ShapeDtypeStruct((1, 2048, 4, 64), jnp.bfloat16)
    assert module._suited(q, keys=2048) == "dense" and not tried  # no GPU here to try it on
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert module._suited(q, keys=2048) == ("fused" if right else "dense")
    assert tried == [(Fused, 64, "bfloat16")]
    assert module._suited(q, keys=8) == "dense" and len(tried) == 1  # nothing to try for


def test_a_trial_is_of_no_trace_and_no_mesh():
    trial.passes.cache_clear()
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    found = []

    def traced(x):
        found.append(trial.passes(Chunked(64), 16, "float32"))
        return x + 1

    with jax.set_mesh(mesh):
        jax.jit(traced)(jnp.zeros(2))
    assert found == [True]
