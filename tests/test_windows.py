"""Windows cover a video once, and what is carried is known before it is needed."""

import pytest

from vdm_jax.config import UserError
from vdm_jax.windows import Windows


@pytest.mark.parametrize("windows", [Windows(frames=4), Windows(frames=4, carry=1)])
@pytest.mark.parametrize("frames", [1, 3, 4, 5, 8, 10, 13])
def test_every_frame_is_new_once(windows, frames):
    cut = windows.cut(frames)
    new = [f for n, window in enumerate(cut) for f in list(window)[windows.carry if n else 0 :]]
    assert new == list(range(frames))
    assert all(len(window) <= windows.frames for window in cut)


def test_rounds_wait_for_what_is_carried():
    carried = Windows(frames=4, carry=2).rounds([4, 8, 5])
    assert [sorted(p.video for p in parts) for parts in carried] == [[0, 1, 2], [1, 2], [1]]
    done = [0, 0, 0]
    for parts in carried:
        for part in parts:
            first = part.frames.start + (2 if part.number else 0)
            assert done[part.video] == first
        for part in parts:
            done[part.video] = part.frames.stop
    assert done == [4, 8, 5]
    (every,) = Windows(frames=4).rounds([4, 8, 5])
    assert len(every) == 1 + 2 + 2


def test_windows_that_bring_nothing_are_refused():
    with pytest.raises(UserError, match="carries 4 of 4"):
        Windows(frames=4, carry=4)
