"""The last deaths of a model's llama-server, in its state folder: `llamad explain` tells them, also later."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import NamedTuple

from llamad.errors import LlamadError
from llamad.store import read_regular, store_cache
from llamad.threads import in_thread

FILE_NAME = "deaths.json"
MOST_DEATHS = 10
_LIMIT_BYTES = 256 << 10
_LONGEST_TEXT = 1000


class Death(NamedTuple):
    """When, the name of the cause, and the cause in words."""

    at_s: int
    cause: str
    text: str


class DeathLog:
    """Writes them. A death that cannot be written is in the journal all the same."""

    def __init__(self, state: Path) -> None:
        self._folder = state
        self._lock = asyncio.Lock()
        self._writes: set[asyncio.Task[None]] = set()

    def note(self, cause: str, text: str) -> None:
        """Keep one more, off the loop: the next start must not wait for the disk."""
        death = Death(int(time.time()), cause, text[:_LONGEST_TEXT])
        task = asyncio.create_task(self._keep(death))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _keep(self, death: Death) -> None:
        async with self._lock:  # one after the other
            with contextlib.suppress(LlamadError):  # no thread: it may be what the child died of
                await in_thread(keep_death, self._folder, death)


def keep_death(state: Path, death: Death) -> None:
    """Add one to the file. Blocking."""
    try:
        known = read_deaths(state)
    except OSError:
        known = []
    store_cache(state / FILE_NAME, [list(one) for one in [*known, death][-MOST_DEATHS:]])


def read_deaths(state: Path) -> list[Death]:
    """The last ones, the oldest first; what is no death is passed over. Raises OSError for one out of reach."""
    try:
        rows = json.loads(read_regular(state / FILE_NAME, _LIMIT_BYTES))
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError):
        return []
    return [death for row in rows if (death := _death(row))] if isinstance(rows, list) else []


def _death(row: object) -> Death | None:
    match row:
        case [int() as at_s, str() as cause, str() as text] if 0 <= at_s < 1 << 40:
            return Death(at_s, cause, text)
    return None
