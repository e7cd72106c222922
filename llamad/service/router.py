"""`llamad serve` without a name: all definitions of a folder behind one address.

It decides nothing about a model's life that is not here or in `resident`: who serves which model is read from the
ledger, which also says when memory is needed; what follows is carried out by the residents.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from llamad.clock import Clock, SystemClock
from llamad.config.definition import HostSettings
from llamad.config.listen import parse_listen
from llamad.config.loaded import Loaded
from llamad.errors import LlamadError
from llamad.front.holding import Refusal
from llamad.front.keys import KeySet
from llamad.front.settings import FrontSettings
from llamad.front.several import SwitchFront
from llamad.hardware.nvml import Nvml
from llamad.ledger.handover import Served, forget_requests, look
from llamad.ledger.ledger import Ledger
from llamad.ledger.wake import Watch
from llamad.service.daemon import BUG_EXIT, on_signal
from llamad.service.definitions import Read, read_host
from llamad.service.house import House, Outside
from llamad.service.journal import Journal, make_journal
from llamad.service.life import Life, LifeSeams, Living
from llamad.service.neighbours import ENABLED_UNITS, enabled_names
from llamad.service.notify import Notifier, make_notifier, watchdog_interval_s
from llamad.service.reloads import QUIET_S
from llamad.service.resident import Resident
from llamad.service.router_answers import RouterAnswers
from llamad.service.router_notify import NoRecords, ResidentNotifier, RouterReporter, summary
from llamad.service.router_paths import RouterPaths
from llamad.service.router_reloads import AddressInForce, RouterReloads, troubles
from llamad.service.sockets import Listening, listen_on, stored_sockets
from llamad.service.start import UNDER_SYSTEMD, report_refusal
from llamad.supervision.residency import choose
from llamad.threads import in_thread

LOOK_S = 5.0
"""Nothing tells that a unit was enabled."""
SETTLE_S = 0.02
LINGER_S = 1.0
ROUTER_NAME = "llamad"


class Router:
    """The daemon, over its paths and what listens."""

    def __init__(
        self,
        config_root: Path,
        paths: RouterPaths,
        reporter: RouterReporter,
        notifier: Notifier,
        *,
        sandboxed: bool,
        watchdog_s: float | None = None,
        clock: Clock | None = None,
        enabled_units: Path = ENABLED_UNITS,
        nvml: Nvml | None = None,
        live: Callable[[Loaded, Ledger, LifeSeams, Clock, bool], Living] = Life,
        quiet_s: float = QUIET_S,
    ) -> None:
        """`quiet_s`: how long the watch over the definitions waits at first."""
        self.residents: dict[str, Resident] = {}
        self._config_root = config_root
        self._paths = paths
        self._reporter = reporter
        self._notifier = notifier
        self._sandboxed = sandboxed
        self._watchdog_s = watchdog_s
        self._clock = clock or SystemClock()
        self._enabled_units = enabled_units
        self._live = live
        self._ledger = Ledger(paths.ledger, ROUTER_NAME)
        self._nvml = nvml or Nvml(own_pids=self._ledger.pids)
        self._again = asyncio.Event()
        self._stopping = asyncio.Event()
        self._served = Served(frozenset(), frozenset(), {})
        self._leaving: dict[str, Resident] = {}
        self._reloads = RouterReloads(config_root, paths, reporter, notifier, self._clock, quiet_s)
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_ready = False

    async def run(self, host: HostSettings, keys: KeySet, listening: Listening) -> int:
        """Serve until told to stop; the exit code."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        answers = RouterAnswers(lambda: [resident.figures for resident in self.residents.values()])
        self.front = SwitchFront(_settings(host), keys, NoRecords(), self._clock, self._not_ready, answers)
        self._house = House(
            self._config_root, self._paths, self.front, self._reporter.journal,
            ResidentNotifier(self._notifier), self._nvml, self._clock, self._sandboxed, host.host.unit_grace_s,
            self._again.set, self._always, self._reloads.definitions, self._live,
        )  # fmt: skip
        self.use_host(host, keys)
        self._install_signals(loop)
        await self._reloads.begin(self, AddressInForce(host, keys, listening, self.front))
        await in_thread(forget_requests, self._ledger)
        await self.front.start(listening.sockets)
        self._start(self._watch())
        self._start(self._feed_watchdog())
        await self._stopping.wait()
        await self._stop()
        return 0

    def stop(self) -> None:
        """Finish what was accepted, unload everything, and let `run` return."""
        if not self._stopping.is_set():
            self._reporter.stopping()
            self._stopping.set()

    def reload(self) -> None:
        """Read all definitions again, and try again what has failed."""
        if not self._stopping.is_set():
            self._reloads.hang_up()

    # -- who serves what ------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Look at the ledger when it changes, or when a resident asks for it; and now and then all the same."""
        watch = Watch(self._paths.ledger)
        loop = asyncio.get_running_loop()

        def hear() -> None:
            if watch.read():
                self._again.set()

        if watch.fd >= 0:
            loop.add_reader(watch.fd, hear)
        try:
            while True:
                self._again.clear()
                await self._look()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._again.wait(), LOOK_S)
                await self._clock.sleep(SETTLE_S)
        finally:
            if watch.fd >= 0:
                loop.remove_reader(watch.fd)
            watch.close()

    async def _look(self) -> None:
        try:
            self._served, enabled = await in_thread(self._read_world)
        except LlamadError as error:
            self._reporter.ledger_problem(str(error))
            return
        served = self._served
        for name, resident in self.residents.items():
            owned, wanted, given_up = (name in names for names in (served.owners, served.wanted, served.given_up))
            resident.regard(Outside(owned, wanted, name in enabled, given_up))
        self._make_room()
        self._report()

    def _read_world(self) -> tuple[Served, frozenset[str]]:
        return look(self._ledger), frozenset(enabled_names(self._enabled_units))

    def _make_room(self) -> None:
        """Evict for whoever has waited longest for memory, of those that evicting helps."""
        leases = self._served.leases
        waiting = sorted((lease for lease in leases.values() if lease.lacks), key=lambda lease: lease.ticket)
        holding = {
            name: one
            for name, resident in (self.residents | self._leaving).items()
            if name in leases and (one := resident.residency(dict(leases[name].promised))) is not None
        }
        for lease in waiting:
            others = [one for name, one in holding.items() if name != lease.name]
            decision = choose(lease.lacks, others, self._resident_s)
            for name in decision.evict:
                self.residents[name].unload(f"{lease.name} needs its memory")
            if decision.after_s is not None:
                asyncio.get_running_loop().call_later(decision.after_s + SETTLE_S, self._again.set)
            if decision.evict or any(one.leaving for one in others):
                return  # what comes back is for this one; who is next is looked at then

    def _always(self) -> frozenset[str]:
        return frozenset(name for name, resident in self.residents.items() if resident.is_always)

    def _not_ready(self) -> list[str]:
        return [name for name, resident in self.residents.items() if resident.is_pending]

    def _report(self) -> None:
        if self._stopping.is_set():
            return
        states = [(name, resident.state) for name, resident in self.residents.items()]
        text = summary(self._listen, states, troubles(self._reloads, self.residents))
        self._reporter.status(text)
        if not self._is_ready:
            self._is_ready = True
            self._reporter.ready(text)

    # -- definitions ----------------------------------------------------------------------------------------

    def add(self, read: Read) -> None:
        """Have one more model; one that is just leaving comes back when it is gone."""
        if read.name in self._leaving:
            return
        if read.problem is not None:
            self._reporter.broken(read.name, read.problem)
        self.residents[read.name] = Resident(self._house, read)

    def remove(self, name: str) -> None:
        """Have a model no more: nobody finds it from now on, and it is unloaded when it has answered."""
        resident = self._leaving[name] = self.residents.pop(name)
        self.front.leave(resident.front.lane)
        unknown = Refusal(404, "model_not_found", f"{name} is not defined any more")
        resident.leave(unknown, "its definition is gone")  # at once: nobody is to choose it to make room
        self._start(self._see_off(name, resident, unknown))

    async def _see_off(self, name: str, resident: Resident, unknown: Refusal) -> None:
        await resident.gone()
        drain_s = resident.loaded.definition.limits.drain_s if resident.loaded else 0.0
        await resident.front.farewell(drain_s)  # what was forwarded; what was its own has ended
        await resident.front.close_upstreams()
        resident.front.refuse_with(unknown)
        self.front.remove(resident.front.lane)
        del self._leaving[name]
        if name in self._reloads.reads:
            self.add(self._reloads.reads[name])
        self._again.set()

    def use_host(self, host: HostSettings, keys: KeySet) -> None:
        """Use these settings, and these keys for the address, from now on."""
        self.front.apply(_settings(host), keys)
        self._listen, self._resident_s = str(host.host.listen), host.host.resident_s
        self._house.unit_grace_s = host.host.unit_grace_s

    def look_again(self) -> None:
        """Who serves what may be another matter now."""
        self._again.set()

    def reloaded(self) -> None:
        """A reload that somebody waits for is over: the next report tells so."""
        self._is_ready = False
        self._again.set()

    # -- the end --------------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        """Answer what was accepted, then unload all at once."""
        self._reloads.close()
        residents = [*self.residents.values(), *self._leaving.values()]
        for resident in residents:
            resident.stop_waiting()
        bounds = [one.loaded.definition.limits.drain_s for one in residents if one.loaded is not None]
        drain_s = max(bounds, default=0.0)
        self._notifier.send(EXTEND_TIMEOUT_USEC=int((drain_s + 60.0) * 1e6))
        for task in self._tasks:
            task.cancel()
        watchdog = asyncio.create_task(self._feed_watchdog())
        await self.front.close(drain_s + LINGER_S)
        for resident in residents:
            resident.leave()
        await asyncio.gather(*(resident.gone() for resident in residents))
        watchdog.cancel()
        self._reporter.stopped()

    # -- the loop's own health ------------------------------------------------------------------------------

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            raise error  # a bug: the loop's exception handler ends the router

    def _install_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        reactions = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop, signal.SIGHUP: self.reload}
        for number, react in reactions.items():
            signal.signal(number, partial(on_signal, loop, react))

    async def _feed_watchdog(self) -> None:
        while self._watchdog_s:
            self._notifier.send(WATCHDOG=1)
            await asyncio.sleep(self._watchdog_s)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A bug in a callback or a job: never serve on with a broken rule; systemd starts us afresh."""
        error = context.get("exception")
        trace = "".join(traceback.format_exception(error)) if error else ""
        self._reporter.journal.record(f"Internal error: {context['message']}\n{trace}", "crit", "llamad")
        if error is not None:
            loop.stop()


def _settings(host: HostSettings) -> FrontSettings:
    """The address's own part; each model's limits are those of its definition."""
    limits, listen = host.limits, parse_listen(host.host.listen)
    return FrontSettings(
        name=ROUTER_NAME,
        head_bytes=limits.head_bytes,
        body_bytes=limits.body_bytes,
        replay_bytes=limits.replay_bytes,
        client_idle_s=limits.client_idle_s,
        allowed_hosts=host.host.allowed_hosts,
        check_host=listen.kind == "tcp" and listen.is_local,
    )


def serve(config_root: Path, environ: dict[str, str]) -> int:
    """Run the router; every expected failure becomes a record, a status line and an exit code."""
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    journal, notifier = make_journal(environ), make_notifier(environ)
    under_systemd = UNDER_SYSTEMD in environ
    listening: Listening | None = None
    try:
        paths = RouterPaths.of(environ)
        paths.make()
        host, keys = read_host(config_root, paths)
        listen, mode = parse_listen(host.host.listen), int(host.host.listen_mode, 8)
        listening = listen_on(
            listen, mode, stored_sockets(environ), notifier, paths.runtime, paths.run / "api"
        )
        return asyncio.run(_serve(config_root, paths, journal, notifier, environ, host, keys, listening))
    except LlamadError as error:
        report_refusal(ROUTER_NAME, error, journal, notifier)
        return int(error.exit_code)
    except RuntimeError as error:
        if "Event loop stopped before Future completed" not in str(error):
            raise
        return BUG_EXIT
    finally:
        if listening is not None and listening.unix_path is not None and not under_systemd:
            with contextlib.suppress(OSError):
                listening.unix_path.unlink()


async def _serve(
    config_root: Path,
    paths: RouterPaths,
    journal: Journal,
    notifier: Notifier,
    environ: dict[str, str],
    host: HostSettings,
    keys: KeySet,
    listening: Listening,
) -> int:
    reporter = RouterReporter(journal, notifier)
    router = Router(
        config_root, paths, reporter, notifier,
        sandboxed=UNDER_SYSTEMD in environ, watchdog_s=watchdog_interval_s(environ),
    )  # fmt: skip
    return await router.run(host, keys, listening)
