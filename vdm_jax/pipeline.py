"""From a run directory and prompts to videos: `load(run)(requests)`.

Requests of any size the patching allows are packed into rows of one static shape, so one compiled
program serves them all. A request's noise is keyed by its seed and by the cell alone: the same seed
gives the same video whatever else is in the queue.
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
from vdm_jax.batch import Examples, Packed, unpack
from vdm_jax.compiled import Traced
from vdm_jax.cond import Cond, Text
from vdm_jax.config import UserError, build, from_json
from vdm_jax.diffusion.sample import Sampler, sample
from vdm_jax.features import encoder_hash
from vdm_jax.parallel.place import whole
from vdm_jax.signals import drop_all
from vdm_jax.stage import Stage
from vdm_jax.texts import encode
from vdm_jax.train.run import size_problems
from vdm_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One video to make; one frame is a still image. An empty `negative` is no text at all."""

    prompt: str
    frames: int
    height: int
    width: int
    fps: float = 8.0
    seed: int = 0
    negative: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capacity:
    """The static shape of one call: rows of `tokens`, `text_tokens` and `segments` each."""

    rows: int
    tokens: int
    text_tokens: int
    segments: int


@dataclasses.dataclass(frozen=True)
class Pipeline:
    stage: Stage
    params: Params
    tokenizer: Tokenizer
    capacity: Capacity
    digest: str = ""  # of the weights
    config: str = ""  # of the run's config.json
    traced: Traced | None = None  # samplers of this config that were traced before

    def __call__(
        self, requests: Sequence[Request], *, sampler: Sampler | None = None
    ) -> Iterator[tuple[int, np.ndarray | None]]:
        """Yields (index of the request, uint8 video (t h w c)) as calls finish; None for a video
        with a value that is not finite.

        Raises:
          UserError: a size that the patches do not divide, or a video larger than a row can be.
        """
        sampler = sampler or self.stage.sampler
        capacity = self._room_for(requests)
        codec = self.stage.codec
        weights, read = codec.weights(), self._texts(requests)
        for group in self._groups(requests, capacity):
            chosen = [requests[i] for row in group for i in row]
            arrays = self._arrays(chosen, group, capacity, read)
            run = self._program(sampler, arrays)
            latents = _blank(self.stage, arrays).replace(x=whole(run(self.params, arrays)))
            order = [index for row in group for index in row]
            for index, video in zip(order, unpack(latents), strict=True):
                if not np.isfinite(video).all():
                    yield index, None
                    continue
                shown = np.asarray(codec.decode(weights, video))
                # What pads time lies at the front, as where latents are made.
                yield index, shown[len(shown) - requests[index].frames :]

    def _program(
        self, sampler: Sampler, arrays: Mapping[str, np.ndarray]
    ) -> Callable[[Params, Mapping[str, np.ndarray]], jax.Array]:
        """(params, arrays of one call) -> latents (b n d)."""
        if self.traced is None:
            return functools.partial(_generate, self.stage, sampler)
        generate = functools.partial(_generate, self.stage, sampler)
        return self.traced(f"{self.config} {sampler}", generate, self.params, dict(arrays))

    def grid(self, request: Request) -> tuple[int, int, int]:
        """Cells (t, y, x) of a request; time is rounded up to whole patches."""
        size = (request.frames, request.height, request.width)
        units = [s * p for s, p in zip(self.stage.codec.stride, self.stage.patch, strict=True)]
        t, h, w = (-(-extent // unit) for extent, unit in zip(size, units, strict=True))
        return t, h, w

    def _room_for(self, requests: Sequence[Request]) -> Capacity:
        """The trained row, lengthened where one request alone would not fit in it."""
        longest = max(int(np.prod(self.grid(request))) for request in requests)
        words = max(
            len(self.tokenizer.encode(text)) for r in requests for text in (r.prompt, r.negative)
        )
        return dataclasses.replace(
            self.capacity,
            tokens=max(self.capacity.tokens, -(-longest // 128) * 128),
            text_tokens=max(self.capacity.text_tokens, words + 1),
        )

    def _groups(self, requests: Sequence[Request], room: Capacity) -> Iterator[list[list[int]]]:
        """Indices of requests by call and row, in order: a full row is closed for good."""
        rows: list[list[int]] = [[]]
        used = np.zeros(3, int)
        limit = np.array([room.tokens, room.text_tokens - 1, room.segments])
        for index, request in enumerate(requests):
            size = (request.frames, request.height, request.width)
            wrong = size_problems(self.stage, size)
            if wrong:
                raise UserError(f"request {index}: {' '.join(wrong)}")
            words = max(len(self.tokenizer.encode(t)) for t in (request.prompt, request.negative))
            need = np.array([int(np.prod(self.grid(request))), words, 1])
            if rows[-1] and np.any(used + need > limit):
                if len(rows) == room.rows:
                    yield rows
                    rows = []
                rows.append([])
                used = np.zeros(3, int)
            rows[-1].append(index)
            used = used + need
        yield rows

    def _texts(self, requests: Sequence[Request]) -> dict[str, np.ndarray]:
        """{text: features (words, width)} of the frozen text encoder, if there is one."""
        if (encoder := self.stage.text) is None:
            return {}
        texts = sorted({text for r in requests for text in (r.prompt, r.negative)})
        ids = [self.tokenizer.encode(text) for text in texts]
        return dict(zip(texts, encode(encoder, encoder.weights(), ids), strict=True))

    def _arrays(
        self,
        requests: Sequence[Request],
        group: list[list[int]],
        room: Capacity,
        read: Mapping[str, np.ndarray],
    ) -> dict[str, np.ndarray]:
        """The packed batch of one call, as plain arrays; `read` are the texts' features."""
        b, n, e, l = room.rows, room.tokens, room.segments, room.text_tokens
        out: dict[str, np.ndarray] = {
            "segment": np.zeros((b, n), np.int32),
            "position": np.zeros((b, n, 3), np.int32),
            "raster": np.zeros((b, n), np.int32),
            "mask": np.zeros((b, n, self.stage.patch_features), bool),
            "id": np.zeros((b, e, 2), np.uint32),
            "valid": np.zeros((b, e), bool),
            "grid": np.zeros((b, e, 3), np.int32),
            "fps": np.zeros((b, e), np.float32),
            "negated": np.zeros((b, e), bool),
        }
        for kind in ("prompt", "negative"):
            out |= {f"{kind}_{part}": np.zeros((b, l), np.int32) for part in _TEXT_PARTS}
            if self.stage.text is not None:
                wide = (b, l, self.stage.text.width)
                out[f"{kind}_features"] = np.zeros(wide, np.float16)
        queue = iter(requests)
        for row, members in enumerate(group):
            start, texts = 0, {"prompt": 0, "negative": 0}
            for slot in range(len(members)):
                request = next(queue)
                grid = self.grid(request)
                stop = start + int(np.prod(grid))
                out["segment"][row, start:stop] = slot + 1
                out["position"][row, start:stop] = np.indices(grid).reshape(3, -1).T
                out["raster"][row, start:stop] = np.arange(stop - start)
                stride = self.stage.codec.stride[0]
                layers = -(-request.frames // stride)
                out["mask"][row, start:stop] = _time_mask(layers, grid, self.stage)
                out["id"][row, slot] = (request.seed >> 32, request.seed & 0xFFFFFFFF)
                out["valid"][row, slot] = True
                out["grid"][row, slot] = grid
                out["fps"][row, slot] = request.fps / stride if layers > 1 else 0
                out["negated"][row, slot] = bool(request.negative)
                for kind in texts:
                    text = getattr(request, kind)
                    ids = self.tokenizer.encode(text)
                    here = slice(texts[kind], texts[kind] + len(ids))
                    out[f"{kind}_ids"][row, here] = ids
                    out[f"{kind}_segment"][row, here] = slot + 1
                    out[f"{kind}_position"][row, here] = np.arange(len(ids))
                    if text in read:
                        some = read[text]
                        out[f"{kind}_features"][row, here][: len(some)] = some
                    texts[kind] += len(ids)
                start = stop
        return out


_TEXT_PARTS = ("ids", "segment", "position")


def _time_mask(layers: int, grid: tuple[int, int, int], stage: Stage) -> np.ndarray:
    """False on the features that pad time at the front, as the loader pads it."""
    pt = stage.patch[0]
    padding = grid[0] * pt - layers
    mask = np.ones((int(np.prod(grid)), pt, stage.patch_features // pt), bool)
    mask[: grid[1] * grid[2], :padding] = False
    return mask.reshape(len(mask), -1)


def _blank(stage: Stage, arrays: Mapping[str, Any]) -> Packed:
    """The packed batch of one call, nothing in it yet."""
    arrays = {name: jnp.asarray(leaf) for name, leaf in arrays.items()}
    b, n = arrays["segment"].shape
    zero = jnp.zeros_like(arrays["valid"], jnp.int32)
    return Packed(
        x=jnp.zeros((b, n, stage.patch_features), jnp.float32),
        segment=arrays["segment"],
        position=arrays["position"],
        raster=arrays["raster"],
        mask=arrays["mask"],
        examples=Examples(
            id=arrays["id"], visit=zero, ordinal=zero, valid=arrays["valid"],
            grid=arrays["grid"], fps=arrays["fps"],
        ),
        patch=stage.patch,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(
    stage: Stage, sampler: Sampler, params: Params, arrays: Mapping[str, Any]
) -> jax.Array:
    batch = _blank(stage, arrays)
    denoiser = stage.denoiser

    def condition(kind: str, dropped) -> Cond:
        text = Text(
            features=arrays.get(f"{kind}_features"),
            **{part: arrays[f"{kind}_{part}"] for part in _TEXT_PARTS},
        )
        told = jnp.full_like(arrays["fps"], sampler.guidance or 1)
        raw = {"text": text, "fps": arrays["fps"], "guidance": told}
        return cast(Cond, denoiser.apply(params, raw, batch, dropped, method="condition"))

    hidden = drop_all(denoiser.signals, batch)
    without = {choice: mask & ~arrays["negated"] for choice, mask in hidden.items()}
    conds = {"cond": condition("prompt", {}), "uncond": condition("negative", without)}

    def denoise(batch, at, cond):
        return denoiser.apply(params, batch, at, cond, method="predict")

    process = stage.learnt_process(params)
    return sample(denoise, batch, process=process, sampler=sampler, prior=stage.prior, conds=conds)


def load(workdir: str | Path, *, step: int | None = None, rate: str | None = None) -> Pipeline:
    """The pipeline of a run: its newest checkpoint that verifies, EMA weights.

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
        params=jax.tree.map(jnp.asarray, params),
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
