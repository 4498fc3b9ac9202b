"""Predictions of `vdm plan` for trunks that others have measured: how far off is it?

    nice python -m tests.benchmarks.calibration [wan] [llama]

    wan     MaxDiffusion's training of Wan 2.1 14B on v5p-8, four chips: 1280 x 720 x 81 frames,
            75,600 tokens, one video a step, everything recomputed: 36.01 s (its README's log).
            Here every chip has a video of its own, and a step's time is divided by four: sharing
            one video among chips, as they do, is taken to cost nothing.
    llama   MaxText's Llama 2 70B on 512 chips of v5p, 4,096 tokens a sequence: 65.4 % of the peak
            (its documentation's table). Its recipe is not part of that table: taken are 4 sequences
            a chip and products kept, as its published recipes for v5p have it. Here keys are not
            shared by heads, attention is not causal, and there is no vocabulary; both numbers are
            shares of what the trunk itself needs.

No weights, no data: the trunks are compiled for the machine by the TPU's compiler, nothing runs.
The prediction is called calibrated only if both errors are within 25 %.
"""

from __future__ import annotations

import dataclasses
import json
import sys

from vdm_jax.plan import topology

topology.prepare()

import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from data_pipeline.blocks import EXAMPLE  # noqa: E402
from experiments import sora  # noqa: E402
from vdm_jax.config import build, spec  # noqa: E402
from vdm_jax.nets.layers import SwiGlu  # noqa: E402
from vdm_jax.plan.machine import Plan, make_plan  # noqa: E402
from vdm_jax.plan.mix import Mix  # noqa: E402
from vdm_jax.train.optim import AdamW, Optimizer  # noqa: E402

WITHIN = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What somebody measured, and the trunk of the same shapes.

    Attributes:
      value: what was measured, `share` of the peak or `seconds` of a step.
      grid: of the one example in each row; words: its text.
      rows: of a step; per: of how many of their steps ours is.
    """

    name: str
    machine: str
    mesh: dict[str, int]
    value: float
    unit: str
    width: int
    depth: int
    heads: int
    mlp_ratio: float
    grid: tuple[int, int, int]
    words: int
    rows: int
    per: float
    remat: str


WAN = Measured(
    name="Wan 2.1 14B, MaxDiffusion", machine="v5p:2x2x1", mesh={"fsdp": 4}, value=36.01,
    unit="seconds", width=5120, depth=40, heads=40, mlp_ratio=2.7, grid=(21, 45, 80), words=512,
    rows=4, per=4.0, remat="full",
)  # fmt: skip
LLAMA = Measured(
    name="Llama 2 70B, MaxText", machine="v5p:8x8x8", mesh={"data": 8, "fsdp": 64}, value=0.654,
    unit="share", width=8192, depth=80, heads=64, mlp_ratio=3.5, grid=(1, 64, 64), words=0,
    rows=2048, per=1.0, remat="dots",
)  # fmt: skip
ALL = {"wan": WAN, "llama": LLAMA}


def config_of(one: Measured) -> ConfigDict:
    """The flagship's config with another trunk, and rows of one example."""
    config = sora.get_config()
    tokens = int(np.prod(one.grid))
    config.knobs.width = one.width
    trunk = config.stage.denoiser.backbone
    trunk.depth, trunk.heads, trunk.mlp_ratio = one.depth, one.heads, one.mlp_ratio
    trunk.remat, trunk.registers, trunk.patch_features = one.remat, 0, 48
    config.stage.patch = config.data.patch = (1, 4, 4)
    config.data.tokens, config.data.segments, config.data.rows = tokens, 1, one.rows
    config.data.text_tokens = max(one.words + 1, 2)
    config.optimizer = spec(Optimizer, rules=((".*", spec(AdamW, learning_rate=1e-4)),))
    config.mesh.update({"data": 1, "fsdp": 1, "seq": 1, "tensor": 1} | one.mesh)
    text, rate = config.stage.denoiser.signals
    if one.words:
        with text.unlocked():
            text.embed.max_length = text.embed.encoder.max_length = one.words
            text.embed.encoder.width, text.embed.encoder.depth = 4096, 0
        config.stage.denoiser.signals = (text, rate)
    else:
        trunk.activation = spec(SwiGlu)
        trunk.cross = ()
        config.stage.denoiser.signals = (rate,)
    return config


def mix_of(one: Measured) -> Mix:
    row = np.zeros(1, EXAMPLE)
    row["tokens"], row["grid"], row["words"] = np.prod(one.grid), one.grid, max(one.words, 1)
    return Mix((row,) * one.rows, "one example a row")


def predict(one: Measured) -> Plan:
    machine = topology.topology(one.machine)
    return make_plan(build(config_of(one)), machine, mix=mix_of(one))


def predicted(one: Measured, plan: Plan) -> float:
    assert plan.seconds is not None and plan.mfu is not None
    return plan.mfu if one.unit == "share" else plan.seconds.guess / one.per


def main(names: list[str]) -> int:
    console = Console()
    table = Table(title="predicted and measured", title_justify="left", box=None)
    for name in ("trunk", "measured", "predicted", "error", "lower", "upper bound", "useful, PF"):
        table.add_column(name)
    errors = []
    for name in names or ALL:
        one = ALL[name]
        console.print(f"compiling {one.name} for {one.machine} ...")
        plan = predict(one)
        assert plan.seconds is not None
        found = predicted(one, plan)
        errors.append(found / one.value - 1)
        scale = plan.seconds.guess * plan.mfu if one.unit == "share" else None  # type: ignore
        ends = [plan.seconds.lower, plan.seconds.upper]
        bounds = [scale / end if scale else end / one.per for end in ends]
        table.add_row(
            one.name, f"{one.value:g} {one.unit}", f"{found:.3f}", f"{errors[-1]:+.1%}",
            f"{bounds[0]:.3f}", f"{bounds[1]:.3f}", f"{plan.work.useful / 1e15:.1f}",
        )  # fmt: skip
        console.print_json(json.dumps(plan.json() | dataclasses.asdict(plan.seconds)))
    console.print(table)
    good = len(errors) == len(ALL) and all(abs(error) <= WITHIN for error in errors)
    console.print("calibrated" if good else "NOT calibrated: an error is above 25 %, or missing")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
