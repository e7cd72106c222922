"""`llamad serve NAME` from the moment its llama-server was started: wiring, signals, reloads."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

from llamad.clock import SystemClock
from llamad.config.loaded import Loaded
from llamad.errors import ExitCode
from llamad.front.keys import KeySet
from llamad.service.admin import Orders, OwnAnswers
from llamad.service.background import BackgroundPlanner
from llamad.service.deaths import DeathLog
from llamad.service.direct import write_keys
from llamad.service.engine import ServerEngine
from llamad.service.facts import are_replaced
from llamad.service.figures import ModelFigures
from llamad.service.front import RelayFront
from llamad.service.keys import read_all_keys
from llamad.service.move import Move, place_of
from llamad.service.notify import watchdog_interval_s
from llamad.service.planner import SLOTS
from llamad.service.reloads import Reloads, Sources, raise_bug
from llamad.service.start import UNDER_SYSTEMD, Start
from llamad.supervision.child import ProcessSpawner
from llamad.supervision.launch import Seams
from llamad.supervision.supervisor import Supervisor

BUG_EXIT = 1
"""Not one of the final codes: after a bug in llamad itself systemd starts it afresh."""


@dataclass
class Service:
    """One model's daemon, over what `start` has made."""

    start: Start

    def __post_init__(self) -> None:
        self._ground_task: asyncio.Task[None] | None = None

    async def run(self) -> ExitCode:
        """Serve until told to stop or failed. Raises LlamadError for what fails before the supervisor runs."""
        start = self.start
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        self.name, self.reporter = start.name, start.reporter
        self.reporter.on_death = DeathLog(start.paths.state).note
        self.front = RelayFront(start.loaded, start.keys, self.reporter)
        planner = BackgroundPlanner(
            start.paths, self.reporter, start.read, start.nvml, start.first, start.booking
        )
        seams = Seams(planner, ServerEngine(start.paths.cache / SLOTS), self.front, self.reporter)
        spawner = ProcessSpawner(start.process, lambda: (*start.ledger.lease_fds, *planner.second.lease_fds))
        parks = UNDER_SYSTEMD not in start.environ  # systemd starts us again, with the devices that are there then
        self.supervisor = Supervisor(start.loaded, seams, spawner, SystemClock(), parks=parks)
        self._seams = seams
        self.reporter.on_state = self._state_changed
        self.front.state = lambda: self.supervisor.public_state
        self.front.child_lives = lambda: self.supervisor.child_pid != 0
        self.front.tell_keys = lambda loaded, keys: write_keys(
            loaded.definition, keys, start.paths.engine, runs=True
        )
        self.reloads = self._make_reloads()
        self.front.local = self._own_answers(planner)
        self.front.publish(start.paths.runtime)
        await self.front.start(start.listening.sockets, start.listening.inner)
        try:
            self._install_signals(loop)
            watchdog = asyncio.create_task(self._feed_watchdog())
            code = await self.supervisor.run()
            watchdog.cancel()
            if self._ground_task:
                self._ground_task.cancel()
            if code is ExitCode.OK and not self.supervisor.child_pid:
                self.reporter.event("stopped", "Stopped: llama-server is gone")
        finally:
            self.reloads.close()
            await self.front.close()
        return code

    def _make_reloads(self) -> Reloads:
        start = self.start

        def move(old: Loaded, new: Loaded) -> Move:
            return Move(
                start.listening, place_of(old.definition), place_of(new.definition), start.notifier,
                start.paths.runtime, start.paths.public_sockets,
            )  # fmt: skip

        def keys(loaded: Loaded) -> KeySet:
            return read_all_keys(loaded, start.paths.credential)

        def replaced(loaded: Loaded) -> bool:
            return are_replaced(self.supervisor.launch, loaded, start.read)

        sources = Sources(start.load, keys, move, replaced)
        return Reloads(sources, self.supervisor, self.front, self.reporter, SystemClock(), start.keys)

    # -- what it stands on --------------------------------------------------------------------------------

    def _state_changed(self, state: str) -> None:
        if self._ground_task is not None:
            self._ground.state_changed()
        elif state == "ready":  # not before: the start is not to wait for it
            self._watch_ground()
        if state == "ready":
            self.reloads.watch()

    def _watch_ground(self) -> None:
        from llamad.service.ground import MachineGround  # no start has time for them
        from llamad.supervision.ground import GroundWatch

        ground = MachineGround(self.start.paths.cache, self.start.nvml)
        self._ground = GroundWatch(self.supervisor, self._seams, ground, SystemClock())
        self._ground_task = asyncio.create_task(self._ground.run())
        self._ground_task.add_done_callback(raise_bug)

    def _own_answers(self, planner: BackgroundPlanner) -> OwnAnswers:
        """What `/metrics` and `/admin/` tell and do."""
        front, supervisor = self.front, self.supervisor
        figures = ModelFigures(
            self.name, front.relay, front.figures, self.reporter.counts, front.state, lambda: front.launch,
            planner.observed, planner.free_bytes,
        )  # fmt: skip

        def status() -> dict[str, object]:
            text = supervisor.status_text()
            state = supervisor.public_state
            return {"model": self.name, "state": state, "text": text, "child_pid": supervisor.child_pid}

        return OwnAnswers(figures, Orders(front, status, self._reload_for_admin))

    async def _reload_for_admin(self) -> tuple[bool, str]:
        refused = self.reporter.counts.names["reload-refused"]
        self._hang_up()
        await self.reloads.rest()
        return self.reporter.counts.names["reload-refused"] == refused, self.supervisor.status_text()

    # -- signals ----------------------------------------------------------------------------------------

    def _install_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        # Not the loop's own handlers: they lose signals, of any number, while many of one come.
        reactions = {signal.SIGTERM: self._stop, signal.SIGINT: self._stop, signal.SIGHUP: self._hang_up}
        for number, react in reactions.items():
            signal.signal(number, partial(on_signal, loop, react))
        self._stopping = False
        if self.start.hung_up:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._ground_task is not None:
            self._ground.state_changed()  # who reloads has often installed something
        self.reloads.hang_up()

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        self.reloads.close()
        self.reporter.stopping()
        self.reporter.event("stopping", "Stopping: requests in flight are finished first")
        self.supervisor.stop()

    # -- the loop's own health ---------------------------------------------------------------------------

    async def _feed_watchdog(self) -> None:
        interval_s = watchdog_interval_s(self.start.environ)
        while interval_s:
            self.start.notifier.send(WATCHDOG=1)
            await asyncio.sleep(interval_s)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A bug in a callback or a job: never serve on with a broken rule; systemd starts us afresh."""
        error = context.get("exception")
        trace = "".join(traceback.format_exception(error)) if error else ""
        self.start.journal.record(f"Internal error: {context['message']}\n{trace}", "crit", "llamad")
        if error is not None:
            loop.stop()


def on_signal(
    loop: asyncio.AbstractEventLoop, react: Callable[[], None], _number: int, _frame: FrameType | None
) -> None:
    """A handler for `signal.signal` that has `react` called on the loop."""
    with contextlib.suppress(RuntimeError):  # the loop is closed: we are at our end already
        loop.call_soon_threadsafe(react)


def run(start: Start) -> int:
    """Serve; the exit code. Raises LlamadError."""
    try:
        return int(asyncio.run(Service(start).run()))
    except RuntimeError as error:
        if "Event loop stopped before Future completed" not in str(error):
            raise
        return BUG_EXIT
