"""The digest sees every bit of a state and nothing of how it is stored."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vdm_jax.train.digest import digest

Pair = collections.namedtuple("Pair", ["first", "second"])


def tree():
    return {"b": jnp.arange(16, dtype=jnp.float32).reshape(8, 2), "a": jnp.ones((8, 2))}


def test_order_and_containers_do_not_matter():
    forward, back = (
        {"x": tree(), "y": {"n": 3}},
        {"y": {"n": 3}, "x": dict(reversed(tree().items()))},
    )
    assert digest(forward) == digest(back)
    pair = Pair(first=jnp.ones(2), second=(jnp.zeros(3),))
    plain = {"first": np.ones(2, np.float32), "second": {"0": np.zeros(3, np.float32)}}
    assert digest({"x": pair}) == digest({"x": plain})


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("spec", [PartitionSpec("a"), PartitionSpec()])
def test_sharding_does_not_matter(count, spec):
    mesh = Mesh(np.array(jax.devices()[:count]), ("a",))
    placed = jax.device_put(tree(), NamedSharding(mesh, spec))
    assert digest({"x": placed}) == digest({"x": tree()})


def one_bit(x):
    bits = np.array(x).view(np.uint8).copy()
    bits.reshape(-1)[5] ^= 1
    return bits.view(np.float32)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t | {"a": one_bit(t["a"])},
        lambda t: {"a": t["b"], "b": t["a"]},
        lambda t: t | {"a": t["a"].astype(jnp.bfloat16)},
        lambda t: t | {"a": t["a"].view(jnp.int32)},
        lambda t: t | {"a": t["a"].reshape(2, 8)},
        lambda t: {"b": t["b"]},
        lambda t: {"b": t["b"], "c": t["a"]},
        lambda t: t | {"c": jnp.zeros((0,))},
        lambda t: t | {"c": 1},
        lambda t: {"b": t},
    ],
)
def test_everything_else_matters(change):
    assert digest({"x": change(tree())}) != digest({"x": tree()})


def test_items_and_scalars_matter():
    assert digest({"x": tree()}) != digest({"y": tree()})
    cursors = [0, 1, "1", True, 1.0, np.int32(1)]
    assert len({digest({"cursor": {"cursor": c}}) for c in cursors}) == len(cursors)


def test_negative_zero_and_nan_are_bits():
    assert digest({"x": {"a": np.float32(0.0)}}) != digest({"x": {"a": np.float32(-0.0)}})
    assert digest({"x": {"a": np.float32(np.nan)}}) == digest({"x": {"a": np.float32(np.nan)}})


def test_two_leaves_of_one_name_are_refused():
    @jax.tree_util.register_pytree_with_keys_class
    class Twice:
        def tree_flatten_with_keys(self):
            keys = jax.tree_util.DictKey(0), jax.tree_util.DictKey("0")
            return [(key, jnp.ones(1)) for key in keys], None

        def tree_flatten(self):
            return [jnp.ones(1)] * 2, None

        tree_unflatten = classmethod(lambda cls, aux, leaves: cls())

    with pytest.raises(ValueError, match="two leaves are called 0"):
        digest({"x": Twice()})
