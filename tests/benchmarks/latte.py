"""Our packed DiT against diffusers' Latte transformer in PyTorch: one architecture, one machine.

    pip install -r requirements-bench.txt
    python -m tests.benchmarks.latte [--width=512] [--blocks=16] [--rounds=5] [--threads=2] [--json]

Both read one video of 8 frames of 32 x 32 latents in patches of 2 x 2 through blocks that attend in
space and in time by turns (Ma et al. 2024, variant 1), modulated by one map of time for all blocks
(Chen et al. 2023), in fp32; PyTorch runs eagerly, as diffusers does. Weights are carried over, so
both compute one function: the table says how far outputs and losses are apart.

The process keeps to `threads` cores from before either library starts, so both take that many
threads. Contestants run in turn in every round; the figures are medians, and what counts are the
ratios. Processor time is that of all threads: with one thread it is what the wall clock would show
on an idle machine; with more, threads that wait in a loop count too.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from tests.benchmarks.devices import keep_to_cores

if __name__ == "__main__":  # before a library counts the cores
    keep_to_cores(2)

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import LatteTransformer3DModel
from flax import linen as nn

from tests.benchmarks.contest import Contestant, contest, in_jax, in_torch, show
from vdm_jax.batch import Examples, Packed, patchify
from vdm_jax.cond import Cond
from vdm_jax.nets.cost import multiply_adds
from vdm_jax.nets.dit import DiT
from vdm_jax.nets.modulation import Shared
from vdm_jax.nets.patterns import Spatial, Temporal
from vdm_jax.nets.positions import Sincos

FRAMES, SIDE, CHANNELS, PATCH, HEAD = 8, 32, 4, 2, 64
GRID = (FRAMES, SIDE // PATCH, SIDE // PATCH)
TIME = 500.0


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """A noisy video and a target (f h w c)."""
    rng = np.random.default_rng(0)
    x, target = (rng.normal(size=(FRAMES, SIDE, SIDE, CHANNELS)).astype(np.float32) for _ in "xy")
    return x, target


def tokens(video: np.ndarray) -> jax.Array:
    return jnp.asarray(patchify(video, (1, PATCH, PATCH)))[None]


def row(x: jax.Array) -> Packed:
    """One video, alone in its row."""
    zero, n = jnp.zeros((1, 1), jnp.int32), x.shape[1]
    examples = Examples(
        id=jnp.zeros((1, 1, 2), jnp.uint32), visit=zero, ordinal=zero, valid=zero == 0,
        grid=jnp.asarray([[GRID]], jnp.int32), fps=jnp.full((1, 1), 8.0),
    )  # fmt: skip
    position = np.indices(GRID).reshape(3, -1).T[None]
    return Packed(
        x=x, segment=jnp.ones((1, n), jnp.int32), position=jnp.asarray(position, jnp.int32),
        raster=jnp.arange(n)[None], examples=examples, patch=(1, PATCH, PATCH),
    )  # fmt: skip


def latte(width: int, blocks: int) -> LatteTransformer3DModel:
    """Theirs, randomly drawn, with our table of positions."""
    torch.manual_seed(0)
    model = LatteTransformer3DModel(
        num_attention_heads=width // HEAD, attention_head_dim=HEAD, in_channels=CHANNELS,
        out_channels=CHANNELS, num_layers=blocks // 2, attention_bias=True, sample_size=SIDE,
        patch_size=PATCH, activation_fn="gelu-approximate", norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=1, video_length=FRAMES,
    )  # fmt: skip
    batch = row(tokens(inputs()[0]))
    places = Sincos(axes="xy").add(batch, width) + Sincos(axes="t").add(batch, width)
    model.pos_embed.pos_embed = torch.tensor(np.asarray(places).reshape(FRAMES, -1, width))
    model.temp_pos_embed.zero_()  # ours are all added at once; the sum still happens
    # No caption: what a text would pass takes no part.
    return model


def carried(model: LatteTransformer3DModel) -> dict[str, Any]:
    """Their weights in our tree."""

    def array(x: torch.Tensor) -> jax.Array:
        return jnp.asarray(x.detach().numpy().copy())

    def linear(layer: torch.nn.Linear) -> dict[str, jax.Array]:
        return {"kernel": array(layer.weight.T), "bias": array(layer.bias)}

    def block(theirs: Any) -> dict[str, Any]:
        attention = theirs.attn1
        names = dict(query=attention.to_q, key=attention.to_k, value=attention.to_v,
                     out=attention.to_out[0])  # fmt: skip
        up, _, down = theirs.ff.net
        return {
            "attention": {name: linear(layer) for name, layer in names.items()},
            "mlp": {"up": linear(up.proj), "down": linear(down)},
            "modulation": {"table": array(theirs.scale_shift_table)},
        }

    width = model.proj_out.in_features
    patch = model.pos_embed.proj  # (width, c, ph, pw), ours (ph pw c, width)
    kernel = array(patch.weight.permute(2, 3, 1, 0).reshape(-1, width))
    time = model.adaln_single.emb.timestep_embedder
    head = {"modulation": {"table": array(model.scale_shift_table)}, "out": linear(model.proj_out)}
    pairs = zip(model.transformer_blocks, model.temporal_transformer_blocks, strict=True)
    units = {
        f"unit_{i}": {"block_0": block(space), "block_1": block(through)}
        for i, (space, through) in enumerate(pairs)
    }
    ends = {
        "patch": {"kernel": kernel, "bias": array(patch.bias)},
        "time": {"in": linear(time.linear_1), "out": linear(time.linear_2)},
        "modulation": linear(model.adaln_single.linear),
        "head": head,
    }
    return {"params": ends | units}


def ours(dit: DiT, params: dict[str, Any]) -> Contestant:
    x, target = map(tokens, inputs())
    time = jnp.full((1, 1, 1), TIME)
    shapes = nn.meta.unbox(jax.eval_shape(dit.init, jax.random.key(0), row(x), time, Cond()))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), shapes, params)

    def run(params: Any, x: jax.Array) -> jax.Array:
        return dit.apply(params, row(x), time, Cond())

    return in_jax(run, params, x, target)


def theirs(model: LatteTransformer3DModel) -> Contestant:
    x, target = (torch.tensor(v).permute(3, 0, 1, 2)[None].contiguous() for v in inputs())
    time, caption = torch.tensor([TIME]), torch.zeros((1, 1, 1))
    parts = {n: p for n, p in model.named_parameters() if not n.startswith("caption_projection")}

    def run() -> torch.Tensor:
        return model(x, time, caption, return_dict=False)[0]

    def shown(video: np.ndarray) -> np.ndarray:
        return np.asarray(tokens(video[0].transpose(1, 2, 3, 0)))

    return in_torch(run, parts.values(), target, shown)


def measure(width: int, blocks: int, rounds: int, backend: str | None) -> dict[str, Any]:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    dit = DiT(
        width=width, depth=blocks, heads=width // HEAD, patch_features=CHANNELS * PATCH**2,
        modulation=Shared(), positions=(Sincos(axes="xy"), Sincos(axes="t")), qk_norm="none",
        patterns=(Spatial(), Temporal()), layers="loop", backend=backend,
    )  # fmt: skip
    model = latte(width, blocks)
    both = {"ours": ours(dit, carried(model)), "PyTorch": theirs(model)}
    flops = 2 * multiply_adds(dit, [GRID])[0]
    return contest(both, rounds, ("forward", "train")) | {"forward_flops": flops}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backend", help="of our attention; by default what we choose")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    options = parser.parse_args()
    found = measure(options.width, options.blocks, options.rounds, options.backend)
    if options.json:
        print(json.dumps(found))
        return
    show(found, f", {found['forward_flops'] / 1e9:.0f} GFLOP forward")


if __name__ == "__main__":
    main()
