"""The supervisor's planner: `PlanMaker` off the loop, each time with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from llamad.config.loaded import Loaded
from llamad.errors import BusyError, LlamadError
from llamad.hardware.device import Device, Probe
from llamad.service.checks import FactsReader
from llamad.service.lessons import Lessons
from llamad.service.paths import Paths
from llamad.service.planner import PlanMaker, make_launch, remove_stale
from llamad.service.reporter import DaemonReporter
from llamad.supervision.launch import Launch, needs_no_new_child
from llamad.supervision.learned import LearnedFile
from llamad.supervision.step_down import ENVIRONMENT_BYTES, Failure

if TYPE_CHECKING:
    from llamad.engine.log import Observed

T = TypeVar("T")

PLAN_S = 120.0
BYTES_BACK_S = 10.0
BYTES_BACK_POLL_S = 0.1
FREE_BYTES_S = 1.0


class BackgroundPlanner:
    """Plans, replans, and waits for the memory of a child that ended."""

    def __init__(
        self, paths: Paths, reporter: DaemonReporter, read: FactsReader, nvml: Probe, first: Launch | None
    ) -> None:
        """`first` was planned a moment ago, for the first start. `nvml` is kept open: opening a GPU that nobody
        uses can take seconds.
        """
        self._paths = paths
        self._reporter = reporter
        self._read = read
        self._nvml = nvml
        self._first = first
        self._lessons = Lessons(reporter)
        self._proving: set[asyncio.Task[None]] = set()
        self._learned = LearnedFile(paths.state, self._warn)

    async def plan(self, loaded: Loaded, previous: Launch | None) -> Launch:
        first, self._first = self._first, None
        if first is not None and first.loaded == loaded:
            return first
        what = f"planning {loaded.definition.model}"
        again = (
            previous is not None
            and not self._lessons.pending
            and needs_no_new_child(previous.loaded, loaded)
        )
        if again and previous and await _off_the_loop(self._is_back, loaded, previous, what=what):
            return replace(previous, loaded=loaded)
        launch = await _off_the_loop(self._make, loaded, previous, what=what)
        self._reporter.planned(launch.plan)
        return launch

    def failed(self, failure: Failure) -> None:
        self._lessons.failed(failure)

    def proved(self, launch: Launch, observed: Observed) -> None:
        self._lessons.settled()
        task = asyncio.create_task(self._prove(launch, observed))
        self._proving.add(task)
        task.add_done_callback(self._proving.discard)

    async def _prove(self, launch: Launch, observed: Observed) -> None:
        try:
            await _off_the_loop(
                self._lessons.proved,
                self._maker(launch.loaded),
                launch,
                observed,
                what="keeping what was learned",
            )
        except LlamadError as error:
            self._warn(str(error))

    async def free_bytes(self, launch: Launch) -> dict[str, int]:
        """From NVML alone: other sources take a run of llama-server."""
        uuids = {device.uuid: device.name for device in launch.plan.devices if device.uuid}
        if not any(uuid.startswith(("GPU-", "MIG-")) for uuid in uuids):
            return {}
        try:
            found = await asyncio.wait_for(asyncio.to_thread(self._nvml.devices), FREE_BYTES_S)
        except (TimeoutError, LlamadError):
            return {}
        return {uuids[device.uuid]: device.free_bytes for device in found if device.uuid in uuids}

    def _warn(self, text: str) -> None:
        self._reporter.event("learned-lost", text, CAUSE=text)

    async def check(self, loaded: Loaded, running: Launch) -> None:
        await _off_the_loop(self._check, loaded, running, what=f"planning {loaded.definition.model}")

    def _maker(self, loaded: Loaded) -> PlanMaker:
        return PlanMaker(
            loaded,
            engine=self._paths.engine,
            cache=self._paths.cache,
            read=self._read,
            nvml=self._nvml,
            learned=self._learned,
        )

    def _is_back(self, loaded: Loaded, previous: Launch) -> bool:
        """Whether the memory of the child that just ended can be had again, so that its plan still holds."""
        remove_stale(previous.socket_path)
        wanted = {d.name: d.parts.total_bytes - d.parts.margin_bytes for d in previous.plan.devices}
        return self._wait_for(self._maker(loaded), wanted)

    def _make(self, loaded: Loaded, previous: Launch | None) -> Launch:
        maker = self._maker(loaded)
        if previous is not None and self._lessons.pending and needs_no_new_child(previous.loaded, loaded):
            return self._step_down(maker, loaded, previous)
        self._lessons.drop()
        if previous is not None and not needs_no_new_child(previous.loaded, loaded):
            remove_stale(previous.socket_path)
            self._wait_for(
                maker, {d.name: d.free_bytes - d.parts.margin_bytes for d in previous.plan.devices}
            )
        return make_launch(maker, loaded)

    def _step_down(self, maker: PlanMaker, loaded: Loaded, previous: Launch) -> Launch:
        remove_stale(previous.socket_path)
        before = {d.name: d.free_bytes - ENVIRONMENT_BYTES for d in previous.plan.devices}
        taken = self._lessons.learn(maker, previous, lambda: self._wait_for(maker, before))
        launch = make_launch(maker, loaded)
        if taken is None:
            return launch
        self._lessons.tell(taken, previous, launch)
        return replace(launch, stepped_from=previous.plan.context_tokens)

    def _check(self, loaded: Loaded, running: Launch) -> None:
        """As if the running child were gone: its devices as they were free when it was planned."""
        devices = [
            Device(d.name, d.total_device_bytes, d.free_bytes, uuid=d.uuid, source="returning")
            for d in running.plan.devices
        ]
        self._maker(loaded).make(computed=True, returning=devices)

    def _wait_for(self, maker: PlanMaker, wanted: dict[str, int]) -> bool:
        """Whether the driver shows these free bytes within the deadline: a killed server's come back late."""
        if not wanted:
            return True
        deadline_s = time.monotonic() + BYTES_BACK_S
        while True:
            free = {device.name: device.free_bytes for device in maker.devices()}
            if all(free.get(name, 0) >= size for name, size in wanted.items()):
                return True
            if time.monotonic() > deadline_s:
                return False
            time.sleep(BYTES_BACK_POLL_S)  # in a worker thread; no driver tells when memory returns


async def _off_the_loop(work: Callable[..., T], *args: object, what: str) -> T:
    """Run blocking work in a thread. A thread that hangs (a dead file server) is left behind, not waited for."""
    try:
        return await asyncio.wait_for(asyncio.to_thread(work, *args), PLAN_S)
    except TimeoutError:
        raise BusyError(
            f"{what} takes longer than {PLAN_S:g} s", why="the file system or the driver does not answer",
            fix="check the mount of the model file and the GPU driver",
        ) from None  # fmt: skip
