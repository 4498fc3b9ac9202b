"""What one process finds bad, all know from the next save on, and the log says it once."""

import types

from vdm_jax.train.loop import Loop, Position


class Hosts:
    """Two processes; what the other one says is known."""

    def agree(self, name, work):
        assert name == "bad"
        return [work(), [["c", 7, "truncated"], ["a", 3, "changed"]]]


def test_bad_clips_of_all_processes_are_saved_and_told():
    saved, told = [], []
    loop = Loop(
        run=None, program=None, observers=None, meter=None, profile=None, hosts=Hosts(),
        meta={"origin": {}},
        checkpoints=types.SimpleNamespace(save=lambda *said, **how: saved.append((said, how))),
        writer=types.SimpleNamespace(text=lambda step, words: told.append((step, words))),
    )  # fmt: skip
    state = types.SimpleNamespace(items=lambda: {"params": {}})
    mine = Position(40, (("b", 5, "timeout"), ("a", 3, "changed")))
    after = loop.save(12, state, mine, wait=True)
    every = (("a", 3, "changed"), ("b", 5, "timeout"), ("c", 7, "truncated"))
    assert after == Position(40, every)
    ((step, _, meta), how) = saved[0]
    assert (step, meta["cursor"], meta["bad"], how["wait"]) == (12, 40, list(every), True)
    assert told == [(12, {"bad_clip": "c (example 7): truncated"})]
