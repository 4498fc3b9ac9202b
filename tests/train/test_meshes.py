"""A checkpoint goes on with any other mesh: the bytes are the same, and so are the next losses."""

import jax
import pytest

from tests.laws.test_sharding import make_run
from vdm_jax.parallel.place import row_share
from vdm_jax.train.checkpoint import Checkpoints
from vdm_jax.train.digest import digest
from vdm_jax.train.feed import to_device
from vdm_jax.train.program import make_program
from vdm_jax.train.state import TrainState

MESHES = {
    8: {"data": 2, "fsdp": 2, "tensor": 2}, 4: {"fsdp": 4}, 2: {"data": 2}, 1: {"data": 1}
}  # fmt: skip


def program(manifest, devices):
    run = make_run(manifest, "all" if devices == 8 else "fsdp", MESHES[devices])
    return run, make_program(run, jax.devices()[:devices])


@pytest.mark.slow
def test_through_8_4_2_1_and_back(manifest, tmp_path):
    run, eight = program(manifest, 8)
    batches = run.data.batches(0)
    arrays = [next(batches).arrays for _ in range(3)]
    batches.close()

    def go(program, state, batch):
        state, metrics = program.step(state, to_device(batch, program.batch_sharding))
        return state, float(metrics["loss"])

    state, _ = go(eight, eight.init(), arrays[0])
    truth = digest(state.items())
    losses = []
    with Checkpoints(tmp_path / "run", keep=9) as checkpoints:
        for number, devices in enumerate((4, 2, 1, 2, 4, 8)):
            checkpoints.save(number, state.items(), {}, wait=True)
            _, here = program(manifest, devices)
            state = TrainState.of(checkpoints.restore(number, here.abstract.items()))
            assert digest(state.items()) == truth
            largest = max(jax.tree.leaves(state.params), key=lambda leaf: leaf.size)
            assert len(largest.sharding.device_set) == devices
            if devices in (1, 8):
                after = TrainState.of(checkpoints.restore(number, here.abstract.items()))
                found = []
                for batch in arrays[1:]:
                    after, loss = go(here, after, batch)
                    found.append(loss)
                losses.append(found)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert row_share(eight.mesh) == (0, 1)
