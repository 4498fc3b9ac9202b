"""Our video UNet against diffusers' UNet3DConditionModel in PyTorch: one architecture, one machine.

    pip install -r requirements-bench.txt
    python -m tests.benchmarks.unet --what=forward|train|joint [--width=64] [--blocks=2]
        [--frames=8] [--rounds=5] [--threads=2] [--json]

ModelScope's network (Wang et al. 2023) at a fifth of its width: one video of 32 x 32 latents and 77
text tokens, fp32, without dropout; PyTorch runs eagerly, as diffusers does. Weights are carried
over, so both compute one function: the table says how far what they give is apart.

`joint` is of ours alone: a training step of a row with a clip and half as many images against a
step of the clip and one of the images (Ho et al. 2022).

A first run compiles for minutes; with JAX_COMPILATION_CACHE_DIR set, a second one does not.

The process keeps to `threads` cores from before either library starts, so both take that many
threads. Contestants run in turn in every round; the figures are medians, and what counts are the
ratios. Processor time is that of all threads.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any, NamedTuple

from tests.benchmarks.devices import keep_to_cores

if __name__ == "__main__":  # before a library counts the cores
    keep_to_cores(2)

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import UNet3DConditionModel
from flax import linen as nn

from tests.benchmarks.contest import Contestant, contest, in_jax, in_torch, show, timed
from vdm_jax.batch import Examples, Frames
from vdm_jax.cond import Cond, Tokens
from vdm_jax.nets import spatial, temporal
from vdm_jax.nets.clip import HeadCount, HeadWidth
from vdm_jax.nets.temporal import Temporal
from vdm_jax.nets.unet3d import ImageUNet, UNet3D

SIDE, CHANNELS, HEAD, WORDS, TEXT = 32, 4, 32, 77, 256
MULTS = (1, 2, 4, 4)
TIME = 500.0


class Sizes(NamedTuple):
    """Of networks and their inputs: the benchmark's by default, a test's are smaller."""

    width: int = 64
    blocks: int = 2
    frames: int = 8
    side: int = SIDE


def inputs(sizes: Sizes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A noisy video and a target (f h w c), and a text (l d)."""
    rng = np.random.default_rng(0)
    shape = sizes.frames, sizes.side, sizes.side, CHANNELS
    x, target, text = (rng.normal(size=size) for size in (shape, shape, (WORDS, TEXT)))
    return x.astype(np.float32), target.astype(np.float32), text.astype(np.float32)


def row(x: jax.Array, lengths: tuple[int, ...], text: jax.Array) -> tuple[Frames, jax.Array, Cond]:
    """Examples of so many frames in one row, with the same text each: (batch, time, condition)."""
    e = len(lengths)
    segment = np.repeat(np.arange(e) + 1, lengths)
    zero = jnp.zeros((1, e), jnp.int32)
    examples = Examples(
        id=jnp.zeros((1, e, 2), jnp.uint32), visit=zero, ordinal=zero, valid=zero == 0,
        grid=jnp.asarray([[[n, *x.shape[1:3]] for n in lengths]], jnp.int32),
        fps=jnp.full((1, e), 8.0),
    )  # fmt: skip
    batch = Frames(
        x=x[None], segment=jnp.asarray(segment[None], jnp.int32), examples=examples,
        position=jnp.asarray(np.concatenate([np.arange(n) for n in lengths])[None], jnp.int32),
    )  # fmt: skip
    owner = jnp.asarray(np.repeat(np.arange(e) + 1, WORDS)[None], jnp.int32)
    tokens = Tokens(x=jnp.tile(text, (e, 1))[None], segment=owner)
    return batch, jnp.full((1, e, 1), TIME), Cond(tokens={"text": tokens})


def network(sizes: Sizes) -> UNet3D:
    block = spatial.Transformer(heads=HeadWidth(HEAD), cross=("text",))
    through = temporal.Transformer(heads=HeadWidth(HEAD))
    return UNet3D(
        image=ImageUNet(
            width=sizes.width, blocks=sizes.blocks, mults=MULTS, middle=block,
            follow=(block, block, block, None), channels_out=CHANNELS,
        ),
        cross=("text",),
        temporal=(
            Temporal(
                part=temporal.Transformer(heads=HeadCount(8), inner=8 * HEAD), at="after_conv_in"
            ),
            Temporal(part=temporal.Convolutions(), at="after_res"),
            Temporal(part=through, at="after_attention", levels=(0, 1, 2)),
        ),
    )  # fmt: skip


def modelscope(sizes: Sizes) -> UNet3DConditionModel:
    """Theirs, randomly drawn: also what starts at 0."""
    torch.manual_seed(0)
    model = UNet3DConditionModel(
        sample_size=sizes.side, in_channels=CHANNELS, out_channels=CHANNELS,
        block_out_channels=tuple(sizes.width * m for m in MULTS), cross_attention_dim=TEXT,
        attention_head_dim=HEAD, layers_per_block=sizes.blocks,
    ).eval()  # fmt: skip
    for name, parameter in model.named_parameters():
        if "conv4" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


# Their names -> ours, `*` a number: inside of each kind of block.
TRANSFORMER = {
    "norm": "norm", "proj_in": "in", "proj_out": "out",
    "transformer_blocks.0.attn1.to_q": "self_0.query",
    "transformer_blocks.0.attn1.to_k": "self_0.key",
    "transformer_blocks.0.attn1.to_v": "self_0.value",
    "transformer_blocks.0.attn1.to_out.0": "self_0.out",
    "transformer_blocks.0.ff.net.2": "mlp_0.down",
    "transformer_blocks.0.norm1": "norm_self_0", "transformer_blocks.0.norm2": "norm_text_0",
    "transformer_blocks.0.norm3": "norm_mlp_0",
    "transformer_blocks.0.attn2.to_q": "text_0.query",
    "transformer_blocks.0.attn2.to_k": "text_0.key",
    "transformer_blocks.0.attn2.to_v": "text_0.value",
    "transformer_blocks.0.attn2.to_out.0": "text_0.out",
}  # fmt: skip
THROUGH = {
    theirs: ours.replace("norm_self_0", "norm_0").replace("norm_text_0", "norm_1")
    .replace("text_0", "self_1").replace("mlp_0", "mlp")
    for theirs, ours in TRANSFORMER.items()
}  # fmt: skip
RESIDUAL = {
    "norm1": "norm_in", "conv1": "conv_in", "time_emb_proj": "time", "norm2": "norm_out",
    "conv2": "conv_out", "conv_shortcut": "shortcut",
}  # fmt: skip
CONVOLUTIONS = {"conv1.0": "norm_0", "conv1.2": "conv_0"} | {
    f"conv{i + 1}.{at}": f"{kind}_{i}" for i in (1, 2, 3) for at, kind in ((0, "norm"), (3, "conv"))
}
BLOCKS = {
    "resnets": ("res_{}", RESIDUAL),
    "temp_convs": ("after_res_{}_0", CONVOLUTIONS),
    "attentions": ("follow_{}", TRANSFORMER),
    "temp_attentions": ("after_attention_{}_0", THROUGH),
}
ENDS = {
    "conv_in": "conv_in", "conv_out": "conv_out", "conv_norm_out": "norm_out",
    "time_embedding.linear_1": "time.in", "time_embedding.linear_2": "time.out",
}  # fmt: skip
GATED = "transformer_blocks.0.ff.net.0.proj"  # value and gate, which are two layers of ours


def names() -> dict[str, str]:
    """Path of each layer of theirs -> of ours."""
    last = len(MULTS) - 1
    levels = {f"down_blocks.{i}": f"down_{i}" for i in range(len(MULTS))}
    levels |= {f"up_blocks.{i}": f"up_{last - i}" for i in range(len(MULTS))}
    found = dict(ENDS)
    found |= {f"transformer_in.{a}": f"after_conv_in_0_0.{b}" for a, b in THROUGH.items()}
    for i in range(last):
        found[f"down_blocks.{i}.downsamplers.0.conv"] = f"down_{i + 1}.down.conv"
        found[f"up_blocks.{i}.upsamplers.0.conv"] = f"up_{last - i}.up.conv"
    for theirs, ours in (levels | {"mid_block": "middle"}).items():
        for kind, (place, layers) in BLOCKS.items():
            for nth in range(3):
                for a, b in layers.items():
                    found[f"{theirs}.{kind}.{nth}.{a}"] = f"{ours}.{place.format(nth)}.{b}"
    return found


def carried(model: UNet3DConditionModel) -> dict[str, Any]:
    """Their weights in our tree, each used once."""
    tree: dict[str, Any] = {}
    known = names()

    def put(path: str, leaf: str, value: np.ndarray) -> None:
        node = tree
        for key in path.split("."):
            node = node.setdefault(key, {})
        assert leaf not in node, f"{path}.{leaf} is given twice"
        node[leaf] = jnp.asarray(value.copy())

    for name, parameter in model.named_parameters():
        layer, _, kind = name.rpartition(".")
        value = laid_out(parameter.detach().numpy(), layer)
        leaf = "bias" if kind == "bias" else "scale" if value.ndim == 1 else "kernel"
        if layer.endswith(GATED):
            mlp = known[layer.replace(GATED, "transformer_blocks.0.ff.net.2")].removesuffix("down")
            for half, ours in zip(np.split(value, 2, axis=-1), ("up", "gate"), strict=True):
                put(mlp + ours, leaf, half)
        else:
            put(known[layer], leaf, value)
    return {"params": tree}


def laid_out(value: np.ndarray, layer: str) -> np.ndarray:
    """Inputs before outputs at the end; no axes of size 1 where our kernel has none."""
    if value.ndim == 5 or layer.endswith("conv_shortcut"):
        value = value[..., 0, 0] if value.ndim > 2 else value
    return np.moveaxis(value, (0, 1), (-1, -2)) if value.ndim > 1 else value


def ours(net: UNet3D, params: dict[str, Any], sizes: Sizes, lengths: tuple[int, ...]) -> Contestant:
    x, target, text = map(jnp.asarray, inputs(sizes))
    given = row(x, lengths, text)
    shapes = nn.meta.unbox(jax.eval_shape(net.init, jax.random.key(0), *given))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), shapes, params)

    def run(params: Any, x: jax.Array) -> jax.Array:
        return net.apply(params, *row(x, lengths, text))[0]

    return in_jax(run, params, x, target)


def theirs(model: UNet3DConditionModel, sizes: Sizes) -> Contestant:
    x, target, text = map(torch.tensor, inputs(sizes))
    x, target = (v.permute(3, 0, 1, 2)[None].contiguous() for v in (x, target))
    time, text = torch.tensor([TIME]), text[None]

    def run() -> torch.Tensor:
        return model(x, time, text, return_dict=False)[0]

    return in_torch(run, model.parameters(), target, lambda v: v[0].transpose(1, 2, 3, 0))


def against(sizes: Sizes, rounds: int, what: str) -> dict[str, Any]:
    """Both networks at what a `Contestant` does."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    net, model = network(sizes), modelscope(sizes)
    params = carried(model)
    both = {"ours": ours(net, params, sizes, (sizes.frames,)), "PyTorch": theirs(model, sizes)}
    return contest(both, rounds, (what,))


def joint(sizes: Sizes, rounds: int) -> dict[str, Any]:
    """Training steps of a clip and half as many images: in one row, and in two batches."""
    net, params = network(sizes), carried(modelscope(sizes))
    images = sizes.frames // 2
    made = {
        "one row": (sizes.frames, *(1,) * images),
        "clip": (sizes.frames,),
        "images": (1,) * images,
    }
    steps = {
        name: ours(net, params, sizes._replace(frames=sum(lengths)), lengths).train
        for name, lengths in made.items()
    }
    return timed(steps, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=2, help="of a level, on the way there")
    parser.add_argument("--what", choices=("forward", "train", "joint"), default="forward")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    options = parser.parse_args()
    sizes = Sizes(options.width, options.blocks, options.frames)
    if options.what == "joint":
        found = joint(sizes, options.rounds)
    else:
        found = against(sizes, options.rounds, options.what)
    if options.json:
        print(json.dumps(found))
    elif options.what == "joint":
        show_joint(found)
    else:
        show(found)


def show_joint(found: dict[str, Any]) -> None:
    for clock, times in found.items():
        apart = times["clip"] + times["images"]
        print(
            f"A clip with half as many images, {clock}: {times['one row']:.2f} s in one row, "
            f"{apart:.2f} s in two batches, {apart / times['one row']:.2f} times as fast."
        )


if __name__ == "__main__":
    main()
