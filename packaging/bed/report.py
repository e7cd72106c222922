"""What the person at the terminal sees: one line a step, with the seconds since the start."""

from __future__ import annotations

import sys
import time

_STARTED = time.monotonic()


class BedError(Exception):
    """The command cannot go on. The text says what is wrong and what to do about it."""

    def __init__(self, text: str, *, exit_status: int = 1) -> None:
        super().__init__(text)
        self.exit_status = exit_status


def elapsed_s() -> float:
    """Seconds since this command began."""
    return time.monotonic() - _STARTED


def say(text: str) -> None:
    """Print one line of progress on stderr, so that stdout stays the command's own."""
    print(f"[{elapsed_s():6.1f} s] {text}", file=sys.stderr, flush=True)
