"""What only a death needs, loaded while nothing happens: neither a start nor an answer to a death has time for it."""

from __future__ import annotations

import contextlib
from importlib import import_module

from llamad.clock import Clock
from llamad.errors import BusyError
from llamad.threads import in_thread

QUIET_S = 2.0
_NEEDED = "llamad.supervision.inquest"
"""With the tables of causes and their patterns: 30 ms and more."""


async def prepare(clock: Clock) -> None:
    """Load it a moment after the child became ready, beside the loop."""
    await clock.sleep(QUIET_S)
    with contextlib.suppress(BusyError):  # no thread is to be had: then it is loaded when it is needed
        await in_thread(import_module, _NEEDED)
