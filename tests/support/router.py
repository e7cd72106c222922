"""The router with a real front, real definitions and a real ledger; the lives of its models are played.

A played life takes its memory from a common store by the ledger, answers through a fake llama-server, and does what its
definition's folder says.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from llamad.clock import Clock
from llamad.config.loaded import Loaded
from llamad.engine.log import Observed
from llamad.errors import ExitCode, LlamadError
from llamad.ledger.booking import Booking, mark_of
from llamad.ledger.lease import Lease, Phase
from llamad.ledger.ledger import Ledger
from llamad.service.definitions import read_host
from llamad.service.life import LifeSeams
from llamad.service.notify import NoNotifier
from llamad.service.router import Router
from llamad.service.router_notify import RouterReporter
from llamad.service.router_paths import RouterPaths
from llamad.service.sockets import ROUTER_SOCKET, Listening
from llamad.service.turn import wait_for_change
from llamad.supervision.launch import Launch
from tests.support.fake_upstream import FakeUpstream, Handler, answer_ok
from tests.support.fakes import a_plan
from tests.support.http import Answer, ask

PLACE = "GPU-1"


class Signals(NoNotifier):
    """Remembers what systemd would be told."""

    def __init__(self) -> None:
        self.sent: list[dict[str, str | int]] = []

    def send(self, **fields: str | int) -> None:
        self.sent.append(fields)


class Records:
    """A journal in memory."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []

    def record(self, message: str, priority: str, identifier: str, **fields: str) -> None:
        self.events.append((fields.get("LLAMAD_EVENT", ""), fields.get("LLAMAD_MODEL", ""), message))

    def of(self, event: str) -> list[tuple[str, str]]:
        return [(model, message) for name, model, message in self.events if name == event]


class World:
    """What the played lives share: `free_bytes` in all, and what is to happen to each model."""

    def __init__(self) -> None:
        self.total_bytes = 100
        self.needs: dict[str, int] = {}
        self.handlers: dict[str, Handler] = {}
        self.failures: dict[str, list[LlamadError]] = {}
        self.gates: dict[str, asyncio.Event] = {}
        """A life does not become ready before its gate is set."""
        self.reloads: list[str] = []
        """What was put into force by another llama-server, and what is new in it: `one: placement.context`."""
        self.adopted: list[str] = []
        self.renewed: list[str] = []
        self.refusals: dict[str, LlamadError] = {}
        """What a check of a definition finds."""
        self.reload_failures: dict[str, LlamadError] = {}
        self.reload_gates: dict[str, asyncio.Event] = {}
        self.replaced: set[str] = set()
        """Whose files are others than those that were loaded."""
        self.remarks: dict[str, str] = {}
        self.observed: dict[str, Observed] = {}
        self.free: dict[str, int] = {}
        self.lived: dict[str, list[Loaded]] = {}
        """The definitions that the lives of each model had."""
        self.lives: list[str] = []
        self.upstreams: dict[str, FakeUpstream] = {}

    def live(
        self, loaded: Loaded, ledger: Ledger, seams: LifeSeams, clock: Clock, sandboxed: bool
    ) -> PlayedLife:
        return PlayedLife(self, loaded, ledger, seams)


class PlayedLife:
    """See the module."""

    def __init__(self, world: World, loaded: Loaded, ledger: Ledger, seams: LifeSeams) -> None:
        self.is_leaving = False
        self.last_words = ""
        self.state = "waiting"
        self.child_pid = 1
        self._world = world
        self._ledger = ledger
        self._seams = seams
        self._use(loaded)
        self._stopped = asyncio.Event()

    def state_changed(self) -> None:
        """Nothing stands on anything here."""

    def stop(self) -> None:
        self.is_leaving = True
        self._stopped.set()

    @property
    def serves(self) -> bool:
        return self.state == "ready"

    async def check(self, loaded: Loaded) -> bool:
        if refusal := self._world.refusals.get(loaded.name):
            raise refusal
        return loaded.name in self._world.replaced

    def adopt(self, loaded: Loaded) -> None:
        self._world.adopted.append(loaded.name)
        self._use(loaded)

    def renew(self, loaded: Loaded) -> None:
        self._world.renewed.append(loaded.name)
        self._use(loaded)

    async def reload(self, loaded: Loaded, changed: str, *, replaced: bool) -> bool:
        if changed:
            self._world.reloads.append(f"{loaded.name}: {changed}")
        if (gate := self._world.reload_gates.get(loaded.name)) and not await self._either(gate.wait()):
            return False
        if failure := self._world.reload_failures.get(loaded.name):
            raise failure
        self._use(loaded)
        return True

    def _use(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._world.lived.setdefault(loaded.name, []).append(loaded)

    def remark(self, topic: str, text: str) -> None:
        self._world.remarks[self._ledger.name] = text

    def observed(self) -> Observed | None:
        return self._world.observed.get(self._ledger.name)

    async def free_bytes(self, launch: Launch) -> Mapping[str, int]:
        return self._world.free

    async def run(self) -> ExitCode:
        name = self._ledger.name
        self._world.lives.append(name)
        failures = self._world.failures.get(name, [])
        if failures:
            raise failures.pop(0)
        if self.is_leaving:
            return ExitCode.OK
        if not await self._either(self._take_memory()):
            return ExitCode.OK
        self._become("loading")
        gate = self._world.gates.get(name)
        if gate is not None and not await self._either(gate.wait()):
            return ExitCode.OK
        path = self._seams.paths.engine / "llama.sock"
        upstream = await FakeUpstream(path, self._world.handlers.get(name, answer_ok)).start()
        self._world.upstreams[name] = upstream
        self._seams.front.open(Launch(self._loaded, a_plan(), (), {}, str(path), 1, "completion", "fake"))
        self._become("ready")
        await self._stopped.wait()
        self._become("draining")
        await self._seams.front.farewell(self._loaded.definition.limits.drain_s)
        await self._seams.front.close_upstreams()
        await upstream.kill()
        return ExitCode.OK

    def _become(self, state: str) -> None:
        self.state = state
        self._seams.reporter.state(state, state)

    async def _either(self, work: Any) -> bool:
        """Whether the work was done before the stop."""
        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(self._stopped.wait())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        done = tasks[0].done()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return done

    async def _take_memory(self) -> None:
        name = self._ledger.name
        need = self._world.needs.get(name, 1)
        booking = Booking(self._ledger)
        while not self._promised(booking, name, need):
            self._become("waiting")
            await wait_for_change(booking)

    def _promised(self, booking: Booking, name: str, need: int) -> bool:
        with self._ledger.transaction() as transaction:
            taken = sum(lease.promised.get(PLACE, 0) for lease in transaction.others)
            lacks = taken + need - self._world.total_bytes
            first = min((lease.ticket for lease in transaction.others if lease.lacks), default=0)
            own = transaction.own
            ticket = own.ticket if own is not None and own.ticket else transaction.next_ticket()
            if lacks <= 0 and (not first or ticket <= first):
                transaction.put(Lease(name, Phase.SETTLED, transaction.new_id(), {PLACE: need}, pids=(os.getpid(),)))
                return True
            wait = Lease(
                name, Phase.WAITING, "w", wants={PLACE: need}, ticket=ticket, until_s=1e9, pids=(os.getpid(),),
                lacks={PLACE: max(1, lacks)},
            )  # fmt: skip
            if wait != own:
                transaction.put(wait)
            booking.mark = mark_of(transaction)
            return False


class Unit:
    """A `llamad@NAME` that is played: the name's lock, and a socket that answers."""

    def __init__(self, bench: RouterBench, name: str) -> None:
        self.ledger = Ledger(bench.paths.ledger, name)
        self.folder = bench.paths.unit_runtime(name)
        self.upstream: FakeUpstream | None = None

    async def serve(self, handler: Handler = answer_ok) -> None:
        """Listen, with the name taken already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.upstream = await FakeUpstream(self.folder / ROUTER_SOCKET, handler).start()

    async def stop(self) -> None:
        if self.upstream is not None:
            await self.upstream.kill()
        await asyncio.to_thread(self.ledger.release)


class RouterBench:
    """See `routing`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.etc = folder / "etc"
        self.enabled = folder / "wants"
        self.world = World()
        self.journal = Records()
        self.notifier = Signals()
        run = folder / "run"
        self.paths = RouterPaths(run, run / "router", folder / "state", folder / "cache", run / "ledger", None)
        self.address: str | tuple[str, int] = str(folder / "front.sock")
        for made in (self.etc, self.enabled, run):
            made.mkdir()
        self.router: Router

    def define(self, name: str, text: str = "") -> None:
        (self.etc / f"{name}.toml").write_text(f'model = "/m/{name}.gguf"\n{text}\n')

    def enable(self, name: str) -> None:
        (self.enabled / f"llamad@{name}.service").touch()

    def unit(self, name: str) -> Unit:
        return Unit(self, name)

    def state(self, name: str) -> str:
        return self.router.residents[name].state

    def states(self) -> dict[str, str]:
        return {name: resident.state for name, resident in self.router.residents.items()}

    async def until(self, condition: Callable[[], Any], what: str = "it") -> None:
        """The router tells nobody when it has looked: looked at again and again, with a bound."""
        try:
            async with asyncio.timeout(20):
                while not condition():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{what}: {self.states()} {self.journal.events[-5:]}") from None

    async def chat(self, model: str) -> Answer:
        return await ask(self.address, "POST", "/v1/chat/completions", b'{"model": "%b"}' % model.encode())

    async def ask_with_key(self, model: str, key: str) -> Answer:
        body = b'{"model": "%b"}' % model.encode()
        return await ask(self.address, "POST", "/v1/chat/completions", body, Authorization=f"Bearer {key}")

    async def get(self, target: str) -> Answer:
        return await ask(self.address, "GET", target, None)


@contextlib.asynccontextmanager
async def routing(
    prepare: Callable[[RouterBench], None], host: str = "resident_s = 0", *, quiet_s: float = 0.0
) -> AsyncIterator[RouterBench]:
    """A router that runs, over what `prepare` has defined."""
    with tempfile.TemporaryDirectory(prefix="router") as folder:
        bench = RouterBench(Path(folder))
        (bench.etc / "llamad.toml").write_text(f"[host]\n{host}\n")
        prepare(bench)
        _make(bench.paths)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(bench.address)
        sock.listen(64)
        settings, keys = read_host(bench.etc, bench.paths)
        bench.router = Router(
            bench.etc, bench.paths, RouterReporter(bench.journal, bench.notifier), bench.notifier,
            sandboxed=False, enabled_units=bench.enabled, live=bench.world.live, quiet_s=quiet_s,
        )  # fmt: skip
        running = asyncio.ensure_future(bench.router.run(settings, keys, Listening([sock])))
        try:
            await bench.until(lambda: any("READY" in fields for fields in bench.notifier.sent) or running.done(), "ready")
            yield bench
        finally:
            bench.router.stop()
            assert await asyncio.wait_for(running, 30) == 0
            sock.close()
            left = [path.name for path in bench.paths.ledger.iterdir() if not path.name.startswith(".")]
            assert not left, left


def _make(paths: RouterPaths) -> None:
    for folder in (paths.runtime, paths.state, paths.cache, paths.ledger, paths.run / "api", paths.run / "public"):
        folder.mkdir(parents=True, exist_ok=True)
