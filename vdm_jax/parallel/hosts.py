"""Agreement among hosts through JAX's coordination service: timeouts, and no device collectives.

A background thread may not run device collectives (they would interleave with the step's), and a
collective has no timeout. The coordination service has a key-value store that waits with one.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import jax

from vdm_jax.config import UserError

T = TypeVar("T")


class HostError(UserError):
    """Another process failed, or did not answer in time; the message names it."""

    CODE: ClassVar[int] = 77

    def __init__(self, message: str, code: int = CODE):
        super().__init__(message, code)


class Hosts:
    """All processes of a run, as seen from one; of a single process it asks nothing.

    Every process must make the same calls with the same names in the same order per name. One
    object belongs to one thread.
    """

    def __init__(self, prefix: str, *, timeout_s: float = 600.0):
        self.prefix, self.timeout_s = prefix, timeout_s
        self._calls: collections.Counter[str] = collections.Counter()

    @property
    def index(self) -> int:
        return jax.process_index()

    @property
    def count(self) -> int:
        return jax.process_count()

    def agree(self, name: str, work: Callable[[], T]) -> list[T]:
        """Run `work` here and everywhere; its JSON-able results, one per process in their order.

        Nobody returns before everybody has finished.

        Raises:
          HostError: another process failed (with its exit code, where it has one) or was silent
            for `timeout_s`. What fails here is told to the others and raised as it is.
        """
        if self.count == 1:
            return [work()]
        self._calls[name] += 1
        key = f"vdm/{self.prefix}/{name}/{self._calls[name]}"
        failure: Exception | None = None
        try:
            said = json.dumps({"value": work()})
        except Exception as error:
            code = getattr(error, "code", None)
            words: dict[str, Any] = {"error": f"{type(error).__name__}: {error}"[:500]}
            words["code"] = code if isinstance(code, int) else None
            failure, said = error, json.dumps(words)
        client = _client()
        client.key_value_set(f"{key}/{self.index}", said)
        if failure is not None:
            raise failure
        return [self._hear(client, key, process) for process in range(self.count)]

    def _hear(self, client: Any, key: str, process: int) -> Any:
        try:
            answer = client.blocking_key_value_get(f"{key}/{process}", int(self.timeout_s * 1000))
        except Exception as error:  # the service's own error type is not public
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise HostError(
                f"process {process} did not answer '{key}' in {self.timeout_s:g} s ({reason})."
            ) from error
        found = json.loads(answer)
        if "error" in found:
            code = found["code"] if isinstance(found["code"], int) else HostError.CODE
            raise HostError(f"process {process} failed: {found['error']}", code)
        return found["value"]


def _client() -> Any:
    """JAX's coordination client. It has no public name: this function is the only place to mend."""
    from jax._src import distributed

    client = distributed.global_state.client
    if client is None:
        raise HostError("several processes, but jax.distributed.initialize was not called.")
    return client
