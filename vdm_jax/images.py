"""Frozen image encoders: one vector for each picture, and never trained.

    Tower(module=VisionTower(...), folder="weights/clip")

A folder is what Hugging Face's `CLIPModel` or `CLIPVisionModelWithProjection` saves: `config.json`
and safetensors files.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import traverse_util
from jaxtyping import Array, Float

from vdm_jax.config import HIDDEN, UserError, refuse
from vdm_jax.nets.vision import VisionTower
from vdm_jax.types import Params

Colour = tuple[float, float, float]
CLIP_MEAN: Colour = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Colour = (0.26862954, 0.26130258, 0.27577711)


class ImageEncoder(Protocol):
    """Hashable, its weights aside. What `repr` says and the weights are all that it is.

    Attributes:
      features: of a picture's vector.
    """

    @property
    def features(self) -> int: ...

    def fresh(self) -> Params:
        """Variables of `encode` as they would be initialised, boxed with their axes' names."""

    def weights(self) -> Params:
        """Variables of `encode`, on the host."""

    def problems(self) -> list[str]:
        """Why there are no such weights here, one sentence each; reads none."""

    def encode(
        self, params: Params, pictures: Float[Array, "m h w c"]
    ) -> Float[Array, "m features"]:
        """Of pictures of any size, values in [-1, 1]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tower:
    """A vision tower and its weights.

    The middle square of a picture is resized to the tower's side by a cubic filter that spans what
    it shrinks, cut to [0, 1], and normalised. CLIP's own preprocessing resizes bytes, which rounds
    them, and cuts out the middle last: squares differ by a byte's rounding, others at the edges of
    the cut, and by less than a pixel's shift.

    Attributes:
      folder: where the weights are, which is no part of what the encoder is. '' draws them from a
        fixed seed, for tests: such a tower tells pictures apart and knows nothing of them.
      mean, std: of values in [0, 1], by colour.
    """

    module: VisionTower
    folder: str = dataclasses.field(default="", repr=False)
    mean: Colour = CLIP_MEAN
    std: Colour = CLIP_STD

    @property
    def features(self) -> int:
        return self.module.features

    def fresh(self) -> Params:
        pictures = jnp.zeros((1, self.module.side, self.module.side, 3))
        return self.module.init(jax.random.key(0), pictures)

    def weights(self) -> Params:
        """Raises: UserError, the folder does not hold them."""
        return self._weights

    @functools.cached_property
    def _weights(self) -> Params:
        if not self.folder:
            return jax.tree.map(np.asarray, nn.unbox(jax.jit(self.fresh)()))
        refuse(self.problems(), f"'{self.folder}'")
        return {"params": read(self.folder, self.module.depth)}

    def problems(self) -> list[str]:
        if not self.folder:
            return []
        try:
            there = module_of(json.loads(Path(self.folder, "config.json").read_text()))
        except (OSError, ValueError) as error:
            return [f"'{self.folder}' holds no CLIP that can be read: {error}."]
        names = [f.name for f in dataclasses.fields(there) if f.name not in (*HIDDEN, "dtype")]
        return [
            f"'{self.folder}' holds a tower whose {name} is {found}, not {wanted}."
            for name in names
            if (found := getattr(there, name)) != (wanted := getattr(self.module, name))
        ]

    def encode(
        self, params: Params, pictures: Float[Array, "m h w c"]
    ) -> Float[Array, "m features"]:
        return cast(Array, self.module.apply(params, self.prepare(pictures)))

    def prepare(self, pictures: Float[Array, "m h w c"]) -> Float[Array, "m side side c"]:
        """What the tower sees of them."""
        m, h, w, c = pictures.shape
        square, side = min(h, w), self.module.side
        top, left = (h - square) // 2, (w - square) // 2
        middle = pictures[:, top : top + square, left : left + square]
        small = jax.image.resize(middle, (m, side, side, c), "cubic")
        return (jnp.clip((small + 1) / 2, 0, 1) - jnp.array(self.mean)) / jnp.array(self.std)


# What a `config.json` leaves out.
USUAL = {
    "image_size": 224, "patch_size": 32, "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}  # fmt: skip


def module_of(config: Mapping[str, Any]) -> VisionTower:
    """The tower that a `config.json` describes, of the whole CLIP or of its vision model alone.

    Raises: ValueError, it describes another model.
    """
    if config.get("model_type") not in ("clip", "clip_vision_model"):
        raise ValueError(f"its model_type is {config.get('model_type')}")
    vision = USUAL | config.get("vision_config", config)
    return VisionTower(
        side=vision["image_size"], patch=vision["patch_size"], width=vision["hidden_size"],
        depth=vision["num_hidden_layers"], heads=vision["num_attention_heads"],
        hidden=vision["intermediate_size"], activation=vision["hidden_act"],
        features=config.get("projection_dim", 512), eps=vision["layer_norm_eps"],
    )  # fmt: skip


# Ours -> theirs.
PARTS = {
    "patch": "vision_model.embeddings.patch_embedding",
    "norm_in": "vision_model.pre_layrnorm",
    "norm_out": "vision_model.post_layernorm",
    "out": "visual_projection",
}
BLOCK_PARTS = {
    "attention_norm": "layer_norm1",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "mlp_norm": "layer_norm2",
    "mlp/up": "mlp.fc1",
    "mlp/down": "mlp.fc2",
}


def read(folder: str, depth: int) -> Params:
    """Parameters of a `VisionTower` of so many blocks. Raises: UserError, one is not there."""
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safetensors.safe_open(file, framework="flax") as opened:  # which knows bfloat16
            names = [name for name in opened.keys() if name.startswith("vis")]  # noqa: SIM118
            tensors |= {name: np.asarray(opened.get_tensor(name)) for name in names}
    embeddings = "vision_model.embeddings"
    try:
        found: dict[str, Any] = {
            "class": tensors[f"{embeddings}.class_embedding"],
            "place": tensors[f"{embeddings}.position_embedding.weight"],
            **{ours: _layer(tensors, theirs) for ours, theirs in PARTS.items()},
        }
        layers = [
            {ours: _layer(tensors, f"vision_model.encoder.layers.{index}.{theirs}")
             for ours, theirs in BLOCK_PARTS.items()}
            for index in range(depth)
        ]  # fmt: skip
    except KeyError as error:
        raise UserError(f"'{folder}' lacks the tensor {error}.") from None
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
    found["blocks"] = traverse_util.unflatten_dict(stacked, sep="/")
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), found)


def _layer(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    weight = tensors[f"{name}.weight"]
    if weight.ndim == 1:
        return {"scale": weight, "bias": tensors[f"{name}.bias"]}
    # A convolution of patches (out, c, h, w) is a linear layer of theirs, flattened c fastest.
    kernel = weight.T if weight.ndim == 2 else weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))
    bias = {"bias": tensors[f"{name}.bias"]} if f"{name}.bias" in tensors else {}
    return {"kernel": kernel, **bias}
