"""What the router's residents share, and the words for where they stand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from llamad.clock import Clock
from llamad.config.loaded import Loaded
from llamad.errors import BusyError
from llamad.front.several import SwitchFront
from llamad.hardware.nvml import Nvml
from llamad.ledger.ledger import Ledger
from llamad.service.journal import Journal
from llamad.service.life import Life, LifeSeams, Living
from llamad.service.notify import Notifier
from llamad.service.router_paths import RouterPaths
from llamad.threads import in_thread


class Way(StrEnum):
    """Who answers requests for a model. While it is loaded here its supervisor's states are shown instead."""

    STARTING = "starting"
    """The router does not know yet."""
    UNLOADED = "unloaded"
    LOADED = "loaded"
    FORWARDED = "forwarded"
    """Its own unit runs."""
    AWAITED = "awaited"
    """Its own unit is expected: it asked for the model, or was here a moment ago."""
    UNIT_STOPPED = "unit-stopped"
    MANUAL = "manual"
    FAILED = "failed"
    BROKEN = "broken"
    """Its definition cannot be used."""


@dataclass
class House:
    """What all residents share."""

    config_root: Path
    paths: RouterPaths
    front: SwitchFront
    journal: Journal
    notifier: Notifier
    nvml: Nvml
    clock: Clock
    sandboxed: bool
    unit_grace_s: float
    changed: Callable[[], None]
    """Something is to be looked at: who serves what, who makes room."""
    always: Callable[[], frozenset[str]] = field(default=frozenset)
    """The models that plans leave room for."""
    definitions: Callable[[], Sequence[Loaded]] = tuple
    """See `LifeSeams`."""
    live: Callable[[Loaded, Ledger, LifeSeams, Clock, bool], Living] = Life


@dataclass(frozen=True)
class Outside:
    """What is known of a model's own unit."""

    owned: bool = False
    """Somebody serves it, or is about to."""
    wanted: bool = False
    """Somebody asks the router for it."""
    enabled: bool = False


class Timers:
    """Calls to be made later, one of each name at a time."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.TimerHandle] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._running

    def set(self, name: str, delay_s: float, call: Callable[[], None]) -> None:
        """Call it after `delay_s`, instead of what was to be called under this name."""
        self.drop(name)
        self._running[name] = asyncio.get_running_loop().call_later(delay_s, self._ring, name, call)

    def drop(self, name: str) -> None:
        """Do not call it."""
        timer = self._running.pop(name, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Call nothing any more."""
        for name in list(self._running):
            self.drop(name)

    def _ring(self, name: str, call: Callable[[], None]) -> None:
        del self._running[name]
        call()


async def listens(path: str) -> bool:
    """Whether anybody listens on a unix socket."""
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.transport.abort()
    return True


async def release(ledger: Ledger) -> None:
    """Give a model's name and its lease back."""
    try:
        await in_thread(ledger.release)
    except BusyError:  # no thread can be had: the locks go all the same, and others clear away what they guarded
        ledger.close()
