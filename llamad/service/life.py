"""One time that the router has a model loaded: checked, planned, supervised, until it is unloaded or has failed."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llamad.clock import Clock
from llamad.config.loaded import Loaded
from llamad.errors import ExitCode, LlamadError
from llamad.hardware.nvml import Nvml
from llamad.ledger.booking import Booking
from llamad.ledger.ledger import Ledger
from llamad.service.background import BackgroundPlanner
from llamad.service.checks import require_usable
from llamad.service.engine import ServerEngine
from llamad.service.facts import CACHE_NAME, FactsReader
from llamad.service.ground import MachineGround
from llamad.service.lane_front import LaneFront
from llamad.service.paths import Paths
from llamad.service.planner import SLOTS
from llamad.service.reporter import DaemonReporter
from llamad.supervision.child import ProcessSpawner
from llamad.supervision.ground import GroundWatch
from llamad.supervision.launch import Seams
from llamad.supervision.learned import FILE_NAME
from llamad.supervision.supervisor import Supervisor
from llamad.threads import in_thread


@dataclass(frozen=True)
class LifeSeams:
    """What a life acts through."""

    config_root: Path
    paths: Paths
    reporter: DaemonReporter
    nvml: Nvml
    front: LaneFront
    unit_state: Path
    """Where the model's own unit keeps what it learned."""
    always: Callable[[], frozenset[str]]


class Living(Protocol):
    """A life, as the resident that leads it sees it."""

    is_leaving: bool
    last_words: str
    """Why it has failed."""

    @property
    def state(self) -> str:
        """Of its supervisor."""
        ...

    @property
    def child_pid(self) -> int:
        """0 where there is none."""
        ...

    def state_changed(self) -> None:
        """Its supervisor has another state."""
        ...

    def stop(self) -> None:
        """Finish the requests in flight, end llama-server, and let `run` return."""
        ...

    def reload(self, loaded: Loaded) -> None:
        """Put another definition into force; the old one stays where that cannot be."""
        ...

    async def run(self) -> ExitCode:
        """Load and serve. Raises LlamadError for a model that cannot be used at all."""
        ...


class Life:
    """See the module. `ledger` has the model's name already, and is released by the owner."""

    def __init__(
        self, loaded: Loaded, ledger: Ledger, seams: LifeSeams, clock: Clock, sandboxed: bool
    ) -> None:
        self.is_leaving = False
        self.last_words = ""
        self._loaded = loaded
        self._ledger = ledger
        self._seams = seams
        self._clock = clock
        self._sandboxed = sandboxed
        self._supervisor: Supervisor | None = None
        self._ground: GroundWatch | None = None
        self._reloads: set[asyncio.Task[None]] = set()

    @property
    def state(self) -> str:
        return str(self._supervisor.state) if self._supervisor is not None else "waiting"

    @property
    def child_pid(self) -> int:
        return self._supervisor.child_pid if self._supervisor is not None else 0

    def state_changed(self) -> None:
        if self._ground is not None:
            self._ground.state_changed()

    def stop(self) -> None:
        self.is_leaving = True
        if self._supervisor is not None:
            self._supervisor.stop()

    def reload(self, loaded: Loaded) -> None:
        self._loaded = loaded
        if self._supervisor is not None and not self.is_leaving:
            task = asyncio.create_task(self._reload(self._supervisor, loaded))
            self._reloads.add(task)
            task.add_done_callback(self._reloaded)

    async def run(self) -> ExitCode:
        seams = self._seams
        read = FactsReader(seams.paths.cache / CACHE_NAME)
        await in_thread(self._prepare, read)
        if self.is_leaving:
            return ExitCode.OK
        booking = Booking(self._ledger, seams.nvml.held)
        planner = BackgroundPlanner(
            seams.paths, seams.reporter, read, seams.nvml, None, booking, expected=seams.always
        )
        acts = Seams(planner, ServerEngine(seams.paths.cache / SLOTS), seams.front, seams.reporter)
        spawner = ProcessSpawner(None, lambda: self._ledger.lease_fds)
        self._supervisor = supervisor = Supervisor(self._loaded, acts, spawner, self._clock, parks=True)
        self._ground = GroundWatch(supervisor, acts, MachineGround(seams.paths.cache, seams.nvml), self._clock)
        watching = asyncio.create_task(self._ground.run())
        try:
            code = await supervisor.run()
        finally:
            watching.cancel()
            planner.close()
            for task in self._reloads:
                task.cancel()
        if code is not ExitCode.OK:
            self.last_words = supervisor.status_text().removeprefix("failed: ")
        return code

    def _prepare(self, read: FactsReader) -> None:
        """Check the definition, and begin with what the unit learned where there is nothing of our own. Blocking."""
        paths, loaded = self._seams.paths, self._loaded
        own, other = paths.state / FILE_NAME, self._seams.unit_state / FILE_NAME
        if not own.exists() and other.exists():
            with contextlib.suppress(OSError):  # it only saves learning it again
                shutil.copyfile(other, own)
        require_usable(
            loaded,
            read,
            self._seams.config_root,
            credential_present=paths.credential(loaded.name) is not None,
            sandboxed=self._sandboxed,
            neighbours_file=paths.cache / "neighbours.json",
        )

    async def _reload(self, supervisor: Supervisor, loaded: Loaded) -> None:
        try:
            await supervisor.reload(loaded)
        except LlamadError as error:
            text = f"Reload refused, nothing changed: {error}"
            self._seams.reporter.event("reload-refused", text, CAUSE=str(error))

    def _reloaded(self, task: asyncio.Task[None]) -> None:
        self._reloads.discard(task)
        if not task.cancelled() and (error := task.exception()):
            raise error  # a bug: the loop's exception handler ends the router
