"""The video UNet: no leak between examples of a row, stills, inflation, order, published sizes."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from tests.nets.rows import quick, random_like
from vdm_jax.batch import Examples, Frames
from vdm_jax.cond import Cond, Tokens
from vdm_jax.config import UserError
from vdm_jax.nets import spatial, temporal
from vdm_jax.nets.channels import Affine, Shift
from vdm_jax.nets.clip import Clip, HeadCount, HeadWidth, as_tokens
from vdm_jax.nets.context import contexts
from vdm_jax.nets.positions import Sincos
from vdm_jax.nets.relative import Shaw, T5Bias
from vdm_jax.nets.remat import REMAT
from vdm_jax.nets.spatial import Norm
from vdm_jax.nets.temporal import Temporal
from vdm_jax.nets.unet3d import ImageUNet, UNet3D

CHANNELS, SIDE, WIDTH, TEXT = 3, 8, 8, 6
BY_FRAME, BY_CLIP = Norm(groups=4), Norm(groups=4, scope="clip")
HEADS = HeadCount(2)
PARTS = {
    "pseudo3d": Temporal(part=temporal.Pseudo3d(), at="after_conv", levels=()),
    "convolutions": Temporal(
        part=temporal.Convolutions(norm=BY_CLIP), at="after_res", middle=False
    ),
    "residual": Temporal(
        part=temporal.Mixed(part=temporal.Residual(norm=BY_CLIP)), at="after_res", levels=()
    ),
    "held": Temporal(
        part=temporal.Mixed(
            part=temporal.Attention(heads=HEADS, init="random"), weight="held", start=1.0
        ),
        at="after_block",
    ),
    "affine": Temporal(part=Affine(frames=3), at="after_level"),
    "shift": Temporal(part=Shift(by=(1, -1, 0, 2)), at="after_conv_in"),
    "attention": Temporal(
        part=temporal.Attention(heads=HEADS, position=Sincos(axes="t")), at="after_sa"
    ),
    "shaw": Temporal(part=temporal.Attention(heads=HEADS, relative=Shaw(reach=2)), at="after_ca"),
    "t5": Temporal(
        part=temporal.Attention(heads=HEADS, relative=T5Bias(buckets=8, reach=6)), at="after_ff"
    ),
    "transformer": Temporal(
        part=temporal.Transformer(heads=HEADS, inner=16, norm=BY_CLIP), at="after_attention"
    ),
}


def rows(*layout, frames=6, seed=0, filler=0.0):
    """(batch, time, condition): each row a tuple of (name, frames of the example)."""
    b, e = len(layout), max(len(row) for row in layout)
    x = np.full((b, frames, SIDE, SIDE, CHANNELS), filler)
    words, owner = np.full((b, 2 * e, TEXT), filler), np.zeros((b, 2 * e), np.int32)
    segment, position = np.zeros((b, frames), np.int32), np.zeros((b, frames), np.int32)
    grid, time = np.zeros((b, e, 3), np.int32), np.zeros((b, e, 1))
    vector = np.zeros((b, e, 5))
    for r, row in enumerate(layout):
        at = 0
        for i, (name, count) in enumerate(row):
            rng = np.random.default_rng([seed, name])
            here = slice(at, at + count)
            x[r, here] = rng.normal(size=(count, SIDE, SIDE, CHANNELS))
            segment[r, here], position[r, here] = i + 1, np.arange(count)
            words[r, 2 * i : 2 * i + 2] = rng.normal(size=(2, TEXT))
            owner[r, 2 * i : 2 * i + 2] = i + 1
            grid[r, i] = count, SIDE, SIDE
            time[r, i], vector[r, i] = rng.uniform(0, 1000), rng.normal(size=5)
            at += count
    none = jnp.zeros((b, e), jnp.int32)
    examples = Examples(
        id=jnp.zeros((b, e, 2), jnp.uint32), visit=none, ordinal=none,
        valid=jnp.asarray(grid[..., 0] > 0), grid=jnp.asarray(grid), fps=none.astype(jnp.float32),
    )  # fmt: skip
    batch = Frames(
        x=jnp.asarray(x, jnp.float32), segment=jnp.asarray(segment),
        position=jnp.asarray(position), examples=examples,
    )  # fmt: skip
    text = Tokens(x=jnp.asarray(words, jnp.float32), segment=jnp.asarray(owner))
    cond = Cond(vector=jnp.asarray(vector, jnp.float32), tokens={"text": text})
    return batch, jnp.asarray(time, jnp.float32), cond


def image(**changes):
    block = spatial.Transformer(heads=HEADS, norm=BY_FRAME, cross=("text",))
    sizes = dict(width=WIDTH, mults=(1,), blocks=1, follow=(None,), middle=block, norm=BY_FRAME)
    return ImageUNet(**sizes | changes)


def unet(*parts, **changes):
    return UNet3D(image=image(**changes), temporal=tuple(PARTS[p] for p in parts), cross=("text",))


@functools.cache
def prepared(parts, **changes):
    """(compiled network, random parameters)."""
    network = unet(*parts, **changes)
    shapes = meta.unbox(jax.eval_shape(network.init, jax.random.key(0), *rows(((0, 6),))))
    return quick(network.apply), {"params": random_like(shapes["params"])}


EVERY = tuple(sorted(PARTS))
# All of them take long to compile.
SETS = {"two": ("attention", "convolutions"), "every": EVERY}
BOTH = pytest.mark.parametrize("parts", ["two", pytest.param("every", marks=pytest.mark.slow)])


@BOTH
def test_an_example_is_the_same_alone_and_among_others(parts):
    """Laws 2 and 3: what else lies in a row, and nan in its padding, change nothing."""
    apply, params = prepared(SETS[parts])
    together = apply(params, *rows(((0, 3), (1, 1), (2, 1)), ((3, 5),), filler=np.nan))
    alone = apply(params, *rows(((0, 3),), ((3, 5),), filler=np.nan))
    np.testing.assert_allclose(together[0, :3], alone[0, :3], atol=2e-5)
    np.testing.assert_allclose(together[1, :5], alone[1, :5], atol=2e-5)
    assert not np.any(together[0, 5:]) and not np.any(together[1, 5:])
    assert np.abs(together[0, :5]).min((1, 2, 3)).max() > 0


@BOTH
def test_no_gradient_passes_between_examples(parts):
    network, (_, params) = unet(*SETS[parts]), prepared(SETS[parts])
    batch, time, cond = rows(((0, 3), (1, 1), (2, 2)))

    def out(x):
        return jnp.sin(network.apply(params, batch.replace(x=x), time, cond)[0, :3]).sum()

    slope = np.abs(quick(jax.grad(out))(batch.x)).max((2, 3, 4))[0]
    assert np.all(slope[:3] > 0) and np.all(slope[3:] == 0)


@BOTH
def test_time_is_no_matter_to_a_still(parts):
    """A still in a video model is that still in the image model with the same weights."""
    apply, params = prepared(SETS[parts])
    plain, _ = prepared(())
    spatial_only = {"params": without_time(params["params"])}
    given = rows(((0, 1), (1, 1), (2, 1)))
    np.testing.assert_allclose(apply(params, *given), plain(spatial_only, *given), atol=2e-5)
    given = rows(((0, 3), (1, 1)))
    moving = np.abs(apply(params, *given) - plain(spatial_only, *given)).max((2, 3, 4))[0]
    assert np.all(moving[:3] > 1e-3) and np.all(moving[3:] < 2e-5)


def without_time(params):
    """Parameters of the image model among a video model's: the rest begin with their place."""
    return {
        name: without_time(child) if isinstance(child, dict) else child
        for name, child in params.items()
        if not name.startswith("after_")
    }


QUICK = {"pseudo3d"}
INFLATED = [part for part in EVERY if part != "shift"]  # which has nothing to learn


@pytest.mark.parametrize(
    "part", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in INFLATED]
)
def test_inflation_is_the_identity(part):
    """Law 4: with fresh parts a video model is the image model on each frame; not so trained."""
    apply, params = prepared((part,))
    plain, _ = prepared(())
    given = rows(((0, 4), (1, 2)))
    fresh = meta.unbox(unet(part).init(jax.random.key(1), *given))["params"]
    inflated = {"params": merged(fresh, without_time(params["params"]))}
    truth = plain({"params": without_time(params["params"])}, *given)
    np.testing.assert_allclose(apply(inflated, *given), truth, atol=2e-5)
    assert np.abs(apply(params, *given) - truth).max() > 1e-3


def merged(fresh, trained):
    return {
        name: merged(child, trained.get(name, {})) if isinstance(child, dict)
        else trained.get(name, child)
        for name, child in fresh.items()
    }  # fmt: skip


@pytest.mark.slow
def test_every_part_learns():
    """Two steps down the slope from a fresh start reach every leaf that acts in time."""
    network = unet(*EVERY)
    given = rows(((0, 4), (1, 2)))
    fresh = meta.unbox(network.init(jax.random.key(1), *given))["params"]
    trained = without_time(prepared(EVERY)[1]["params"])
    params = {"params": merged(fresh, trained)}

    @quick
    def slope(params):
        return jax.grad(lambda p: jnp.square(network.apply(p, *given) - 1).mean())(params)

    for _ in range(2):
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, slope(params))
    still = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(slope(params))
        if not np.any(leaf) and "after_" in jax.tree_util.keystr(path)
    ]
    assert still == []


@pytest.mark.slow
def test_without_positions_the_order_of_frames_is_no_matter():
    given, (batch, time, cond) = rows(((0, 5),), frames=5), rows(((0, 5),), frames=5)
    order = jnp.asarray([3, 0, 4, 1, 2])
    turned = batch.replace(x=batch.x[:, order])
    for part in ("transformer", "held"):
        apply, params = prepared((part,))
        np.testing.assert_allclose(
            apply(params, turned, time, cond), apply(params, *given)[:, order], atol=2e-5
        )
    for part in ("attention", "shaw", "t5", "pseudo3d", "affine", "shift"):
        apply, params = prepared((part,))
        off = apply(params, turned, time, cond) - apply(params, *given)[:, order]
        assert np.abs(off).max() > 1e-3


@pytest.mark.parametrize("scope", ["frame", "clip"])
def test_norms_take_their_statistics_of_a_frame_or_of_an_example(scope):
    """The trunk's own norms, against a mean and variance by NumPy."""
    norm = spatial.Norm(groups=2, eps=1e-6, scope=scope)("norm")
    batch, *_ = rows(((0, 3), (1, 2)))
    around = Clip(as_tokens(batch), jnp.zeros((1, 6, 1)), batch.segment > 0, {})
    x = jnp.asarray(np.random.default_rng(5).normal(2, 3, (1, 6, SIDE, SIDE, 4)), jnp.float32)
    found = norm.apply({"params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}, x, around)
    wholes = [[0], [1], [2], [3], [4]] if scope == "frame" else [[0, 1, 2], [3, 4]]
    for whole in wholes:
        for group in (slice(0, 2), slice(2, 4)):
            part = np.asarray(x, np.float64)[0, whole][..., group]
            truth = (part - part.mean()) / np.sqrt(part.var() + 1e-6)
            np.testing.assert_allclose(found[0, whole][..., group], truth, atol=1e-5)


def test_attention_to_words_alone_is_numpy_s():
    """A block without attention in the picture: queries of places, keys and values of words."""
    batch, _, cond = rows(((0, 4), (1, 2)))
    block = spatial.Cross(heads=HEADS, norm=Norm(groups=2), cross=("text",))
    x = jnp.asarray(np.random.default_rng(4).normal(size=(1, 6, 2, 2, 4)), jnp.float32)
    tokens = as_tokens(batch)

    class Around(nn.Module):
        @nn.compact
        def __call__(self, x):
            context = contexts(("text",), tokens, cond)
            clip = Clip(tokens, jnp.zeros((1, 6, 1)), batch.segment > 0, context)
            return block(x, clip, lambda place, x, nth=0: x, name="block", dtype="float32")

    params = random_like(meta.unbox(jax.eval_shape(Around().init, jax.random.key(0), x)))
    params["params"]["block"]["norm_text"] = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    found = Around().apply(params, x)
    layer = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"]["block"])
    layer, words = layer["cross_text"], np.asarray(cond.tokens["text"].x, np.float64)[0]
    for frame, mine in ((1, words[:2]), (5, words[2:4])):
        groups = np.asarray(x, np.float64)[0, frame].reshape(4, 2, 2)  # places, groups, channels
        centred = groups - groups.mean((0, 2), keepdims=True)
        normed = centred / np.sqrt(np.square(centred).mean((0, 2), keepdims=True) + 1e-5)
        q, k, v = (
            (source @ layer[name]["kernel"]).reshape(-1, 2, 2)
            for source, name in ((normed.reshape(4, 4), "query"), (mine, "key"), (mine, "value"))
        )
        p = np.exp(np.einsum("nhd,mhd->hnm", q, k) / np.sqrt(2))
        seen = np.einsum("hnm,mhd->nhd", p / p.sum(-1, keepdims=True), v).reshape(4, 4)
        truth = x[0, frame].reshape(4, 4) + seen @ layer["out"]["kernel"] + layer["out"]["bias"]
        np.testing.assert_allclose(found[0, frame].reshape(4, 4), truth, atol=2e-5)


@pytest.mark.slow
def test_modelscope_has_its_published_size():
    """Spatial and temporal parameters of UNet3DConditionModel: 1,411,233,860 in all, of which
    865,910,724 are Stable Diffusion 2.1's."""
    block = spatial.Transformer(heads=HeadWidth(64), cross=("text",))
    sizes = ImageUNet(
        width=320, mults=(1, 2, 4, 4), follow=(block, block, block, None), middle=block,
        channels_out=4,
    )  # fmt: skip
    parts = (
        Temporal(part=temporal.Transformer(heads=HeadCount(8), inner=512), at="after_conv_in"),
        Temporal(part=temporal.Convolutions(), at="after_res"),
        Temporal(
            part=temporal.Transformer(heads=HeadWidth(64)), at="after_attention", levels=(0, 1, 2)
        ),
    )
    assert counted(UNet3D(image=sizes, cross=("text",)), 1024) == 865_910_724
    assert counted(UNet3D(image=sizes, cross=("text",), temporal=parts), 1024) == 1_411_233_860


def counted(network, text):
    batch, time, cond = rows(((0, 2),), frames=2)
    batch = batch.replace(x=jnp.zeros((1, 2, 16, 16, 4)))
    words = cond.tokens["text"].replace(x=jnp.zeros((1, 2, text)))
    cond = Cond(tokens={"text": words})
    shapes = jax.eval_shape(network.init, jax.random.key(0), batch, time, cond)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.slow
@pytest.mark.parametrize("remat", sorted(set(REMAT) - {"none"}))
def test_what_is_computed_again_changes_nothing(remat):
    """... but the program convolves more often, once for each level of each way."""
    given = rows(((0, 3), (1, 1)))
    params = prepared(("attention",))[1]

    def program(remat):
        network = unet("attention").clone(remat=remat)
        slope = jax.grad(lambda params: jnp.square(network.apply(params, *given) - 1).sum())
        compiled = quick(slope).lower(params).compile()
        return compiled(params), compiled.as_text().count(" convolution(")

    (truth, once), (found, again) = program("none"), program(remat)
    for one, other in zip(*map(jax.tree.leaves, (found, truth)), strict=True):
        scale = max(1.0, float(jnp.abs(other).max()))
        np.testing.assert_allclose(one / scale, other / scale, atol=1e-5)
    assert again > once


@pytest.mark.parametrize("resample", ["after", "before"])
def test_sides_must_halve(resample):
    network = unet(resample=resample, mults=(1, 2), follow=(None, None))
    batch, time, cond = rows(((0, 2),))
    odd = batch.replace(x=batch.x[:, :, :7])
    with pytest.raises(UserError, match="the height at a level of the UNet is 7"):
        jax.eval_shape(network.init, jax.random.key(0), odd, time, cond)
    out = jax.eval_shape(network.init_with_output, jax.random.key(0), batch, time, cond)[0]
    assert out.shape == batch.x.shape


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(follow=()), "image.follow has 0 entries, but mults makes 1 levels"),
        (dict(resample="between"), "use 'after' or 'before'"),
        (dict(time="multiply"), "use 'add' or 'scale_shift'"),
        (dict(norm=Norm(groups=3)), "8 channels do not divide into 3 groups"),
        (dict(blocks=(1, 1)), "image.blocks has 2 entries"),
    ],
)
def test_a_mistake_is_one_sentence(changes, said):
    with pytest.raises(UserError, match=said):
        jax.eval_shape(unet(**changes).init, jax.random.key(0), *rows(((0, 2),)))


def test_a_place_that_is_none_is_named():
    one = Temporal(part=temporal.Pseudo3d(), at="after_convolution")
    network = UNet3D(image=image(), temporal=(one,), cross=("text",))
    with pytest.raises(
        UserError, match=r"no place 'after_convolution'\. Did you mean 'after_conv_in'"
    ):
        jax.eval_shape(network.init, jax.random.key(0), *rows(((0, 2),)))
