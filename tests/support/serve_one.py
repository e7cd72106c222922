"""`llamad serve` without systemd and without an address: the start, the planner, the ledger and the supervisor are real.

    python3 serve_one.py FOLDER '{"name": ..., "model": ..., "server": ..., "ledger": ..., ...}'

SIGUSR1 has it look at what its child stands on; SIGUSR2 has it reload with the next of `contexts`. It reports its states and events on stdout, a JSON list a line.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from llamad.clock import SystemClock
from llamad.config.definition import Definition, Host, Limits, Placement, Server
from llamad.config.loaded import Loaded
from llamad.errors import LlamadError
from llamad.hardware.driver import driver_upgrade
from llamad.hardware.nvml import Nvml
from llamad.ledger.booking import Booking
from llamad.planning.plan import Plan
from llamad.service.background import BackgroundPlanner
from llamad.service.ground import MachineGround
from llamad.service.journal import NativeJournal
from llamad.service.notify import NoNotifier
from llamad.service.paths import Paths
from llamad.service.start import Start
from llamad.supervision.child import ProcessSpawner
from llamad.supervision.ground import GroundWatch
from llamad.supervision.launch import Launch, Seams
from llamad.supervision.supervisor import Supervisor
from tests.support.fakes import FakeEngine, FakeFront, FakeReporter, ScaledClock


def say(*words: str) -> None:
    os.write(1, json.dumps(words).encode() + b"\n")


class Reporter(FakeReporter):
    """Says everything on stdout."""

    on_state: Callable[[], None] = staticmethod(lambda: None)

    def event(self, name: str, message: str, **fields: str) -> None:
        say("event", name, message)

    def state(self, state: str, text: str) -> None:
        say("state", state, text)
        self.on_state()

    def ledger_problems(self, files: tuple[str, ...]) -> None:
        for file in files:
            say("event", "ledger-problem", file)

    def planned(self, plan: Plan) -> None:
        say("event", "planned", str([device.name for device in plan.devices]))


class ToldPlanner(BackgroundPlanner):
    """Writes the plan where the fake llama-server finds it."""

    folder: Path
    words: dict[str, Any]

    async def plan(self, loaded: Loaded, previous: Launch | None, most_tokens: int | None = None) -> Launch:
        launch = await super().plan(loaded, previous, most_tokens)
        write_plan(self.folder, launch.plan, self.words)
        say("event", "context", str(launch.plan.context_tokens))
        say("event", "overhead", str([device.parts.overhead_bytes for device in launch.plan.devices]))
        return launch

    async def beside(self, loaded: Loaded, running: Launch) -> Launch | None:
        launch = await super().beside(loaded, running)
        say("event", "beside", "room" if launch else "no room")
        if launch is not None:
            write_plan(self.folder, launch.plan, self.words)
        return launch


def write_plan(folder: Path, plan: Plan, words: dict[str, Any]) -> None:
    """`overhead_bytes` is what the driver takes for itself; else as much as was planned."""
    devices = [
        {"overhead": words.get("overhead_bytes", parts.overhead_bytes), "model": parts.weights_bytes, "KV": parts.context_bytes,
         "compute": parts.compute_bytes}
        for parts in (device.parts for device in plan.devices)
    ]  # fmt: skip
    (folder / "plan.json").write_text(json.dumps({"devices": devices, "pause_s": words.get("pause_s", 0.005)}))


class UsedFront(FakeFront):
    """Somebody has an answer whenever one looks."""

    def progress_count(self) -> int:
        self.progressed += 1
        return self.progressed


class ToldStart(Start):
    """With a definition that is in no file."""

    words: dict[str, Any]
    nvml_folder: Path
    """Where the driver's files are."""

    def load(self) -> Loaded:
        words = self.words
        placement = Placement(context=words.get("context", 8192), split_mode=words.get("split_mode", "layer"))
        limits = Limits(start_wait_s=words.get("start_wait_s", 60.0), stop_s=1.0, restarts=3, start_stall_s=36_000.0)
        definition = Definition(model=words["model"], placement=placement, limits=limits, server=Server(cache_ram="0"))
        host = Host(server=words["server"], parallel_loads=words.get("parallel_loads", 100), query_s=30.0)
        return Loaded(words["name"], Path("/x.toml"), definition, host, {}, frozenset({"placement.context"}), (), "1")


def make_start(folder: Path, words: dict[str, Any]) -> ToldStart:
    paths = Paths(folder, folder / "state", folder / "cache", Path(words["ledger"]), folder / "api", None)
    for made in (paths.engine, paths.cache):
        made.mkdir(exist_ok=True)
        made.chmod(0o777)
    start = ToldStart(words["name"], folder, {}, NativeJournal("/nonexistent"), NoNotifier(), paths)
    start.words, start.nvml_folder = words, folder.parent
    start.nvml = Nvml(driver_files=["/"], own_pids=start.ledger.pids)
    start.booking = Booking(start.ledger, start.nvml.held)
    start.reporter = Reporter()  # type: ignore[assignment]
    return start


async def serve(start: ToldStart) -> int:
    words = start.words
    driver = start.nvml_folder
    upgrade = partial(driver_upgrade, [driver / "lib"], driver / "module", driver / "proc")
    planner = ToldPlanner(
        start.paths, start.reporter, start.read, start.nvml, start.first, start.booking, upgrade
    )
    planner.folder, planner.words = start.paths.engine, words
    front = UsedFront() if words.get("used") else FakeFront()
    seams = Seams(planner, FakeEngine(), front, start.reporter)
    spawner = ProcessSpawner(start.process, lambda: (*start.ledger.lease_fds, *planner.second.lease_fds))
    parks = bool(words.get("parks"))
    clock = ScaledClock(words["faster"]) if "faster" in words else SystemClock()
    supervisor = Supervisor(start.loaded, seams, spawner, clock, parks=parks)
    watch = GroundWatch(supervisor, seams, MachineGround(start.paths.cache, start.nvml, upgrade), SystemClock())
    start.reporter.on_state = watch.state_changed
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, supervisor.stop)
    loop.add_signal_handler(signal.SIGUSR1, watch.state_changed)
    reloads: set[asyncio.Task[None]] = set()
    loop.add_signal_handler(signal.SIGUSR2, lambda: reloads.add(asyncio.create_task(reload(start, supervisor))))
    watching = asyncio.create_task(watch.run())
    code = await supervisor.run()
    watching.cancel()
    return int(code)


async def reload(start: ToldStart, supervisor: Supervisor) -> None:
    start.words["context"] = start.words["contexts"].pop(0)
    try:
        await supervisor.reload(start.load(), "placement.context")
    except LlamadError as error:
        say("event", "reload-refused", str(error))


def main() -> int:
    start = make_start(Path(sys.argv[1]), json.loads(sys.argv[2]))
    try:
        start.take_name()
        if start.first is not None:
            write_plan(start.paths.engine, start.first.plan, start.words)
        _ = start.process
        return asyncio.run(serve(start))
    except LlamadError as error:
        say("event", "refused", str(error))
        return int(error.exit_code)
    finally:
        start.finish()


if __name__ == "__main__":
    sys.exit(main())
