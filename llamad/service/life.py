"""One time that the router has a model loaded: checked, planned, supervised, until it is unloaded or has failed."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from llamad.clock import Clock
from llamad.config.loaded import Loaded
from llamad.errors import ExitCode, LlamadError
from llamad.hardware.nvml import Nvml
from llamad.ledger.booking import Booking
from llamad.ledger.ledger import Ledger
from llamad.service.background import BackgroundPlanner
from llamad.service.checks import require_usable
from llamad.service.engine import ServerEngine
from llamad.service.facts import CACHE_NAME, FactsReader, are_replaced
from llamad.service.ground import MachineGround
from llamad.service.lane_front import LaneFront
from llamad.service.paths import Paths
from llamad.service.planner import SLOTS
from llamad.service.reporter import DaemonReporter
from llamad.supervision.child import ProcessSpawner
from llamad.supervision.ground import GroundWatch
from llamad.supervision.launch import Launch, Seams
from llamad.supervision.learned import FILE_NAME
from llamad.supervision.supervisor import Supervisor
from llamad.threads import in_thread

if TYPE_CHECKING:
    from llamad.engine.log import Observed


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
    definitions: Callable[[], Sequence[Loaded]]
    """All that are on disk, as they were read last. Any thread may call it."""


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

    @property
    def serves(self) -> bool:
        """Whether it passes requests on."""
        ...

    def state_changed(self) -> None:
        """Its supervisor has another state."""
        ...

    def stop(self) -> None:
        """Finish the requests in flight, end llama-server, and let `run` return."""
        ...

    async def check(self, loaded: Loaded) -> bool:
        """Raise LlamadError for a definition that cannot be used; whether its files are others than those that were
        loaded.
        """
        ...

    def adopt(self, loaded: Loaded) -> None:
        """Use a definition that asks for no other llama-server."""
        ...

    def renew(self, loaded: Loaded) -> None:
        """Go on with another definition, or try again with the same. For what does not serve."""
        ...

    async def reload(self, loaded: Loaded, changed: str, *, replaced: bool) -> bool:
        """Put another definition into force; return when it serves. Raises LlamadError where the old one serves on, or
        again. False: the life has ended before.
        """
        ...

    def remark(self, topic: str, text: str) -> None:
        """See `Supervisor.remark`."""
        ...

    def observed(self) -> Observed | None:
        """What its llama-server says of its buffers."""
        ...

    async def free_bytes(self, launch: Launch) -> Mapping[str, int]:
        """See `Planner.free_bytes`."""
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
        self._read = FactsReader(seams.paths.cache / CACHE_NAME)
        self._supervisor: Supervisor | None = None
        self._planner: BackgroundPlanner | None = None
        self._remarks: dict[str, str] = {}
        self._ground: GroundWatch | None = None
        self._reloads: set[asyncio.Task[None]] = set()

    @property
    def serves(self) -> bool:
        return self._supervisor is not None and self._supervisor.state.serves and not self.is_leaving

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

    async def check(self, loaded: Loaded) -> bool:
        return await in_thread(self._check, loaded)

    def adopt(self, loaded: Loaded) -> None:
        self._loaded = loaded
        if self._supervisor is not None:
            self._supervisor.adopt(loaded)

    def renew(self, loaded: Loaded) -> None:
        self._loaded = loaded
        if self._supervisor is not None and not self.is_leaving:
            task = asyncio.create_task(self._renew(self._supervisor, loaded))
            self._reloads.add(task)
            task.add_done_callback(self._reloaded)

    async def reload(self, loaded: Loaded, changed: str, *, replaced: bool) -> bool:
        assert self._supervisor is not None
        task = asyncio.ensure_future(self._supervisor.reload(loaded, changed, replaced=replaced))
        self._reloads.add(task)
        await asyncio.wait({task})
        self._reloads.discard(task)
        if task.cancelled():
            return False
        task.result()
        return True

    def remark(self, topic: str, text: str) -> None:
        self._remarks[topic] = text
        if self._supervisor is not None:
            self._supervisor.remark(topic, text)

    def observed(self) -> Observed | None:
        return self._planner.observed() if self._planner is not None else None

    async def free_bytes(self, launch: Launch) -> Mapping[str, int]:
        return await self._planner.free_bytes(launch) if self._planner is not None else {}

    async def run(self) -> ExitCode:
        seams, prepared = self._seams, None
        while prepared is not self._loaded and not self.is_leaving:
            prepared = self._loaded
            await in_thread(self._prepare, prepared)
        if self.is_leaving:
            return ExitCode.OK
        booking = Booking(self._ledger, seams.nvml.held)
        self._planner = planner = BackgroundPlanner(
            seams.paths, seams.reporter, self._read, seams.nvml, None, booking, expected=seams.always
        )
        acts = Seams(planner, ServerEngine(seams.paths.cache / SLOTS), seams.front, seams.reporter)
        spawner = ProcessSpawner(None, lambda: (*self._ledger.lease_fds, *planner.second.lease_fds))
        self._supervisor = supervisor = Supervisor(self._loaded, acts, spawner, self._clock, parks=True)
        for topic, text in self._remarks.items():
            supervisor.remark(topic, text)
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

    def _prepare(self, loaded: Loaded) -> None:
        """Check the definition, and begin with what the unit learned where there is nothing of our own. Blocking."""
        own, other = self._seams.paths.state / FILE_NAME, self._seams.unit_state / FILE_NAME
        if not own.exists() and other.exists():
            with contextlib.suppress(OSError):  # it only saves learning it again
                shutil.copyfile(other, own)
        self._require_usable(loaded)

    def _check(self, loaded: Loaded) -> bool:
        self._require_usable(loaded)
        launch = self._supervisor.launch if self._supervisor is not None else None
        return are_replaced(launch, loaded, self._read)

    def _require_usable(self, loaded: Loaded) -> None:
        require_usable(
            loaded,
            self._read,
            self._seams.config_root,
            credential_present=self._seams.paths.credential(loaded.name) is not None,
            sandboxed=self._sandboxed,
            neighbours=self._seams.definitions(),
        )

    async def _renew(self, supervisor: Supervisor, loaded: Loaded) -> None:
        with contextlib.suppress(LlamadError):  # the supervisor has told it: nothing else served
            await supervisor.reload(loaded)

    def _reloaded(self, task: asyncio.Task[None]) -> None:
        self._reloads.discard(task)
        if not task.cancelled() and (error := task.exception()):
            raise error  # a bug: the loop's exception handler ends the router
