"""Being asked to stop: SIGTERM or one SIGINT, seen between steps, by all hosts at the same step.

With several processes JAX's preemption service owns SIGTERM: the notice of any one host reaches
all, and they agree on the next step that none has passed. Alone, a flag does.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """`with Preemption() as stop:` ... `if stop.requested(step): save, leave`.

    A second SIGINT raises KeyboardInterrupt, for who cannot wait. Outside the main thread, where
    Python allows no handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self._asked = False
        self._interrupts = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            self._before = {signal.SIGINT: signal.signal(signal.SIGINT, self._interrupt)}
            if jax.process_count() == 1:
                self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminate)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def requested(self, step: int) -> bool:
        """Whether to save and stop after `step`. With several processes call it at every step."""
        if jax.process_count() == 1:
            return self._asked
        return multihost_utils.reached_preemption_sync_point(step)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += 1
        if self._interrupts > 1:
            raise KeyboardInterrupt
        if jax.process_count() == 1:
            self._asked = True
        else:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX's service carries it to the other hosts
