"""One network in JAX and in PyTorch: forward passes and updates by AdamW, timed in turn.

What is asked for is a function from the noisy video to a prediction like the target; the loss is
their mean squared difference. fp32; PyTorch runs eagerly, as diffusers does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from rich.console import Console
from rich.table import Table

RATE, DECAY = 1e-4, 0.01
Step = Callable[[], Any]
Seconds = dict[str, dict[str, float]]  # {'wall' or 'processor': {name: median}}


class Contestant(NamedTuple):
    """Calls that wait for their result; `train` makes one update and returns its loss."""

    forward: Callable[[], np.ndarray]
    train: Callable[[], float]
    parameters: int


def in_jax(
    run: Callable[[Any, jax.Array], jax.Array], params: Any, x: Any, target: Any
) -> Contestant:
    """A contestant of `run(params, x)`."""
    optimizer = optax.adamw(RATE, weight_decay=DECAY)

    def step(params: Any, state: Any, x: jax.Array, target: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            return jnp.square(run(params, x) - target).mean()

        value, slope = jax.value_and_grad(loss)(params)
        change, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, change), state, value

    forward, update = jax.jit(run), jax.jit(step, donate_argnums=(0, 1))
    # The step gives its parameters away; `forward` keeps its own.
    held: list[Any] = [jax.tree.map(jnp.copy, params), optimizer.init(params)]

    def train() -> float:
        *held[:], value = update(*held, x, target)
        jax.block_until_ready(held)
        return float(value)

    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Contestant(lambda: np.asarray(forward(params, x)), train, count)


def in_torch(
    run: Callable[[], torch.Tensor],
    parameters: Iterable[torch.nn.Parameter],
    target: torch.Tensor,
    shown: Callable[[np.ndarray], np.ndarray],
) -> Contestant:
    """A contestant of `run()`; `shown` lays its result out as the other's."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY, fused=True)

    def forward() -> np.ndarray:
        with torch.inference_mode():
            return shown(run().numpy())

    def train() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.square(run() - target).mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return Contestant(forward, train, sum(p.numel() for p in parameters))


def timed(steps: Mapping[str, Step], rounds: int) -> Seconds:
    """Median seconds of each, run in turn in every round; processor time is that of all threads."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start, busy = time.perf_counter(), time.process_time()
            step()
            if turn:  # the first is warm-up
                spent = time.perf_counter() - start, time.process_time() - busy
                taken[name].append(spent)
    return {
        clock: {name: statistics.median(v[i] for v in spent) for name, spent in taken.items()}
        for i, clock in enumerate(("wall", "processor"))
    }


def contest(both: Mapping[str, Contestant], rounds: int, what: Iterable[str]) -> dict[str, Any]:
    """{parameters, threads, difference of what they give first, over the largest: by what they do;
    seconds: {'what, clock': {name: median}}}."""
    found: dict[str, Any] = {"difference": {}, "seconds": {}}
    for doing in what:
        steps: dict[str, Step] = {name: getattr(one, doing) for name, one in both.items()}
        first, second = (np.asarray(step()) for step in steps.values())
        found["difference"][doing] = float(abs(first - second).max() / abs(second).max())
        for clock, times in timed(steps, rounds).items():
            found["seconds"][f"{doing}, {clock}"] = times
    parameters = {name: one.parameters for name, one in both.items()}
    return found | {"parameters": parameters, "threads": torch.get_num_threads()}


def show(found: Mapping[str, Any], more: str = "") -> None:
    counts = found["parameters"]
    table = Table(
        title=f"{counts['ours']:,} parameters ({counts['PyTorch']:,} in PyTorch){more}, "
        f"{found['threads']} threads"
    )
    for name in ("fp32, seconds", "ours", "PyTorch", "times as fast as PyTorch"):
        table.add_column(name, justify="left" if name.startswith("fp32") else "right")
    for doing, times in found["seconds"].items():
        a, b = times["ours"], times["PyTorch"]
        table.add_row(doing, f"{a:.2f}", f"{b:.2f}", f"{b / a:.2f}")
    console = Console(width=100)
    console.print(table)
    apart = ", ".join(f"{one:.1e} ({doing})" for doing, one in found["difference"].items())
    console.print(
        f"Both compute one function: what they give first differs by {apart} of the largest number."
    )
