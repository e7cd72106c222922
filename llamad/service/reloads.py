"""How a new definition comes into force: a hang-up or the watch asks, one reload at a time, the last content wins."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from llamad.clock import Clock
from llamad.config.changes import changes
from llamad.config.loaded import Loaded
from llamad.config.watch import POLL_S, Watch
from llamad.config.watched import OneDefinition, look, with_keys
from llamad.errors import LlamadError
from llamad.front.keys import KeySet
from llamad.service import in_force
from llamad.service.in_force import TOPIC, InForce
from llamad.service.keys import key_files
from llamad.service.move import Move, Relay
from llamad.threads import in_thread, in_time

CONFIG_READ_S = 10.0
QUIET_S = 2.0
"""How long the watch waits at first: loading what it needs must not cost the first requests anything."""
READY = "ready"
SETTLED = (READY, "stuck")


class Model(in_force.Model, Protocol):
    """The supervisor."""

    @property
    def public_state(self) -> str:
        """Where the model is in its life: `ready` where it serves."""
        ...

    def status_text(self) -> str:
        """The one line of `systemctl status`."""
        ...


class Address(in_force.Address, Relay, Protocol):
    """The relay."""


class Teller(in_force.Teller, Protocol):
    """Journal, systemd and the public status."""

    def reloading(self) -> None:
        """A reload begins."""
        ...

    def still_ready(self, text: str) -> None:
        """It is over."""
        ...


@dataclass(frozen=True)
class Sources:
    """Where a definition and its keys come from. Blocking; each raises LlamadError."""

    load: Callable[[], Loaded]
    keys: Callable[[Loaded], KeySet]
    move: Callable[[Loaded, Loaded], Move]
    """Bind the address of the second beside that of the first. Called on the loop."""
    replaced: Callable[[Loaded], bool] = lambda _loaded: False
    """Whether files of the model are others than those that were loaded."""


class _Found(NamedTuple):
    """What a reload has read."""

    loaded: Loaded
    keys: KeySet
    replaced: bool


class Reloads:
    """All reloads of one model."""

    def __init__(
        self,
        sources: Sources,
        model: Model,
        address: Address,
        teller: Teller,
        clock: Clock,
        keys: KeySet,
        quiet_s: float = QUIET_S,
        read_s: float = CONFIG_READ_S,
    ) -> None:
        """`keys` are in force. `read_s`: how long files may take."""
        self._sources = sources
        self._model = model
        self._address = address
        self._teller = teller
        self._clock = clock
        self._quiet_s = quiet_s
        self._read_s = read_s
        self._force = InForce(model, address, teller, keys)
        self._key_files = key_files(model.loaded.definition)
        self._file: Path = model.loaded.file
        self._judged = model.loaded.digest
        self._gone = False
        self._again = self._hung_up = False
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._watcher: Watch | None = None

    # -- who asks -----------------------------------------------------------------------------------------

    def hang_up(self) -> None:
        """Somebody asked, and systemd waits for the answer. Any number of them end in one reload after the running
        one."""
        self._hung_up = True
        self._ask()

    async def rest(self) -> None:
        """Return when the reloads that were asked for are over."""
        while self._task is not None and not self._task.done():
            await asyncio.wait({self._task})

    def edited(self, digest: str) -> None:
        """The files have these contents now. Nothing happens if they were judged already."""
        if digest != self._judged:
            self._ask()

    def _ask(self) -> None:
        self._again = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._reload_all())
            self._task.add_done_callback(raise_bug)

    def watch(self) -> None:
        """Watch the definition from now on, or no more, as `[host] watch` of what is in force says."""
        if not self._model.loaded.host.watch:
            self.close()
        elif self._watch is None:
            subject = OneDefinition(self._file, self._file.parent, lambda: self._key_files)
            self._watcher = Watch(subject, self._clock, edited=self.edited, blind=self._blind)
            self._watch = asyncio.create_task(self._run(self._watcher))
            self._watch.add_done_callback(raise_bug)

    async def _run(self, watch: Watch) -> None:
        # Where there are files of keys the first look finds them new: they may be, since they were read.
        await self._clock.sleep(self._quiet_s)
        await watch.run(self._judged)

    def close(self) -> None:
        """Watch no more."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = self._watcher = None

    def _blind(self, error: OSError | ImportError) -> None:
        tell_blind(self._teller, str(self._file), error)

    # -- a reload -----------------------------------------------------------------------------------------

    async def _reload_all(self) -> None:
        while self._again:
            hung_up, self._again, self._hung_up = self._hung_up, False, False
            if hung_up:
                self._teller.reloading()
            await self._reload(hung_up)

    async def _reload(self, hung_up: bool) -> None:
        """Where nobody waits, systemd is told of a reload only if there is one to be seen."""
        told = hung_up
        try:
            late = self.hang_up if hung_up else self._ask
            loaded, keys, replaced = await in_time(in_thread(self._read, hung_up), self._read_s, late)
            if self._watcher is not None:
                self._watcher.hint()  # for files that are named only now
            found = changes(self._model.loaded, loaded)
            if (found or replaced) and not told and self._model.public_state == READY:
                told = True
                self._teller.reloading()
            move = self._sources.move, self._address
            await self._force.change(loaded, keys, asked=hung_up, replaced=replaced, move=move)
        except LlamadError as error:
            self._refused(str(error))
        except TimeoutError:
            self._refused(f"reading {self._file} takes longer than {self._read_s:g} s")
        if told and self._model.public_state in SETTLED:  # in all others what comes of it is still to come
            self._teller.still_ready(self._model.status_text())
        if self._watch is not None or (hung_up and self._model.public_state == READY):
            self.watch()

    def _read(self, hung_up: bool) -> _Found:
        # The contents before they are judged or used: what is written meanwhile is another edit.
        seen, self._gone = look(self._file, self._file.parent), not os.path.lexists(self._file)
        self._judged = with_keys(seen, self._key_files).digest
        loaded = self._sources.load()
        named = key_files(loaded.definition)
        self._judged = with_keys(seen, named).digest
        self._key_files = named
        return _Found(loaded, self._sources.keys(loaded), hung_up and self._sources.replaced(loaded))

    def _refused(self, why: str) -> None:
        if not self._gone:
            self._force.refused(why)
            return
        name = self._model.loaded.name
        why = f"{self._file} is gone"
        fix = f"`systemctl disable --now llamad@{name}` ends it; or put the file back"
        self._model.remark(TOPIC, f"{why}, served as before")
        self._teller.event("definition-removed", f"{why}: {name} is served as before", CAUSE=why, FIX=fix)


def tell_blind(teller: in_force.Teller, what: str, error: OSError | ImportError) -> None:
    """Say that edits are found by looking only."""
    limit = "raise fs.inotify.max_user_watches and fs.inotify.max_user_instances"
    fix = limit if isinstance(error, OSError) else "install python3-watchdog"
    why = f"{error}; it is looked at every {POLL_S:g} s instead"
    teller.event("not-watched", f"{what} cannot be watched: {why}", CAUSE=why, FIX=fix)


def raise_bug(task: asyncio.Task[None]) -> None:
    """Hand what a task did not expect to the loop's exception handler now, not when the task is forgotten."""
    if not task.cancelled() and (error := task.exception()):
        raise error
