"""What can go wrong with data: a mistake that ends the program, or one clip that cannot be used."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """Said in one sentence; `code` is the process's exit code: 2 config, 3 data, 6 storage."""

    def __init__(self, message: str, code: int = 3):
        super().__init__(message)
        self.code = code


class BadClip(Exception):
    """A clip that is skipped in place. `reason` is one word, counted; `detail` says more."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def printable(text: str) -> str:
    """A stranger's file name on one line, control characters and bytes escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text
    )


def suggestion(word: str, words: Iterable[str]) -> str:
    """'Did you mean ...?' where a known word is near, else the list of them."""
    words = sorted(words)
    near = difflib.get_close_matches(word, words, n=1)
    return f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(words)}."
