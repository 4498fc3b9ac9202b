"""Rounds of distillation: each is a run of its own, the student of the run before it.

    DIR/guided          told the scale of guidance; one evaluation where its teacher takes two
    DIR/16, DIR/8 ...   half as many steps each, from half of `begin` down to `end`

A round's config is its teacher's with another objective (`objectives/progressive.py`), weights
inherited from the teacher, and a sampler of its own number of DDIM steps; so every round is gone on
with, sampled and measured as any run is.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict
from rich.console import Console

from vdm_jax.config import UserError, build, from_json, refuse, spec
from vdm_jax.diffusion.steppers import Ddim
from vdm_jax.objectives.progressive import Guided, Progressive, Scales, problems
from vdm_jax.signals import GUIDANCE, Signal, Sinusoid
from vdm_jax.train.frozen import FromRun
from vdm_jax.train.optim import WarmupCosine
from vdm_jax.train.start import Start
from vdm_jax.train.surgery import Copy, Fresh, Inherit, find

FEATURES = 64  # of the scale, before a linear layer that starts at 0 joins them to the time's
WARMUP = 20  # one part in so many of a round's updates


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """Attributes:
    teacher, workdir: run directories; the rounds' lie in `workdir`.
    begin, end: evaluations that the first teacher takes to sample, and that the last student does.
    steps: of training, in each round.
    guide: range of guidance scales that is distilled first; None distils none.

    Raises: UserError, `begin` halved some times is not `end`.
    """

    teacher: str
    workdir: str
    begin: int
    end: int
    steps: int
    guide: tuple[float, float] | None = None

    def __post_init__(self):
        if len(halved(self.begin, self.end)) < 2:
            near = ", ".join(str(max(self.end, 1) << doubled) for doubled in (1, 2, 3))
            raise UserError(
                f"{self.begin} steps, halved again and again, are never {self.end}; to end with "
                f"{max(self.end, 1)}, begin with {near} ..."
            )

    def __call__(self, console: Console) -> int:
        """Train what is not trained yet; the exit code of the last run that was started."""
        teacher = self.teacher
        for name, count in self.rounds:
            folder = str(Path(self.workdir, name))
            config = self.config(teacher, folder, count)
            if self._done(folder):
                console.print(f"{folder} is trained.")
            elif code := Start(workdir=folder, console=console)(config):
                return code
            teacher = folder
        console.print(f"sample it: vdm sample {teacher} --prompt=...")
        return 0

    @property
    def rounds(self) -> list[tuple[str, int]]:
        """(name of the folder, evaluations to sample it) in order."""
        counts = halved(self.begin, self.end)[1:]
        guided = [("guided", self.begin)] if self.guide else []
        return guided + [(str(count), count) for count in counts]

    def config(self, teacher: str, folder: str, count: int) -> ConfigDict:
        """Of the round in `folder`, whose student samples in `count` evaluations.

        Raises:
          UserError: no such run, or one that cannot be distilled.
        """
        file = Path(teacher, "config.json")
        if not file.is_file():
            raise UserError(f"'{teacher}' is no run directory: it has no config.json.", code=4)
        config = from_json(file.read_text())
        step = _pinned(folder) or find(teacher)
        asked = spec(FromRun, run=teacher, step=step)
        rules: tuple[tuple[str, ConfigDict], ...] = ((".*", spec(Copy)),)
        stage, sampler = config.stage, config.stage.sampler
        told = [n for n, one in enumerate(stage.denoiser.signals) if one.key == GUIDANCE]
        scales = spec(Scales, low=self.guide[0], high=self.guide[1]) if self.guide else None
        if self.guide and not told:
            config.objective = spec(Guided, teacher=asked, scales=scales, guides=sampler.guides)
            rules = (*self._tell(config), *rules)
        else:
            config.objective = spec(Progressive, teacher=asked, steps=count, scales=scales)
        config.inherit = spec(Inherit, run=teacher, step=step, rules=rules)
        sampler.stepper, sampler.steps = spec(Ddim), count
        config.steps = self.steps
        warmup = self.steps // WARMUP
        config.optimizer.schedule = spec(WarmupCosine, steps=warmup, total=self.steps)
        refuse(problems(build(stage), build(asked)), f"distilling '{teacher}'")
        return config

    def _tell(self, config: ConfigDict) -> tuple[tuple[str, ConfigDict], ...]:
        """Make its network one that is told the scale; rules for the parameters that are new."""
        assert self.guide
        denoiser, sampler = config.stage.denoiser, config.stage.sampler
        if any(signal.slot == "pre_time" for signal in denoiser.signals):
            raise UserError("--guide tells the scale in the slot 'pre_time', which is taken.")
        embed = spec(Sinusoid, width=FEATURES)
        signal = spec(Signal, key=GUIDANCE, slot="pre_time", embed=embed)
        number = len(denoiser.signals)
        denoiser.signals = (*denoiser.signals, signal)
        low, high = self.guide
        usual = [g.scales[0].get("value") for g in sampler.guides if g.get("scales")]
        usual = [value for value in usual if value and low <= value <= high]
        sampler.guidance, sampler.guides = (usual[0] if usual else (low + high) / 2), ()
        return ((rf"/signals_{number}/|/time/early/", spec(Fresh)),)

    def _done(self, folder: str) -> bool:
        return Path(folder, "checkpoints").is_dir() and find(folder) >= self.steps


def halved(begin: int, end: int) -> list[int]:
    """begin, begin / 2 ... end; empty where that never comes."""
    counts = [begin]
    while counts[-1] > max(end, 1) and counts[-1] % 2 == 0:
        counts.append(counts[-1] // 2)
    return counts if counts[-1] == end else []


def _pinned(folder: str) -> int | None:
    """The teacher's step that a round has begun with."""
    file = Path(folder, "config.json")
    return from_json(file.read_text()).inherit.step if file.is_file() else None
