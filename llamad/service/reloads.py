"""How a new definition comes into force: a hang-up or the watch asks, one reload at a time, the last content wins."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llamad.clock import Clock
from llamad.config.changes import Change, Takes, changes, in_words, takes
from llamad.config.loaded import Loaded
from llamad.config.watch import POLL_S, Watch, look
from llamad.errors import ConfigError, LlamadError
from llamad.front.keys import KeySet
from llamad.service.move import Move, Relay
from llamad.supervision.reload import Reverted
from llamad.threads import in_thread

CONFIG_READ_S = 10.0
QUIET_S = 2.0
"""How long the watch waits at first: loading what it needs must not cost the first requests anything."""
READY = "ready"
SETTLED = (READY, "stuck")
TOPIC = "definition"
"""What its remarks in the status are about."""


class Model(Protocol):
    """The supervisor."""

    loaded: Loaded

    @property
    def public_state(self) -> str:
        """Where the model is in its life: `ready` where it serves."""
        ...

    def status_text(self) -> str:
        """The one line of `systemctl status`."""
        ...

    def remark(self, topic: str, text: str) -> None:
        """Say this in the status, in place of what was said of the topic."""
        ...

    def adopt(self, loaded: Loaded) -> None:
        """Use a definition that asks for no other child."""
        ...

    async def reload(self, loaded: Loaded, changed: str) -> None:
        """Put a definition into force. Raises LlamadError; the old one is in force then."""
        ...


class Address(Relay, Protocol):
    """The relay."""

    def apply(self, loaded: Loaded, keys: KeySet) -> None:
        """Use other settings and keys from now on."""
        ...


class Teller(Protocol):
    """Journal, systemd and the public status."""

    def event(self, name: str, message: str, **fields: str) -> None:
        """One record of the catalog's event `name`."""
        ...

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
    ) -> None:
        """`keys` are in force."""
        self._sources = sources
        self._model = model
        self._address = address
        self._teller = teller
        self._clock = clock
        self._quiet_s = quiet_s
        self._keys = keys
        self._file: Path = model.loaded.file
        self._judged = model.loaded.digest
        self._gone = False
        self._again = self._hung_up = False
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

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
            file = self._file
            watch = Watch(file, file.parent, self._clock, edited=self.edited, blind=self._blind)
            self._watch = asyncio.create_task(self._run(watch))
            self._watch.add_done_callback(raise_bug)

    async def _run(self, watch: Watch) -> None:
        await self._clock.sleep(self._quiet_s)
        await watch.run(self._judged)

    def close(self) -> None:
        """Watch no more."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _blind(self, error: OSError | ImportError) -> None:
        limit = "raise fs.inotify.max_user_watches and fs.inotify.max_user_instances"
        fix = limit if isinstance(error, OSError) else "install python3-watchdog"
        why = f"{error}; it is looked at every {POLL_S:g} s instead"
        self._teller.event("not-watched", f"{self._file} cannot be watched: {why}", CAUSE=why, FIX=fix)

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
            loaded, keys = await asyncio.wait_for(in_thread(self._read), CONFIG_READ_S)
            found = changes(self._model.loaded, loaded)
            if found and not told and self._model.public_state == READY:
                told = True
                self._teller.reloading()
            await self._apply(loaded, keys, found, hung_up)
            self._model.remark(TOPIC, "")
        except Reverted as error:
            self._model.remark(TOPIC, f"reload reverted: {error.why}")
        except LlamadError as error:
            self._refused(str(error))
        except TimeoutError:
            self._refused(f"reading {self._file} takes longer than {CONFIG_READ_S:g} s")
        if told and self._model.public_state in SETTLED:  # in all others what comes of it is still to come
            self._teller.still_ready(self._model.status_text())
        if self._watch is not None or (hung_up and self._model.public_state == READY):
            self.watch()

    def _read(self) -> tuple[Loaded, KeySet]:
        # The contents before they are judged: what is written meanwhile is another edit.
        self._judged, self._gone = look(self._file, self._file.parent).digest, not os.path.lexists(self._file)
        loaded = self._sources.load()
        return loaded, self._sources.keys(loaded)

    async def _apply(self, loaded: Loaded, keys: KeySet, found: tuple[Change, ...], hung_up: bool) -> None:
        running, needs = self._model.loaded, takes(found)
        if running.definition.is_direct or loaded.definition.is_direct:
            if running.definition.front != loaded.definition.front:
                fix = f"systemctl restart llamad@{loaded.name}"
                raise ConfigError("front: who owns the address is settled when the unit starts", fix=fix)
            if keys != self._keys:
                needs |= {Takes.RESTART}  # llama-server reads its key file once
        move = self._sources.move(running, loaded) if Takes.REBIND in needs else None
        if move is None:
            self._address.apply(loaded, keys)
        try:
            if hung_up or Takes.RESTART in needs:
                await self._model.reload(loaded, in_words(found))
            else:
                self._model.adopt(loaded)
        except LlamadError:
            if move is not None:
                move.give_up()
            # With the keys that were in force: their file may be what is wrong now.
            self._address.apply(running, self._keys)
            raise
        if move is not None:
            # What is meant for the new address must not open the old one: an address that all can reach is not
            # served without the keys it had, nor a new one without its own.
            self._address.apply(loaded, keys or self._keys)
            await move.carry_out(self._address)
            self._address.apply(loaded, keys)
        words = in_words(found) or ("the API keys" if keys != self._keys else "")
        self._keys = keys
        if words and Takes.RESTART not in needs:
            self._teller.event(
                "reload-applied", f"In force, without touching llama-server: {words}", CHANGED=words
            )

    def _refused(self, why: str) -> None:
        if self._gone:
            name = self._model.loaded.name
            why = f"{self._file} is gone"
            fix = f"`systemctl disable --now llamad@{name}` ends it; or put the file back"
            self._model.remark(TOPIC, f"{why}, served as before")
            self._teller.event("definition-removed", f"{why}: {name} is served as before", CAUSE=why, FIX=fix)
            return
        self._model.remark(TOPIC, f"reload refused: {why}")
        self._teller.event("reload-refused", f"Reload refused, nothing changed: {why}", CAUSE=why)


def raise_bug(task: asyncio.Task[None]) -> None:
    """Hand what a task did not expect to the loop's exception handler now, not when the task is forgotten."""
    if not task.cancelled() and (error := task.exception()):
        raise error
