"""`llamad serve NAME`: the one place that wires everything together, and answers signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamad.clock import SystemClock
from llamad.config.kept import load_kept
from llamad.config.listen import parse_listen
from llamad.config.loaded import Loaded
from llamad.errors import BusyError, ExitCode, LlamadError
from llamad.ledger import NameLock
from llamad.service.background import BackgroundPlanner
from llamad.service.checks import FactsReader, require_usable
from llamad.service.engine import ServerEngine
from llamad.service.front import RelayFront, read_keys
from llamad.service.journal import Journal, make_journal
from llamad.service.notify import Notifier, make_notifier, watchdog_interval_s
from llamad.service.paths import Paths
from llamad.service.reporter import DaemonReporter
from llamad.service.sockets import Listening, listen_on, stored_sockets
from llamad.service.status import StatusFile
from llamad.supervision.child import ProcessSpawner
from llamad.supervision.launch import Seams
from llamad.supervision.supervisor import Supervisor, event_of

CONFIG_READ_S = 10.0
UNDER_SYSTEMD = "INVOCATION_ID"
BUG_EXIT = 1
"""Not one of the final codes: after a bug in llamad itself systemd starts it afresh."""


@dataclass
class Service:
    """One model's daemon, from its sockets to its child."""

    name: str
    config_root: Path
    environ: dict[str, str]
    journal: Journal
    notifier: Notifier
    paths: Paths

    async def run(self) -> ExitCode:
        """Serve until told to stop or failed. Raises LlamadError for what fails before the supervisor runs."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        stored = stored_sockets(self.environ)
        self._read = FactsReader()
        loaded = await asyncio.to_thread(self._load)
        status = StatusFile(self.paths.runtime, self.name)
        self.reporter = DaemonReporter(self.name, self.journal, self.notifier, status)
        lock = NameLock(self.paths.ledger, self.name)
        holder = lock.take()
        if holder:
            raise BusyError(
                f"{self.name} is served already", why=f"by process {holder}", fix="stop that one first"
            )
        listening = self._listen(loaded, stored)
        self.front = RelayFront(loaded, read_keys(loaded, self.paths.credential(self.name)))
        self.supervisor = self._supervisor(loaded)
        self.front.state = lambda: str(self.supervisor.state)
        self.front.child_lives = lambda: self.supervisor.child_pid != 0
        await self.front.start(listening.sockets)
        try:
            self._install_signals(loop)
            watchdog = asyncio.create_task(self._feed_watchdog())
            code = await self.supervisor.run()
            watchdog.cancel()
            if code is ExitCode.OK:
                self.reporter.event("stopped", "Stopped: llama-server is gone")
        finally:
            await self.front.close()
            status.remove()
            self._remove_names(listening)
            lock.release()
        return code

    def _load(self) -> Loaded:
        """The definition, read and checked. Blocking. Raises LlamadError."""
        loaded = load_kept(self.name, self.config_root, self.paths.cache / "definition.json")
        credential = self.paths.credential(self.name) is not None
        sandboxed = UNDER_SYSTEMD in self.environ
        require_usable(
            loaded,
            self._read,
            self.config_root,
            credential_present=credential,
            sandboxed=sandboxed,
            neighbours_file=self.paths.cache / "neighbours.json",
        )
        return loaded

    def _supervisor(self, loaded: Loaded) -> Supervisor:
        planner = BackgroundPlanner(self.paths, self.reporter, self._read)
        engine = ServerEngine()
        seams = Seams(planner, engine, self.front, self.reporter)
        return Supervisor(loaded, seams, ProcessSpawner(), SystemClock())

    def _listen(self, loaded: Loaded, stored: dict[str, Any]) -> Listening:
        listen = parse_listen(loaded.definition.listen or "127.0.0.1:8080")
        mode = int(loaded.definition.listen_mode, 8)
        return listen_on(listen, mode, stored, self.notifier, self.paths.runtime, self.paths.public_sockets)

    def _remove_names(self, listening: Listening) -> None:
        """Outside systemd there is no runtime directory that goes away by itself."""
        if UNDER_SYSTEMD in self.environ:
            return
        for path in (listening.unix_path, self.paths.runtime / "api.sock"):
            if path is not None:
                with contextlib.suppress(OSError):
                    path.unlink()

    # -- signals ----------------------------------------------------------------------------------------

    def _install_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        self._reload_task: asyncio.Task[None] | None = None
        self._reload_again = False
        self._stopping = False

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        self.reporter.stopping()
        self.reporter.event("stopping", "Stopping: requests in flight are finished first")
        self.supervisor.stop()

    def _hang_up(self) -> None:
        """Any number of hang-ups end in one reload after the running one."""
        if self._reload_task and not self._reload_task.done():
            self._reload_again = True
            return
        self._reload_task = asyncio.create_task(self._reload())

    async def _reload(self) -> None:
        self._reload_again = True
        while self._reload_again:
            self._reload_again = False
            self.reporter.reloading()
            text = await self._reload_once()
            if self.supervisor.state == "ready":
                self.reporter.still_ready(text)

    async def _reload_once(self) -> str:
        running = self.supervisor.loaded
        try:
            loaded = await asyncio.wait_for(asyncio.to_thread(self._load), CONFIG_READ_S)
            self._refuse_moves(running, loaded)
            self.front.apply(loaded, read_keys(loaded, self.paths.credential(self.name)))
            await self.supervisor.reload(loaded)
        except LlamadError as error:
            self.front.apply(running, read_keys(running, self.paths.credential(self.name)))
            self.reporter.event(
                "reload-refused", f"Reload refused, nothing changed: {error}", CAUSE=str(error)
            )
            return f"{self.supervisor.status_text()} (reload refused: {error})"
        except TimeoutError:
            self.reporter.event(
                "reload-refused", "Reload refused: the definition cannot be read", CAUSE="time-out"
            )
            return f"{self.supervisor.status_text()} (reload refused: reading the definition takes too long)"
        return self.supervisor.status_text()

    def _refuse_moves(self, old: Loaded, new: Loaded) -> None:
        if (old.definition.listen, old.definition.listen_mode) != (
            new.definition.listen,
            new.definition.listen_mode,
        ):
            raise BusyError(
                "`listen` cannot change while the model is served",
                fix=f"`systemctl restart llamad@{self.name}`",
            )

    # -- the loop's own health ---------------------------------------------------------------------------

    async def _feed_watchdog(self) -> None:
        interval_s = watchdog_interval_s(self.environ)
        while interval_s:
            self.notifier.send(WATCHDOG=1)
            await asyncio.sleep(interval_s)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A bug in a callback or a job: never serve on with a broken rule; systemd starts us afresh."""
        error = context.get("exception")
        trace = "".join(traceback.format_exception(error)) if error else ""
        self.journal.record(f"Internal error: {context['message']}\n{trace}", "crit", "llamad")
        if error is not None:
            loop.stop()


def serve(name: str, config_root: Path, environ: dict[str, str]) -> int:
    """Run the daemon; every expected failure becomes a record, a status line and an exit code."""
    os.umask(0o077)
    journal, notifier = make_journal(environ), make_notifier(environ)
    paths = Paths.of(name, environ)
    try:
        paths.make(under_systemd=UNDER_SYSTEMD in environ)
        return int(asyncio.run(Service(name, config_root, environ, journal, notifier, paths).run()))
    except LlamadError as error:
        report_refusal(name, error, journal, notifier)
        return int(error.exit_code)
    except RuntimeError as error:
        if "Event loop stopped before Future completed" not in str(error):
            raise
        return BUG_EXIT


def report_refusal(name: str, error: LlamadError, journal: Journal, notifier: Notifier) -> None:
    """Say in the journal and in STATUS why the service does not start."""
    reporter = DaemonReporter(name, journal, notifier, StatusFile(Path("/nonexistent"), name))
    reporter.event(
        event_of(error.exit_code), f"Cannot start {name}: {error}", CAUSE=str(error), FIX=error.fix or "-"
    )
    notifier.send(STATUS=f"cannot start: {error}")
