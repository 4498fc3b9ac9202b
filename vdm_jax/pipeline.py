"""From a run directory and prompts to videos: `load(run)(requests)`.

Requests of any size the patching allows are packed into rows of one static shape, so one compiled
program serves them all; a backbone of whole frames has a program for each size of frames. A
request's noise is keyed by its seed and by the cell alone: the same seed gives the same video
whatever else is in the queue.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.text import Tokenizer
from vdm_jax.batch import Examples, Frames, Packed, as_packed, unpack
from vdm_jax.cascade import TURNS, Cascade, Placement
from vdm_jax.compiled import Traced
from vdm_jax.cond import Cond, Text
from vdm_jax.config import UserError, build, from_json
from vdm_jax.diffusion.sample import sample
from vdm_jax.features import encoder_hash
from vdm_jax.image_prompt import IMAGE, of_videos
from vdm_jax.links import Link
from vdm_jax.parallel.place import whole
from vdm_jax.requests import (
    TEXT_PARTS,
    Capacity,
    Desk,
    Job,
    Made,
    Request,
    Video,
    check,
    groups,
    room_for,
)  # fmt: skip
from vdm_jax.signals import drop_all
from vdm_jax.stage import Stage
from vdm_jax.texts import encode
from vdm_jax.types import Params
from vdm_jax.windows import Part, Windows


@dataclasses.dataclass(frozen=True)
class Pipeline:
    stage: Stage
    params: Params
    tokenizer: Tokenizer
    capacity: Capacity
    digest: str = ""  # of the weights
    config: str = ""  # of the run's config.json
    traced: Traced | None = None  # samplers of this config that were traced before
    rows: jax.sharding.Sharding | None = None  # of the rows of a call

    def __call__(
        self, requests: Sequence[Request], below: Sequence[Video] | None = None
    ) -> Iterator[Made]:
        """Yields videos as calls finish.

        Args:
          below: of each request, what the stage below made.

        Raises:
          UserError: a size that the stage does not make, or what is below it was not given.
        """
        for index, request in enumerate(requests):
            check(self.stage, request, index)
        if below is None and (self.stage.told_below or self.stage.image is not None):
            raise UserError(
                "a stage that is told of the one below it was given no video; name the run of that "
                "stage before its own, or its videos with --below."
            )
        windows = self.stage.windows
        if windows is not None and max(r.frames for r in requests) > windows.frames:
            return self._in_windows(windows, requests, below)
        jobs = [
            Job(request=request, below=None if below is None else below[index])
            for index, request in enumerate(requests)
        ]
        return self._in_sizes(jobs)

    def override(
        self,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        augmentation: float | None = None,
    ) -> Pipeline:
        """With another number of steps, guidance scale, or time of the noise on what is below.

        Raises:
          UserError: the stage has no guidance, or no such noise.
        """
        stage = self.stage
        sampler = stage.sampler.override(steps=steps, guidance=guidance)
        link = stage.link
        if augmentation is not None:
            if link is None or link.augment is None:
                raise UserError(
                    f"augmentation {augmentation:g} was asked of a stage that was trained with no "
                    "noise on what is below it."
                )
            link = dataclasses.replace(
                link, augment=dataclasses.replace(link.augment, at=augmentation)
            )
        return dataclasses.replace(
            self, stage=dataclasses.replace(stage, sampler=sampler, link=link)
        )

    def on(self, devices: Sequence[jax.Device]) -> Pipeline:
        """With its weights on each of these devices, and rows spread over them."""
        mesh = jax.sharding.Mesh(np.array(devices), ("data",))
        rows = -(-self.capacity.rows // len(devices)) * len(devices)
        return dataclasses.replace(
            self,
            params=jax.device_put(self.params, jax.sharding.NamedSharding(mesh, jax.P())),
            capacity=dataclasses.replace(self.capacity, rows=rows),
            traced=self.traced if list(devices) == jax.local_devices()[:1] else None,
            rows=jax.sharding.NamedSharding(mesh, jax.P("data")),
        )

    def _in_windows(
        self, windows: Windows, requests: Sequence[Request], below: Sequence[Video] | None
    ) -> Iterator[Made]:
        videos = [np.zeros((*r.size, self.stage.codec.channels), np.uint8) for r in requests]
        lost = set()
        for parts in windows.rounds([request.frames for request in requests]):
            jobs = [
                _job(
                    self.stage.link, windows, requests[part.video], part, videos[part.video],
                    None if below is None else below[part.video],
                )
                for part in parts
            ]  # fmt: skip
            for place, made in self._in_sizes(jobs):
                part = parts[place]
                if made is None:
                    lost.add(part.video)
                else:
                    videos[part.video][part.frames.start : part.frames.stop] = made
        for index, video in enumerate(videos):
            yield index, None if index in lost else video

    def _in_sizes(self, jobs: Sequence[Job]) -> Iterator[Made]:
        """A program for all, or for each size of whole frames."""
        if not self.stage.whole_frames:
            yield from self._run(jobs)
            return
        sizes = [job.request.size[1:] for job in jobs]
        for size in dict.fromkeys(sizes):
            mine = [index for index, one in enumerate(sizes) if one == size]
            stage = dataclasses.replace(self.stage, patch=(1, *size))
            sized = dataclasses.replace(self, stage=stage)
            for place, made in sized._run([jobs[index] for index in mine]):
                yield mine[place], made

    def _run(self, jobs: Sequence[Job]) -> Iterator[Made]:
        requests = [job.request for job in jobs]
        jobs = self._shown(jobs)
        room = room_for(self.stage, self.capacity, self.tokenizer, requests)
        desk = Desk(
            stage=self.stage, room=room, tokenizer=self.tokenizer, features=self._texts(requests)
        )
        codec = self.stage.codec
        weights = codec.weights()
        for group in groups(self.stage, room, self.tokenizer, requests):
            arrays = desk([[jobs[index] for index in row] for row in group])
            run = self._program(arrays)
            placed = arrays if self.rows is None else jax.device_put(arrays, self.rows)
            latents = _blank(self.stage, arrays).replace(x=whole(run(self.params, placed)))
            order = [index for row in group for index in row]
            for index, video in zip(order, unpack(latents), strict=True):
                if not np.isfinite(video).all():
                    yield index, None
                    continue
                shown = np.asarray(codec.decode(weights, video))
                # What pads time lies at the front, as where latents are made.
                yield index, shown[len(shown) - requests[index].frames :]

    def _shown(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Jobs with the embeddings of the pictures that they are told of."""
        if (codec := self.stage.image) is None:
            return jobs
        found = of_videos(codec, [cast(Video, job.below) for job in jobs])
        return [dataclasses.replace(job, image=x) for job, x in zip(jobs, found, strict=True)]

    def _program(
        self, arrays: Mapping[str, np.ndarray]
    ) -> Callable[[Params, Mapping[str, np.ndarray]], jax.Array]:
        """(params, arrays of one call) -> latents (b n d)."""
        generate = functools.partial(_generate, self.stage)
        if self.traced is None:
            return generate
        # What may differ from the run's own config.
        said = (self.stage.sampler, self.stage.link, self.stage.patch)
        return self.traced(f"{self.config} {said}", generate, self.params, dict(arrays))

    def _texts(self, requests: Sequence[Request]) -> dict[str, np.ndarray]:
        """{text: features (words, width)} of the frozen text encoder, if there is one."""
        if (encoder := self.stage.text) is None:
            return {}
        texts = sorted({text for r in requests for text in (r.prompt, r.negative)})
        ids = [self.tokenizer.encode(text) for text in texts]
        return dict(zip(texts, encode(encoder, encoder.weights(), ids), strict=True))


def _job(
    link: Link | None,
    windows: Windows,
    request: Request,
    part: Part,
    video: Video,
    below: Video | None,
) -> Job:
    """What a window of a `video` is given: of the stage below, and of the windows before."""
    start = part.frames.start
    carried = video[start : start + windows.carry] if part.number and windows.carry else None
    if link is not None and below is not None:
        chosen = link.select.part(part.frames)
        if chosen is not None:
            below = below[chosen]
        elif carried is not None:
            below, carried = carried, None
    return Job(
        request=dataclasses.replace(request, frames=len(part.frames)),
        window=0 if windows.same_noise else part.number, below=below, given=carried,
    )  # fmt: skip


def _blank(stage: Stage, arrays: Mapping[str, Any]) -> Packed:
    """The packed batch of one call: of its values only those that are known beforehand."""
    arrays = {name: jnp.asarray(leaf) for name, leaf in arrays.items()}
    b, n = arrays["segment"].shape
    given = arrays.get("given")
    return Packed(
        x=jnp.zeros((b, n, stage.patch_features), jnp.float32),
        segment=arrays["segment"],
        position=arrays["position"],
        raster=arrays["raster"],
        mask=arrays["mask"],
        examples=Examples(
            id=arrays["id"], visit=arrays["visit"],
            ordinal=jnp.zeros_like(arrays["visit"]), valid=arrays["valid"],
            grid=arrays["grid"], fps=arrays["fps"],
        ),
        known=arrays.get("known"),
        given=None if given is None else stage.codec.encode({}, given),
        patch=stage.patch,
    )  # fmt: skip


def _below(stage: Stage, arrays: Mapping[str, Any], batch: Frames) -> Frames:
    """The videos of the stage below."""
    return Frames(
        x=stage.codec.encode({}, arrays["below"]), segment=arrays["below_segment"],
        position=arrays["below_position"], examples=batch.examples,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def _generate(stage: Stage, params: Params, arrays: Mapping[str, Any]) -> jax.Array:
    batch = stage.carry(_blank(stage, arrays))
    denoiser = stage.denoiser
    told: Mapping[str, Any] = {}
    if stage.link is not None and "below" in arrays:
        frames = cast(Frames, batch)
        below = _below(stage, arrays, frames)
        if stage.told_below:
            told = stage.link.sample(below, frames)
            batch = stage.link.apart(frames, told)
        else:
            batch = stage.link.give(below, frames)
    scale = jnp.full_like(arrays["fps"], stage.sampler.guidance or 1)

    def condition(kind: str, dropped) -> Cond:
        text = Text(
            features=arrays.get(f"{kind}_features"),
            **{part: arrays[f"{kind}_{part}"] for part in TEXT_PARTS},
        )
        raw = {"text": text, "fps": arrays["fps"], "guidance": scale, **told}
        if IMAGE in arrays:
            raw[IMAGE] = arrays[IMAGE]
        return cast(Cond, denoiser.apply(params, raw, batch, dropped, method="condition"))

    hidden = drop_all(denoiser.signals, batch)
    without = {choice: mask & ~arrays["negated"] for choice, mask in hidden.items()}
    conds = {"cond": condition("prompt", {}), "uncond": condition("negative", without)}

    def denoise(batch, at, cond):
        return denoiser.apply(params, batch, at, cond, method="predict")

    process, sampler = stage.learnt_process(params), stage.sampler
    x = sample(denoise, batch, process=process, sampler=sampler, prior=stage.prior, conds=conds)
    if stage.link is not None and told:
        x = stage.link.together(x, cast(Frames, batch), told)
    return as_packed(batch.replace(x=x)).x if isinstance(batch, Frames) else x


def load(workdir: str | Path, *, step: int | None = None, rate: str | None = None) -> Pipeline:
    """The pipeline of a run, its weights on the devices that are the default; see `read`."""
    made = read(workdir, step=step, rate=rate)
    return dataclasses.replace(made, params=jax.tree.map(jnp.asarray, made.params))


def load_all(
    workdirs: Sequence[str | Path], *, step: int | None = None, placement: Placement = TURNS
) -> Pipeline | Cascade:
    """The pipeline of a run, or the cascade of several, the first stage first; see `read`."""
    if len(workdirs) == 1:
        return load(workdirs[0], step=step)
    return Cascade(tuple(read(one, step=step) for one in workdirs), placement)


def read(workdir: str | Path, *, step: int | None = None, rate: str | None = None) -> Pipeline:
    """The pipeline of a run, its weights on the host: its newest checkpoint that verifies, EMA.

    Args:
      step: another checkpoint; `rate`: which EMA, as written in the config (the first).

    Raises:
      UserError: no run there, no such checkpoint (code 4) or no such rate.
    """
    from vdm_jax.train.checkpoint import Checkpoints
    from vdm_jax.train.digest import digest

    folder = Path(workdir)
    if not (folder / "config.json").is_file():
        raise UserError(f"'{workdir}' is no run directory: it has no config.json.", code=4)
    config = (folder / "config.json").read_text()
    run = build(from_json(config))
    rate = rate or str(run.ema[0])
    with Checkpoints(folder / "checkpoints") as checkpoints:
        step = checkpoints.newest() if step is None else step
        if step is None:
            raise UserError(f"'{workdir}' has no checkpoint yet; train first.", code=4)
        if step not in checkpoints.steps():
            raise UserError(f"'{workdir}' has no checkpoint {step}: {checkpoints.steps()}.", code=4)
        _check_text(run.stage, checkpoints.meta(step)["data"], workdir)
        shadows = checkpoints.restore_numpy(step, ("ema",))["ema"]
    if rate not in shadows:
        raise UserError(f"'{workdir}' keeps no EMA of rate {rate}; it has {', '.join(shadows)}.")
    params = shadows[rate]
    return Pipeline(
        stage=run.stage,
        params=params,
        tokenizer=Tokenizer(str(folder / "tokenizer.json")),
        capacity=capacity_of(run.data),
        digest=digest({"ema": params}),
        config=hashlib.sha256(config.encode()).hexdigest(),
        traced=Traced.beside(),
    )


def _check_text(stage: Stage, data: Mapping[str, Any], workdir: str | Path) -> None:
    """Raises: UserError, a run's frozen text encoder is not the one whose features it learnt."""
    learnt = data.get("texts", {}).get("encoder")
    if stage.text is not None and encoder_hash(stage.text) != learnt:
        raise UserError(
            f"'{workdir}' was trained on the features of another text encoder than its config's "
            "stage.text makes now; put that one back.",
            code=4,
        )


def capacity_of(data: Any, rows: int = 2) -> Capacity:
    """The row a model was trained on, `rows` at a time."""
    return Capacity(
        rows=rows, tokens=data.tokens, text_tokens=data.text_tokens, segments=data.segments
    )
