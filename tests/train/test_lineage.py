"""What may change on resume, and what is refused."""

import pytest

from vdm_jax.config import UserError, from_json, spec, to_json
from vdm_jax.train import lineage
from vdm_jax.train.optim import AdamW, Optimizer, Warmup


def config():
    adam = spec(AdamW, learning_rate=1e-3)
    node = spec(Optimizer, rules=((".*", adam),), schedule=spec(Warmup, steps=3))
    return from_json(to_json(node))


def wrapped(**values):
    top = from_json('{"seed": 0, "steps": 10, "stage": {"denoiser": {"width": 8}}}')
    top.optimizer = config()
    for path, value in values.items():
        with top.ignore_type():
            top.update_from_flattened_dict({path.replace("__", "."): value})
    return top


def test_steps_and_learning_rate_may_change_and_are_named():
    new = wrapped(steps=20)
    new.optimizer.rules = ((".*", spec(AdamW, learning_rate=5e-4)),)
    changed = lineage.check_resume(wrapped(), new, "runs/a")
    assert changed == {"steps": (10, 20), "optimizer.rules[0][1].learning_rate": (1e-3, 5e-4)}


DECODING = (
    '{"decoder": {"seconds": 1, "limits": {"pixels": 1}}, "max_bad_examples": 1, "verify": "size"}'
)


@pytest.mark.parametrize(
    "path", ["decoder.seconds", "decoder.limits.pixels", "max_bad_examples", "verify"]
)
def test_how_files_are_decoded_may_change(path):
    old, new = wrapped(), wrapped()
    old.data, new.data = from_json(DECODING), from_json(DECODING)
    with new.ignore_type():
        new.update_from_flattened_dict({f"data.{path}": 2})
    assert list(lineage.check_resume(old, new, "runs/a")) == [f"data.{path}"]


@pytest.mark.parametrize("field", ["seed", "stage__denoiser__width"])
def test_other_changes_are_refused_by_name(field):
    with pytest.raises(UserError, match=rf"{field.replace('__', '.')}.*--init=runs/a"):
        lineage.check_resume(wrapped(), wrapped(**{field: 99}), "runs/a")


def test_a_new_field_is_a_change():
    new = wrapped()
    new.stage.extra = 1
    with pytest.raises(UserError, match=r"stage\.extra"):
        lineage.check_resume(wrapped(), new, "runs/a")


def test_other_data_is_refused():
    with pytest.raises(UserError, match="manifest"):
        lineage.check_data({"manifest": "a", "seed": 0}, {"manifest": "b", "seed": 0}, "runs/a")
    lineage.check_data({"seed": 0}, {"seed": 0}, "runs/a")
