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
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.benchmarks.devices import keep_to_cores

if __name__ == "__main__":  # before a library counts the cores
    keep_to_cores(2)

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from diffusers import LatteTransformer3DModel
from flax import linen as nn
from rich.console import Console
from rich.table import Table

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
RATE, DECAY = 1e-4, 0.01


class Contestant(NamedTuple):
    """Calls that wait for their result; `train` makes one update and returns its loss."""

    forward: Callable[[], np.ndarray]  # (n, features), tokens as ours
    train: Callable[[], float]
    parameters: int


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

    optimizer = optax.adamw(RATE, weight_decay=DECAY)

    def step(params: Any, state: Any, x: jax.Array, target: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            return jnp.square(run(params, x) - target).mean()

        value, slope = jax.value_and_grad(loss)(params)
        change, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, change), state, value

    forward = jax.jit(run).lower(params, x).compile()
    # The step gives its parameters away; `forward` keeps its own.
    held: list[Any] = [jax.tree.map(jnp.copy, params), optimizer.init(params)]
    update = jax.jit(step, donate_argnums=(0, 1)).lower(*held, x, target).compile()

    def train() -> float:
        *held[:], value = update(*held, x, target)
        jax.block_until_ready(held)
        return float(value)

    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Contestant(lambda: np.asarray(forward(params, x))[0], train, count)


def theirs(model: LatteTransformer3DModel) -> Contestant:
    x, target = (torch.tensor(v).permute(3, 0, 1, 2)[None].contiguous() for v in inputs())
    time, caption = torch.tensor([TIME]), torch.zeros((1, 1, 1))
    parts = {n: p for n, p in model.named_parameters() if not n.startswith("caption_projection")}
    optimizer = torch.optim.AdamW(parts.values(), lr=RATE, weight_decay=DECAY, fused=True)

    def run() -> torch.Tensor:
        return model(x, time, caption, return_dict=False)[0]

    def forward() -> np.ndarray:
        with torch.inference_mode():
            video = run()[0].permute(1, 2, 3, 0).numpy()
        return np.asarray(tokens(video))[0]

    def train() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.square(run() - target).mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return Contestant(forward, train, sum(p.numel() for p in parts.values()))


def measure(width: int, blocks: int, rounds: int, backend: str | None) -> dict[str, Any]:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    dit = DiT(
        width=width, depth=blocks, heads=width // HEAD, patch_features=CHANNELS * PATCH**2,
        modulation=Shared(), positions=(Sincos(axes="xy"), Sincos(axes="t")), qk_norm="none",
        patterns=(Spatial(), Temporal()), layers="loop", backend=backend,
    )  # fmt: skip
    model = latte(width, blocks)
    both = {"ours": ours(dit, carried(model)), "PyTorch": theirs(model)}
    outputs = [one.forward() for one in both.values()]
    taken: dict[str, dict[str, list[tuple[float, float]]]] = {"forward": {}, "train": {}}
    losses: dict[str, list[float]] = {name: [] for name in both}
    for turn in range(rounds + 1):
        for what, times in taken.items():
            for name, one in both.items():
                start, busy = time.perf_counter(), time.process_time()
                found = getattr(one, what)()
                spent = time.perf_counter() - start, time.process_time() - busy
                if turn:  # the first is warm-up
                    times.setdefault(name, []).append(spent)
                if what == "train":
                    losses[name].append(found)
    pairs = zip(*losses.values(), strict=True)
    return dict(
        parameters={name: one.parameters for name, one in both.items()},
        forward_flops=2 * multiply_adds(dit, [GRID])[0],
        threads=torch.get_num_threads(),
        output_difference=float(abs(outputs[0] - outputs[1]).max() / abs(outputs[1]).max()),
        loss_difference=max(abs(a - b) / b for a, b in pairs),
        seconds={
            f"{what}, {clock}": {k: statistics.median(v[i] for v in spent)
                                 for k, spent in times.items()}
            for what, times in taken.items() for i, clock in enumerate(("wall", "processor"))
        },
    )  # fmt: skip


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
    counts, flops = found["parameters"], found["forward_flops"]
    table = Table(
        title=f"{counts['ours']:,} parameters ({counts['PyTorch']:,} in PyTorch), "
        f"{flops / 1e9:.0f} GFLOP forward, {found['threads']} threads"
    )
    for name in ("fp32, seconds", "ours", "PyTorch", "times as fast as PyTorch"):
        table.add_column(name, justify="left" if name.startswith("fp32") else "right")
    for what, times in found["seconds"].items():
        a, b = times["ours"], times["PyTorch"]
        table.add_row(what, f"{a:.2f}", f"{b:.2f}", f"{b / a:.2f}")
    console = Console(width=100)
    console.print(table)
    console.print(
        f"Outputs differ by {found['output_difference']:.1e} of the largest, losses of "
        f"{options.rounds + 1} steps by {found['loss_difference']:.1e}."
    )


if __name__ == "__main__":
    main()
