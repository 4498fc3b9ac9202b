"""The diffusion transformer: published sizes, neutral starts, choices that must change nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import meta
from jax.sharding import AxisType

from tests.nets.rows import (
    PATCH,
    REGISTERS,
    SHAPE,
    WIDTH,
    alone,
    example,
    pack,
    quick,
    random_like,
)
from vdm_jax import axes
from vdm_jax.batch import Examples, Packed
from vdm_jax.cond import Cond
from vdm_jax.config import UserError
from vdm_jax.kernels import attend
from vdm_jax.nets import attention
from vdm_jax.nets.cost import multiply_adds
from vdm_jax.nets.dit import DiT
from vdm_jax.nets.layers import LayerNorm, Mlp, RMSNorm, SwiGlu, TimeEmbedding
from vdm_jax.nets.modulation import PerBlock, Shared
from vdm_jax.nets.patterns import Groups, Pattern, Spatial, Temporal, Window, take
from vdm_jax.nets.positions import Rotary, Sincos
from vdm_jax.nets.remat import REMAT
from vdm_jax.parallel import rules

SIZES = {  # layers, width, heads -> multiply-adds at 8, 4, 2 cells a patch; parameters at 2
    "S": (12, 384, 6, (0.36, 1.41, 6.06), 32.9),
    "B": (12, 768, 12, (1.42, 5.57, 23.01), 130.3),
    "L": (24, 1024, 16, (5.01, 19.70, 80.70), 457.8),
    "XL": (28, 1152, 16, (7.39, 29.04, 118.62), 674.8),
}
VIDEO, STILL, CLIP = example(0, (3, 2, 2)), example(1, (1, 3, 4)), example(2, (2, 2, 3))


def published(size, patch):
    """Peebles & Xie 2023: 4 latent channels in, 8 out."""
    layers, width, heads, *_ = SIZES[size]
    return DiT(
        width=width, depth=layers, heads=heads, patch_features=4 * patch**2,
        out_features=8 * patch**2, qk_norm="none", positions=(Sincos(axes="xy"),),
    )  # fmt: skip


def network(**more):
    fields = dict(
        width=WIDTH, depth=1, heads=2, patch_features=PATCH, registers=REGISTERS,
        cross=("text",), layers="loop",
    )  # fmt: skip
    return DiT(**(fields | more))


@functools.cache
def inputs():
    return pack([[CLIP, VIDEO], [STILL], []], **SHAPE)


@functools.cache
def random_parameters(**more):
    shapes = jax.eval_shape(network(**more).init, jax.random.key(0), *inputs())
    return random_like(meta.unbox(shapes))


def stacked(params):
    """The parameters of layers='loop' as layers='scan' has them."""
    params = dict(params["params"])
    units = [params.pop(f"unit_{i}") for i in range(2)]
    return {"params": params | {"units": jax.tree.map(lambda *x: jnp.stack(x), *units)}}


@functools.cache
def value_and_grad(net):
    def total(params, x):
        batch, time, cond = inputs()
        return jnp.sin(net.apply(params, batch.replace(x=x), time, cond)).sum()

    return quick(lambda params: jax.value_and_grad(total, (0, 1))(params, inputs()[0].x))


@functools.cache
def compiled(net):
    return quick(net.apply)


def close(a, b, bound=1e-6):
    scale = max(1.0, float(jnp.abs(b).max()))
    np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=bound)


@pytest.mark.parametrize("size", sorted(SIZES))
def test_published_parameter_counts(size):
    *_, millions = SIZES[size]
    side, width = 16, SIZES[size][1]
    zero = jnp.zeros((1, 1), jnp.int32)
    examples = Examples(
        id=jnp.zeros((1, 1, 2), jnp.uint32), visit=zero, ordinal=zero, valid=zero == 0,
        grid=jnp.asarray([[[1, side, side]]]), fps=zero.astype(jnp.float32),
    )  # fmt: skip
    tokens = jnp.zeros((1, side**2), jnp.int32)
    batch = Packed(
        x=jnp.zeros((1, side**2, 16)), segment=tokens + 1, raster=tokens, examples=examples,
        position=jnp.zeros((1, side**2, 3), jnp.int32),
    )  # fmt: skip
    shapes = jax.eval_shape(
        published(size, 2).init, jax.random.key(0), batch, jnp.zeros((1, 1, 1)), Cond()
    )
    classes = 1001 * width  # the table of class embeddings is a signal's, not the network's
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes)) + classes
    assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize("size", sorted(SIZES))
def test_published_multiply_adds(size):
    for patch, billions in zip((8, 4, 2), SIZES[size][3], strict=True):
        found = multiply_adds(published(size, patch), [(1, 32 // patch, 32 // patch)])[0]
        assert abs(found / 1e9 - billions) < max(0.01 * billions, 0.005)
    if size == "XL":
        large = multiply_adds(published(size, 2), [(1, 32, 32)])[0]
        assert abs(large / 524.5e9 - 1) < 0.01


def test_multiply_adds_agree_with_the_compiler():
    """A network that uses every term, against the count of a compiled forward pass."""
    net = network(
        registers=2, cross=("text",), activation=SwiGlu(), modulation=Shared(),
        patterns=(Temporal(on_single="attend"), Spatial()), depth=2, width=64, qk_norm="none",
    )  # fmt: skip
    one = example(3, (1, 4, 4), text=8)
    batch, time, cond = alone(one)
    cond = cond.replace(vector=None)
    shapes = meta.unbox(jax.eval_shape(net.init, jax.random.key(0), batch, time, cond))
    lowered = jax.jit(lambda params: net.apply(params, batch, time, cond)).lower(shapes)
    counted = lowered.cost_analysis()["flops"] / 2
    # The compiler computes all pairs, and looks tables up by a product: neither is useful work.
    everything = 2 * (16 + 2) ** 2 - (16 + 4) - (16**2 + 4)
    lookups = 2 * 18 * 6 * 64 * 2 + 16 * 2 * 64 * 2
    ours = multiply_adds(net, [one.grid], context={"text": [(8, 7)]}, levels=2)[0]
    assert abs((ours + 2 * everything * 64 + lookups) / counted - 1) < 0.05


@pytest.mark.parametrize("modulation", [PerBlock(), Shared()])
def test_a_fresh_network_outputs_exactly_nothing(modulation):
    net = network(modulation=modulation)
    batch, time, cond = inputs()

    def start(key):
        params = meta.unbox(net.init(key, batch, time, cond))

        def error(params):
            out = net.apply(params, batch, time, cond)
            return jnp.square(out - batch.x).sum(), out

        return jax.grad(error, has_aux=True)(params)

    grads, out = quick(start)(jax.random.key(0))
    assert out.shape == batch.x.shape and out.dtype == jnp.float32 and not np.any(out)
    # ... but learns: the last layer's gradient is not zero.
    assert np.any(grads["params"]["head"]["out"]["kernel"])


SLOW = ("none", "dots", "attention")


@pytest.mark.parametrize(
    "remat", [pytest.param(p, marks=[pytest.mark.slow] * (p in SLOW)) for p in sorted(REMAT)]
)
def test_scan_and_remat_change_nothing(remat):
    loop = random_parameters(depth=2)
    truth, (d_loop, d_x) = value_and_grad(network(depth=2))(loop)
    value, grads = value_and_grad(network(depth=2, layers="scan", remat=remat))(stacked(loop))
    close(value, truth)
    jax.tree.map(functools.partial(close, bound=3e-6), grads, (stacked(d_loop), d_x))


def test_scanned_layers_name_their_axis_and_start_apart():
    net = network(depth=2, layers="scan")
    boxed = jax.eval_shape(net.init, jax.random.key(0), *inputs())
    kernel = boxed["params"]["units"]["block_0"]["attention"]["query"]["kernel"]
    assert kernel.names == (axes.LAYER, axes.EMBED, axes.HEADS)

    def drawn(key):
        tree = meta.unbox(net.init(key, *inputs()))
        return tree["params"]["units"]["block_0"]["attention"]["query"]["kernel"]

    first, second = quick(drawn)(jax.random.key(0))  # compiles little else than this kernel
    assert np.abs(first - second).max() > 0.01


@pytest.mark.parametrize("name", sorted(rules.TABLES))
def test_every_parameter_has_axes_of_the_vocabulary(name):
    """... and every strategy of sharding can place it."""
    net = network(registers=1, modulation=Shared() if name == "all" else PerBlock())
    boxed = jax.eval_shape(net.init, jax.random.key(0), *inputs())
    for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == leaf.value.ndim and leaf.value.dtype == jnp.float32
        rules.spec_of(leaf.names, rules.table(name), "parameter")


def test_temporal_blocks_do_not_touch_stills():
    """An image gives what the network without its temporal blocks gives; a video does not."""
    net = network(depth=2, patterns=(Spatial(), Temporal()))
    params = random_parameters(depth=2, patterns=(Spatial(), Temporal()))
    image_net = network(patterns=(Spatial(),))
    unit = {"block_0": params["params"]["unit_0"]["block_0"]}
    image_params = {"params": params["params"] | {"unit_0": unit}}
    for one, same in ((STILL, True), (VIDEO, False)):
        arguments = alone(one)
        found = compiled(net)(params, *arguments)
        expected = compiled(image_net)(image_params, *arguments)
        assert np.allclose(found, expected, atol=1e-5) == same


@dataclasses.dataclass(frozen=True)
class Unsorted:
    """The same groups, tokens where they are."""

    pattern: Pattern

    def groups(self, batch, register):
        found = self.pattern.groups(batch, register)
        return Groups(id=take(found.id, found.inverse), active=found.active)


@pytest.mark.parametrize("pattern", [Temporal(), Window(size=(2, 1, 2))])
def test_sorting_tokens_for_attention_changes_nothing(pattern):
    fields = dict(positions=(Rotary(),))
    params = random_parameters(**fields)
    out = compiled(network(patterns=(pattern,), **fields))(params, *inputs())
    plain = compiled(network(patterns=(Unsorted(pattern),), **fields))(params, *inputs())
    np.testing.assert_allclose(out, plain, atol=1e-5)


def test_each_token_reads_its_own_level():
    """Tokens at level 1 are told what an example whose only level is that one would be."""
    net, params = network(registers=0), random_parameters(registers=0)
    batch, time, cond = inputs()
    second = compiled(net)(params, batch.replace(level=jnp.ones_like(batch.level)), time, cond)
    only = compiled(net)(params, batch.replace(level=None), time[..., 1:], cond)
    np.testing.assert_allclose(second, only, atol=1e-5)
    first = compiled(net)(params, batch.replace(level=None), time[..., :1], cond)
    assert np.abs(first - only).max() > 1e-3


def test_rotation_alone_knows_no_origin():
    """Moving every example by the same step changes nothing: values are not turned."""
    fields = dict(positions=(Rotary(),), registers=0)
    net, params = network(**fields), random_parameters(**fields)
    batch, time, cond = inputs()
    plain = compiled(net)(params, batch, time, cond)
    moved = batch.replace(position=batch.position + jnp.asarray([1, 4, 2]))
    np.testing.assert_allclose(compiled(net)(params, moved, time, cond), plain, atol=1e-4)
    mirrored = batch.replace(position=batch.position * jnp.asarray([1, 1, 3]))
    assert np.abs(compiled(net)(params, mirrored, time, cond) - plain).max() > 1e-2


def test_conditions_enter_where_their_slots_say():
    net, params = network(), random_parameters()
    batch, time, cond = inputs()
    plain = compiled(net)(params, batch, time, cond)
    moved = compiled(net)(params, batch, time, cond.replace(vector=cond.vector.at[0, 1].add(1.0)))
    changed = np.abs(moved - plain).max(-1) > 1e-4
    changed_ones = np.asarray(batch.segment) == 2
    changed_ones[1:] = False
    assert np.array_equal(changed, changed_ones)

    early = cond.replace(pre_time=jnp.ones((3, 2, 3)))
    wide = meta.unbox(jax.eval_shape(net.init, jax.random.key(0), batch, time, early))
    drawn = random_like(wide)
    kernel = drawn["params"]["time"]["early"]["kernel"]
    with_early = {"params": params["params"] | {"time": params["params"]["time"] | {
        "early": {"kernel": jnp.zeros_like(kernel)}}}}  # fmt: skip
    np.testing.assert_array_equal(compiled(net)(with_early, batch, time, early), plain)
    with_early["params"]["time"]["early"]["kernel"] = kernel
    assert np.abs(compiled(net)(with_early, batch, time, early) - plain).max() > 1e-3

    extra = jnp.ones((3, 30, 4))
    channels = cond.replace(channels=extra)
    shapes = meta.unbox(jax.eval_shape(net.init, jax.random.key(0), batch, time, channels))
    assert shapes["params"]["patch"]["kernel"].shape == (PATCH + 4, WIDTH)
    joined = jnp.concatenate([params["params"]["patch"]["kernel"], jnp.ones((4, WIDTH))])
    patch = params["params"]["patch"] | {"kernel": joined}
    silent = compiled(net)({"params": params["params"] | {"patch": patch}}, batch, time,
                       cond.replace(channels=0 * extra))  # fmt: skip
    np.testing.assert_allclose(silent, plain, atol=1e-5)


def test_the_reported_logit_bounds_the_largest(monkeypatch):
    largest = []

    def watched(q, k, v, **more):
        logits = jnp.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5
        sees = more["q_group"][:, :, None] == more["kv_group"][:, None]
        real = sees & (more["q_group"] > 0)[:, :, None]
        largest.append(jnp.where(real[:, None], logits, -jnp.inf).max())
        return attend(q, k, v, **more)

    params = random_parameters(qk_norm="none", positions=(Rotary(),))
    monkeypatch.setattr(attention, "attend", watched)
    net = network(qk_norm="none", positions=(Rotary(),))
    batch, time, cond = inputs()

    def reported(params):
        out, sown = net.apply(params, batch, time, cond, mutable="intermediates")
        return out, jax.tree.leaves(sown["intermediates"]), list(largest)

    out, bounds, found = quick(reported)(params)
    assert len(bounds) == len(found) == 2  # self and cross
    assert all(0 < exact <= bound + 1e-5 for exact, bound in zip(found, bounds, strict=True))
    assert jax.tree.structure(jax.eval_shape(net.apply, params, batch, time, cond)).num_leaves == 1
    assert out.shape == batch.x.shape


def test_half_precision_is_for_products_only():
    net = network(dtype="bfloat16")
    params = random_parameters()
    batch, time, cond = inputs()
    text = str(jax.make_jaxpr(net.apply)(params, batch, time, cond))
    assert "bf16" in text
    out = compiled(net)(params, batch, time, cond)
    truth = compiled(network())(params, batch, time, cond)
    assert out.dtype == jnp.float32
    assert 0 < np.abs(out - truth).max() < 0.05 * np.abs(truth).max()
    # What leaves exponentials, square roots, sines and cosines in bfloat16 fails at full size.
    for line in text.splitlines():
        for name in (" exp ", " rsqrt ", " cos ", " sin "):
            if name in line and "bf16" in line.partition("=")[0]:
                raise AssertionError(line)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four simulated devices")
def test_constraints_are_real_under_a_mesh_and_nothing_without():
    net, params = network(), random_parameters()
    batch, time, cond = pack([[CLIP, VIDEO], [STILL]], **SHAPE)

    def forward(params, x):
        return net.apply(params, batch.replace(x=x), time, cond)

    with nn.logical_axis_rules(rules.table("fsdp_tp")):
        plain = jax.jit(forward).lower(params, batch.x).as_text()
    assert "sharding_constraint" not in plain and "Sharding" not in plain
    mesh = jax.make_mesh((2, 2, 1, 1), ("data", "tensor", "fsdp", "seq"),
                         axis_types=(AxisType.Auto,) * 4, devices=jax.devices()[:4])  # fmt: skip
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules.table("fsdp_tp")):
        lowered = jax.jit(forward).lower(params, batch.x)
        assert "sharding_constraint" in lowered.as_text() or "Sharding" in lowered.as_text()
        program = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})
        tokens, hidden = batch.x.shape[1] + 2 * REGISTERS, 4 * WIDTH // 2
        assert f"[1,{tokens},{hidden}]" in program.as_text()  # one row, half the hidden units
        out = program(params, batch.x)
    close(np.asarray(out), compiled(net)(params, batch, time, cond), 1e-5)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (dict(heads=3), "16 does not divide into 3 heads"),
        (dict(depth=3, patterns=(Spatial(), Temporal())), "depth 3 is no multiple of the 2"),
        (dict(remat="ful"), "Did you mean 'full'"),
        (dict(layers="fold"), "layers is 'fold'"),
        (dict(patch_features=7), "tokens have 5 features, the network takes 7"),
        (dict(cross=()), "attends to token sets"),
        (dict(qk_norm="l2"), "qk_norm is 'l2'"),
        (dict(positions=(Rotary(), Rotary())), "2 of the positions rotate"),
    ],
)
def test_mistakes_are_told_in_one_sentence(wrong, words):
    with pytest.raises(UserError, match=words):
        jax.eval_shape(network(**wrong).init, jax.random.key(0), *inputs())


def test_norms_have_their_statistics_in_full():
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (4, 64)), jnp.bfloat16)
    for norm in (LayerNorm(), LayerNorm(affine=True), RMSNorm()):
        out = norm.apply(norm.init(jax.random.key(0), x), x)
        assert out.dtype == jnp.bfloat16
        np.testing.assert_allclose(jnp.square(out.astype(jnp.float32)).mean(-1), 1, atol=0.01)
    centred = LayerNorm().apply({}, x).astype(jnp.float32)
    np.testing.assert_allclose(centred.mean(-1), 0, atol=0.01)


def test_a_norm_has_no_slope_along_its_input():
    """Scaling the input does not change the output, so the gradient is at right angles to it."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 16)), jnp.float32)
    for norm in (LayerNorm(), RMSNorm()):
        params = norm.init(jax.random.key(0), x)
        slope = jax.grad(lambda x, n=norm, p=params: jnp.sin(n.apply(p, x)).sum())(x)
        assert np.abs(slope).max() > 0.01
        np.testing.assert_allclose((slope * x).sum(-1), 0, atol=1e-4)


def test_time_embedding_tells_neighbouring_steps_apart():
    """Cosines first, as published weights expect: at time 0 the first half is 1, the second 0."""
    module = TimeEmbedding(width=8)
    time = jnp.asarray([[[0.0, 1.0, 999.0, 1000.0]]])
    params = random_like(meta.unbox(module.init(jax.random.key(0), time)))
    params["params"]["in"]["kernel"] = jnp.zeros((256, 8)).at[:128, :4].set(1).at[128:, 4:].set(1)
    params["params"]["in"]["bias"] = jnp.zeros(8)
    params["params"]["out"] = {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}
    out = np.asarray(module.apply(params, time)[0, 0])
    np.testing.assert_allclose(out[0], [128] * 4 + [0] * 4, atol=1e-4)
    assert np.abs(out[0] - out[1]).max() > 0.1 and np.abs(out[2] - out[3]).max() > 0.1


def test_gated_feed_forward_multiplies():
    """silu(gate) up: doubling what `up` gives doubles the result, doubling the input does not."""
    mlp = Mlp(hidden=8, activation=SwiGlu())
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 4)), jnp.float32)
    params = random_like(meta.unbox(mlp.init(jax.random.key(0), x)))
    params["params"]["down"]["bias"] = jnp.zeros(4)
    out = mlp.apply(params, x)
    twice = {**params["params"], "up": {"kernel": 2 * params["params"]["up"]["kernel"]}}
    np.testing.assert_allclose(mlp.apply({"params": twice}, x), 2 * out, rtol=1e-5)
    assert np.abs(mlp.apply(params, 2 * x) - 2 * out).max() > 0.1
