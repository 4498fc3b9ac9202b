"""What the backward pass finds saved of a part of a network; the rest it computes again.

A part names what a policy may keep: `block`, what it was given, and `attention`, what its attention
gave. `offload` keeps both in the host's memory, where long rows fit that the device's cannot hold.
"""

from __future__ import annotations

from typing import TypeVar

import flax.linen as nn
import jax

from vdm_jax.config import UserError, suggestion

SAVE = jax.checkpoint_policies
REMAT = {
    "none": SAVE.everything_saveable,
    "full": SAVE.nothing_saveable,
    "dots": SAVE.dots_with_no_batch_dims_saveable,
    "attention": SAVE.save_only_these_names("attention"),
    "offload": SAVE.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["block", "attention"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
Part = TypeVar("Part", bound=type[nn.Module])


def remembered(part: Part, remat: str, *, prevent_cse: bool = True) -> Part:
    """The module under the policy of that name in `REMAT`.

    Args:
      prevent_cse: false where a scan keeps both passes apart: nothing else then has to keep the
        compiler from computing once what is to be computed twice.

    Raises:
      UserError: there is no such policy.
    """
    if remat not in REMAT:
        raise UserError(f"there is no remat '{remat}'.{suggestion(remat, REMAT)}")
    if remat == "none":
        return part
    return nn.remat(part, policy=REMAT[remat], prevent_cse=prevent_cse)
