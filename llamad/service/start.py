"""`llamad serve NAME` until its llama-server runs: no event loop yet, and nothing imported that is not needed.

While llama-server loads, the rest of llamad is imported. What fails here ends as a record, a status line and
an exit code.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from llamad.config.apart import Apart
from llamad.config.kept import load_kept
from llamad.config.listen import DEFAULT_LISTEN, parse_listen
from llamad.config.loaded import Loaded
from llamad.errors import BusyError, ChildError, LlamadError
from llamad.front.keys import KeySet
from llamad.hardware.nvml import Nvml
from llamad.ledger.booking import Booking, MustWait
from llamad.ledger.ledger import Ledger
from llamad.service.checks import require_usable
from llamad.service.direct import write_keys
from llamad.service.facts import CACHE_NAME, FactsReader
from llamad.service.journal import Journal, make_journal
from llamad.service.keys import read_all_keys
from llamad.service.notify import Notifier, make_notifier
from llamad.service.paths import Paths
from llamad.service.planner import ENGINE_SOCKETS, PlanMaker, make_launch
from llamad.service.reporter import DaemonReporter
from llamad.service.sharing import Sharing
from llamad.service.sockets import (
    ROUTER_SOCKET,
    SOCKET_FILE,
    Listening,
    listen_for_router,
    listen_nowhere,
    listen_on,
    stored_sockets,
)
from llamad.service.status import StatusFile
from llamad.supervision.launch import Launch
from llamad.supervision.learned import LearnedFile
from llamad.supervision.process import Started
from llamad.supervision.process import start as start_process
from llamad.supervision.words import event_of

if TYPE_CHECKING:
    from types import FrameType

UNDER_SYSTEMD = "INVOCATION_ID"
LAST_WORDS_S = 1.0


@dataclass
class Start:
    """What a served model needs, in the order in which it is had."""

    name: str
    config_root: Path
    environ: dict[str, str]
    journal: Journal
    notifier: Notifier
    paths: Paths

    def __post_init__(self) -> None:
        self.read = FactsReader(self.paths.cache / CACHE_NAME)
        self.status = StatusFile(self.paths.runtime, self.name)
        self.reporter = DaemonReporter(self.name, self.journal, self.notifier, self.status)
        self.ledger = Ledger(self.paths.ledger, self.name, self.paths.public_ledger)
        self.nvml = Nvml(own_pids=self.ledger.pids)
        self.booking = Booking(self.ledger, self.nvml.held)
        self.hung_up = False
        """A hang-up came before there was a loop to reload in."""

    def keep_hang_ups(self) -> None:
        """A SIGHUP from now on asks for a reload later; unhandled it would end us in the middle of the start."""
        signal.signal(signal.SIGHUP, self._hang_up)

    def _hang_up(self, _number: int, _frame: FrameType | None) -> None:
        self.hung_up = True

    def take_name(self) -> None:
        """Make sure that nobody else serves the model; the router hands it over. Raises BusyError."""
        try:
            self.ledger.take()
        except BusyError:
            from llamad.service.handover import take_from_router  # seldom

            if not take_from_router(self.ledger, self.notifier, lambda: self.loaded.definition.limits):
                raise

    def load(self) -> Loaded:
        """The definition as it is on disk now, read and checked. Blocking. Raises LlamadError."""
        credential = self.paths.credential(self.name) is not None
        sandboxed = UNDER_SYSTEMD in self.environ
        with Apart() as judge:
            kept = self.paths.cache / "definition.json"
            loaded = load_kept(self.name, self.config_root, kept, judge=judge)
            require_usable(
                loaded,
                self.read,
                self.config_root,
                credential_present=credential,
                sandboxed=sandboxed,
                neighbours_file=self.paths.cache / "neighbours.json",
                judge=judge,
            )
        return loaded

    @cached_property
    def loaded(self) -> Loaded:
        """The definition that this start is for."""
        return self.load()

    @cached_property
    def keys(self) -> KeySet:
        """Its API keys, those of the admin, and its certificate."""
        return read_all_keys(self.loaded, self.paths.credential)

    @cached_property
    def listening(self) -> Listening:
        """Its sockets: systemd's stored ones, or new ones."""
        definition = self.loaded.definition
        listen = parse_listen(definition.listen or DEFAULT_LISTEN)
        mode = int(definition.listen_mode, 8)
        stored = stored_sockets(self.environ)
        inner = listen_for_router(stored, self.notifier, self.paths.runtime)
        if definition.is_direct:
            outer = listen_nowhere(stored, self.notifier)
        else:
            outer = listen_on(listen, mode, stored, self.notifier, self.paths.runtime, self.paths.public_sockets)
        outer.inner.append(inner)
        return outer

    @cached_property
    def first(self) -> Launch | None:
        """The first plan, as a command, its bytes promised; None where it must wait: with the loop, that is."""
        write_keys(self.loaded.definition, self.keys, self.paths.engine)
        self.booking.start_wait_s = self.loaded.definition.limits.start_wait_s
        maker = PlanMaker(
            self.loaded,
            engine=self.paths.engine,
            cache=self.paths.cache,
            read=self.read,
            nvml=self.nvml,
            booking=self.booking,
            sharing=Sharing(self.loaded.file.parent, self.paths.cache, self.booking.others),
            learned=LearnedFile(self.paths.state, self._learned_lost),
        )
        try:
            launch = make_launch(maker, self.loaded)
        except MustWait:
            return None
        finally:
            self.reporter.ledger_problems(self.booking.problems)
        self.reporter.planned(launch.plan)
        return launch

    def _learned_lost(self, text: str) -> None:
        self.reporter.event("learned-lost", text, CAUSE=text)

    @cached_property
    def process(self) -> Started | None:
        """The first llama-server, loading; None where it must wait, or where no process could be made."""
        if self.first is None:
            return None
        try:
            started = start_process(self.first.argv, self.first.env, self.ledger.lease_fds)
        except ChildError:
            return None  # no process can be had now: the supervisor tries it again, and says why
        with contextlib.suppress(LlamadError):  # written again when it has settled; until then it counts in full
            self.booking.loading(self.booking.promise_id, started.process.pid)
        return started

    def finish(self) -> None:
        """Take back what others can see. Outside systemd no runtime directory goes away by itself.

        Nothing without the name: what others see then belongs to the process that serves it.
        """
        if not self.ledger.held:
            return
        self.status.remove()
        if UNDER_SYSTEMD not in self.environ and "listening" in self.__dict__:
            engines = (self.paths.engine / name for name in ENGINE_SOCKETS)  # llama-server leaves its own behind
            own = (self.paths.runtime / name for name in (SOCKET_FILE, ROUTER_SOCKET))
            for path in (self.listening.unix_path, *own, *engines):
                if path is not None:
                    with contextlib.suppress(OSError):
                        path.unlink()
        self.ledger.release()


def serve(name: str, config_root: Path, environ: dict[str, str]) -> int:
    """Run the daemon; every expected failure becomes a record, a status line and an exit code."""
    os.umask(0o077)
    # Until the loop answers it: a reload asked for too early must not end the service.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    journal, notifier = make_journal(environ), make_notifier(environ)
    start: Start | None = None
    try:
        paths = Paths.of(name, environ)
        paths.make(under_systemd=UNDER_SYSTEMD in environ)
        start = Start(name, config_root, environ, journal, notifier, paths)
        start.keep_hang_ups()
        start.take_name()
        _ = start.loaded, start.keys, start.listening, start.first, start.process
        from llamad.service.daemon import run  # while llama-server loads

        gc.freeze()  # what is imported by now stays: never look through it again
        gc.enable()
        return run(start)
    except LlamadError as error:
        report_refusal(name, error, journal, notifier)
        return int(error.exit_code)
    finally:
        if start is not None:
            start.finish()
        journal.flush(LAST_WORDS_S)


def report_refusal(name: str, error: LlamadError, journal: Journal, notifier: Notifier) -> None:
    """Say in the journal and in STATUS why the service does not start."""
    reporter = DaemonReporter(name, journal, notifier, StatusFile(Path("/nonexistent"), name))
    reporter.event(
        event_of(error.exit_code), f"Cannot start {name}: {error}", CAUSE=str(error), FIX=error.fix or "-"
    )
    notifier.send(STATUS=f"cannot start: {error}")
