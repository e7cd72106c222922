"""How edits of a folder of definitions come into force in the router: a hang-up or the watch asks, one reading at a
time, the last contents win. Each model that has changed is told, and no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llamad.clock import Clock
from llamad.config.changes import differing
from llamad.config.definition import HostSettings
from llamad.config.loaded import Loaded
from llamad.config.watch import Watch
from llamad.config.watched import AllDefinitions
from llamad.errors import LlamadError
from llamad.front.keys import KeySet
from llamad.service.definitions import Read, changed, host_keys, load_host, read_again, read_all
from llamad.service.keys import key_files, new_in
from llamad.service.move import Move, Relay, carry_over, place_of
from llamad.service.notify import Notifier
from llamad.service.reloads import CONFIG_READ_S, QUIET_S, raise_bug, tell_blind
from llamad.service.resident import Resident
from llamad.service.router_notify import RouterReporter
from llamad.service.router_paths import RouterPaths
from llamad.service.sockets import Listening
from llamad.threads import in_thread, in_time

READ_EACH_S = 1.0
"""More time to read for each model: headers of files that are somewhere else now."""
_OWN = frozenset(
    "listen listen_mode insecure api_keys_file tls_cert tls_key allowed_hosts resident_s unit_grace_s watch".split()  # noqa: SIM905
)
"""The keys of `[host]` that are the router's."""


class Models(Protocol):
    """The router."""

    residents: dict[str, Resident]

    def add(self, read: Read) -> None:
        """Have one more model."""
        ...

    def remove(self, name: str) -> None:
        """Have a model no more."""
        ...

    def use_host(self, host: HostSettings, keys: KeySet) -> None:
        """Use other settings, and other keys for the address, from now on."""
        ...

    def look_again(self) -> None:
        """Who serves what may be another matter now."""
        ...

    def reloaded(self) -> None:
        """A reload that somebody waits for is over."""
        ...


@dataclass
class AddressInForce:
    """The router's own address: its settings, its keys, and what it listens on."""

    host: HostSettings
    keys: KeySet
    listening: Listening
    relay: Relay
    """Who accepts there."""


@dataclass(frozen=True)
class _Found:
    """What a reading gave. `keys`: None where those of the address cannot be had, for the reason that is given."""

    host: HostSettings
    keys: KeySet | None
    problem: LlamadError | None
    reads: dict[str, Read]


class RouterReloads:
    """See the module. Everything is called on the loop."""

    def __init__(
        self,
        root: Path,
        paths: RouterPaths,
        reporter: RouterReporter,
        notifier: Notifier,
        clock: Clock,
        quiet_s: float = QUIET_S,
    ) -> None:
        """`quiet_s`: how long the watch waits at first."""
        self.reads: dict[str, Read] = {}
        """What was read last of each definition. Another object after each reading: others look at it in threads."""
        self.trouble = ""
        """What keeps the host's settings on disk from being in force."""
        self._root = root
        self._paths = paths
        self._reporter = reporter
        self._notifier = notifier
        self._clock = clock
        self._quiet_s = quiet_s
        self._subject = AllDefinitions(root, lambda: self.reads, self._key_files)
        self._host_files: tuple[str, ...] = ()
        self._digest = ""
        self._again = self._hung_up = self._begun = False
        self._waited = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._watcher: Watch | None = None
        self._watch: asyncio.Task[None] | None = None

    async def begin(self, models: Models, address: AddressInForce) -> None:
        """Read all definitions for the first time, add them, and watch from now on."""
        self._models, self._address = models, address
        self.reads = await in_thread(self._read_first)
        for read in self.reads.values():
            models.add(read)
        self._watch_or_not()
        self._begun = True
        if self._again:
            self._ask()

    def definitions(self) -> list[Loaded]:
        """Those on disk that can be used, as they were read last. Any thread may call it."""
        return [read.loaded for read in self.reads.values() if read.loaded is not None]

    # -- who asks -----------------------------------------------------------------------------------------

    def hang_up(self) -> None:
        """Somebody asked, and systemd waits for the answer. Any number of them end in one reading after the running
        one."""
        self._hung_up = True
        self._ask()

    def edited(self, digest: str) -> None:
        """The files have these contents now. Nothing happens if they were read already."""
        if digest != self._digest:
            self._ask()

    def close(self) -> None:
        """Watch no more; what is on its way comes too late."""
        self._begun = False
        self._stop_watching()
        for task in self._tasks:
            task.cancel()

    def _ask(self) -> None:
        self._again = True
        if self._begun and (self._task is None or self._task.done()):
            self._task = self._start(self._reload_all())

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(raise_bug)
        return task

    # -- the watch ----------------------------------------------------------------------------------------

    def _watch_or_not(self) -> None:
        """As `[host] watch` of what is in force says."""
        if not self._address.host.host.watch:
            self._stop_watching()
        elif self._watch is None:
            self._watcher = Watch(self._subject, self._clock, edited=self.edited, blind=self._blind)
            self._watch = self._start(self._run(self._watcher))
        elif self._watcher is not None:
            self._watcher.hint()  # for files that are named only now

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = self._watcher = None

    async def _run(self, watch: Watch) -> None:
        await self._clock.sleep(self._quiet_s)
        await watch.run(self._digest)

    def _blind(self, error: OSError | ImportError) -> None:
        tell_blind(self._reporter, str(self._root), error)

    def _key_files(self) -> list[str]:
        named = [*key_files(self._address.host.host), *self._host_files]
        for read in self.reads.values():
            named += read.key_files
        return list(dict.fromkeys(named))

    # -- a reload -----------------------------------------------------------------------------------------

    async def _reload_all(self) -> None:
        while self._again:
            asked, self._again, self._hung_up = self._hung_up, False, False
            if asked:
                self._waited += 1
                self._reporter.reloading()
            bound_s = CONFIG_READ_S + READ_EACH_S * len(self.reads)
            try:
                late = self.hang_up if asked else self._ask
                found = await in_time(in_thread(self._read, asked), bound_s, late)
                self.trouble = ""
                await self._take_host(found)
                self._take_models(found.reads, asked)
            except LlamadError as error:
                self._refused(str(error))
            except TimeoutError:
                self._refused(f"reading {self._root} takes longer than {bound_s:g} s")
            self._watch_or_not()
            if asked:
                self._start(self._finish(list(self._models.residents.values())))
            self._models.look_again()

    async def _finish(self, residents: list[Resident]) -> None:
        """Tell systemd when all that was asked for is in force, or refused."""
        for resident in residents:
            await resident.rest()
        self._waited -= 1
        if not self._waited:
            self._models.reloaded()

    def _refused(self, why: str) -> None:
        self.trouble = f"reload refused: {why}"
        self._reporter.reload_refused(why)

    def _read_first(self) -> dict[str, Read]:
        self._digest = self._subject.look().digest
        return read_all(self._root, self._paths)

    def _read(self, asked: bool) -> _Found:
        # The contents before they are judged: what is written meanwhile is another edit.
        self._digest = self._subject.look().digest
        loaded = load_host(self._root)
        problem: LlamadError | None = None
        keys: KeySet | None = None
        try:
            keys = host_keys(loaded, self._root, self._paths)
        except LlamadError as error:
            problem = error
        reads = read_again({} if asked else self.reads, self._root, self._paths)
        return _Found(loaded.settings, keys, problem, reads)

    async def _take_host(self, found: _Found) -> None:
        """The address's own settings, all or nothing: without its keys none of them."""
        address = self._address
        self._host_files = key_files(found.host.host)  # also of what is refused: they may be what is wrong
        if found.keys is None:
            self._refused(str(found.problem))
            return
        before, after = address.host.host, found.host.host
        words = [key for key in differing(before, after, "") if key in _OWN]
        if not words and (new := new_in(found.keys, address.keys)):
            words.append(new)
        try:
            await self._move(found.host, found.keys)
        except LlamadError as error:
            self._refused(str(error))
            return
        address.host, address.keys = found.host, found.keys
        if words:
            self._reporter.applied(", ".join(words))

    async def _move(self, host: HostSettings, keys: KeySet) -> None:
        """Raises what `Move` does; nothing has changed then."""
        address = self._address
        old, new = place_of(address.host.host), place_of(host.host)
        if old == new:
            self._models.use_host(host, keys)
            return
        runtime, public = self._paths.runtime, self._paths.run / "api"
        move = Move(address.listening, old, new, self._notifier, runtime, public)
        await carry_over(move, address.relay, lambda some: self._models.use_host(host, some), keys, address.keys)

    def _take_models(self, reads: dict[str, Read], asked: bool) -> None:
        before, self.reads = self.reads, reads
        different = changed(before, reads)
        for name in self._models.residents.keys() - reads.keys():
            self._models.remove(name)
        for name, read in reads.items():
            resident = self._models.residents.get(name)
            if resident is None:
                self._models.add(read)
            elif asked or name in different:
                resident.change(read, asked=asked)


def troubles(reloads: RouterReloads, residents: Mapping[str, Resident]) -> list[str]:
    """What keeps contents of the folder from being in force, in one line each, a model's with its name."""
    found = [reloads.trouble, *(f"{name}: {one.trouble}" for name, one in residents.items() if one.trouble)]
    return [" ".join(text.split()) for text in found if text]
