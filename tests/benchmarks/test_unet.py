"""Our UNet is diffusers' UNet3DConditionModel, given its weights: where PyTorch is installed."""

import numpy as np
import pytest

pytest.importorskip("diffusers")

from tests.benchmarks.unet import Sizes, carried, modelscope, network, ours, theirs

SIZES = Sizes(width=32, frames=2, side=16)


@pytest.mark.slow
def test_modelscope_s_network_is_theirs():
    model = modelscope(SIZES)
    mine = ours(network(SIZES), carried(model), SIZES, (SIZES.frames,))
    other = theirs(model, SIZES)
    assert mine.parameters == other.parameters
    truth = other.forward()
    np.testing.assert_allclose(mine.forward(), truth, atol=1e-4 * np.abs(truth).max())
