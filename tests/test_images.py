"""Frozen image encoders: the numbers of the models they were saved from, and clear mistakes."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from vdm_jax.config import UserError
from vdm_jax.images import CLIP_MEAN, CLIP_STD, Tower, module_of
from vdm_jax.nets.vision import VisionTower

SIZES = {
    "image_size": 24, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip
TINY = VisionTower(side=16, patch=8, width=8, depth=1, heads=2, hidden=16, features=4)


def save(folder, kind="vision", dtype="float32", **vision):
    """A model of random weights in a folder, and itself."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = SIZES | vision
    if kind == "vision":
        config = transformers.CLIPVisionConfig(**sizes, projection_dim=12)
        model = transformers.CLIPVisionModelWithProjection(config)
    else:
        text = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16,
                "num_hidden_layers": 1, "num_attention_heads": 2}  # fmt: skip
        config = transformers.CLIPConfig(text_config=text, vision_config=sizes, projection_dim=12)
        model = transformers.CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases begin at 0 and norms at 1
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return model.to(torch.float32).eval()


def tower_of(folder):
    config = json.loads((folder / "config.json").read_text())
    return Tower(module=module_of(config), folder=str(folder))


@pytest.mark.parametrize(
    ("kind", "dtype", "vision"),
    [
        ("vision", "float32", {}),
        ("vision", "bfloat16", {"hidden_act": "gelu", "layer_norm_eps": 1e-3}),
        ("whole", "float32", {}),
    ],
)
def test_a_tower_gives_what_the_model_it_was_saved_from_gives(kind, dtype, vision, tmp_path):
    torch = pytest.importorskip("torch")
    model, tower = save(tmp_path, kind, dtype, **vision), tower_of(tmp_path)
    assert tower.problems() == [] and tower.features == 12
    x = np.random.default_rng(0).normal(size=(3, 24, 24, 3)).astype(np.float32)
    turned = torch.tensor(x.transpose(0, 3, 1, 2))
    with torch.no_grad():
        if kind == "vision":
            wanted = model(turned).image_embeds
        else:
            pooled = model.vision_model(pixel_values=turned).pooler_output
            wanted = model.visual_projection(pooled)
    found = tower.module.apply(tower.weights(), x)
    assert np.abs(wanted.numpy()).max() > 0.5
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (16, 16), (24, 24), (48, 72)])
def test_pictures_are_prepared_as_clip_prepares_them(size):
    """Its recipe, by another library: the shorter side resized by a bicubic filter, the middle cut
    out, bytes normalised. Resizing bytes rounds them; what is cut out first sees less at its edges.
    """
    side, coarse = 24, np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    scaled = (round(size[1] * side / min(size)), round(size[0] * side / min(size)))
    resized = np.asarray(picture.resize(scaled, Image.Resampling.BICUBIC))
    top, left = ((extent - side) // 2 for extent in resized.shape[:2])
    cut = resized[top : top + side, left : left + side]
    wanted = (cut / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    pictures = np.asarray(picture, np.float32)[None] / 127.5 - 1
    (found,) = np.asarray(Tower(module=TINY.clone(side=side)).prepare(pictures))
    inside = slice(2, -2) if size[0] != size[1] else slice(None)
    step = 1 / 255 / min(CLIP_STD)
    np.testing.assert_allclose(found[:, inside], wanted[:, inside], atol=step)
    assert found.shape == wanted.shape


def test_drawn_weights_are_the_same_ones_everywhere():
    one, other = Tower(module=TINY), Tower(module=TINY)
    assert one == other and hash(one) == hash(other)
    jax.tree.map(np.testing.assert_array_equal, one.weights(), other.weights())
    rng = np.random.default_rng(0)
    made = one.encode(one.weights(), rng.uniform(-1, 1, (2, 20, 16, 3)).astype(np.float32))
    assert made.shape == (2, 4) and np.abs(made[0] - made[1]).max() > 1e-2


def test_what_a_config_leaves_out_is_as_its_library_has_it():
    usual = pytest.importorskip("transformers").CLIPVisionConfig().to_dict()
    assert module_of({"model_type": "clip_vision_model"}) == module_of(usual)
    assert (
        module_of({"model_type": "clip", "vision_config": usual, "projection_dim": 8}).side == 224
    )


def test_a_folder_that_does_not_fit_is_said(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    (missing,) = Tower(module=TINY, folder=str(folder)).problems()
    assert "holds no CLIP that can be read" in missing and "config.json" in missing
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    assert "its model_type is t5" in Tower(module=TINY, folder=str(folder)).problems()[0]
    vision = {"image_size": 16, "patch_size": 8, "hidden_size": 8, "num_hidden_layers": 2,
              "num_attention_heads": 2, "intermediate_size": 16}  # fmt: skip
    said = {"model_type": "clip", "vision_config": vision, "projection_dim": 4}
    (folder / "config.json").write_text(json.dumps(said))
    tower = Tower(module=TINY, folder=str(folder))
    (depth,) = tower.problems()
    assert "whose depth is 2, not 1" in depth
    with pytest.raises(UserError, match="whose depth is 2, not 1"):
        tower.weights()
    deep = dataclasses.replace(tower, module=TINY.clone(depth=2))
    assert deep.problems() == []
    with pytest.raises(UserError, match=r"lacks the tensor .*class_embedding"):
        deep.weights()


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"patch": 5}, "needs a patch"), ({"heads": 3}, "needs a patch"),
     ({"activation": "relu"}, "'quick_gelu' or 'gelu'")],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_said(changes, said):
    with pytest.raises(UserError, match=said):
        jax.eval_shape(Tower(module=TINY.clone(**changes)).fresh)
