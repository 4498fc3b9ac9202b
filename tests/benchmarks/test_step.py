"""The table of a step: nested time is counted once, and every part has its name."""

import pytest

from tests.benchmarks.step import part_of, self_times


def test_time_is_counted_once():
    events = [(0, 100, "loop"), (10, 30, "dot"), (20, 5, "copy"), (50, 40, "dot"), (100, 7, "end")]
    assert dict(self_times(events)) == {"loop": 30, "dot": 65, "copy": 5, "end": 7}
    assert sum(self_times(events).values()) == 107


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("jit(step)/while/body/jvp(Denoiser)/backbone/unit_0/block_0/cross_text/key", "cross-att"),
        ("jit(step)/transpose(jvp(Denoiser))/backbone/unit_1/block_0/attention/q", "self-att"),
        ("jit(step)/while/body/jvp(Denoiser)/backbone/unit_1/block_0/mul", "modulation"),
        ("jit(step)/vmap()/closed_call/dot_general", "muon"),
        ("jit(step)/mul", "optimizer"),
        ("jit(step)/jvp(UNet3D)/down_1/res_0/after_conv_0_0/kernel", "in time"),
        ("jit(step)/jvp(UNet3D)/up_0/res_1/conv_in/mul", "convolutions"),
        ("jit(step)/jvp(UNet3D)/down_1/follow_0/query/dot", "attention in space"),
        ("", "unnamed"),
    ],
)
def test_parts_are_named_by_path(path, part):
    assert part_of(path).startswith(part)
