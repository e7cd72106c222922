"""The supervisor's planner: `PlanMaker` off the loop, each time with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from llamad.config.changes import needs_no_new_child
from llamad.config.loaded import Loaded
from llamad.errors import BusyError, LlamadError
from llamad.hardware.device import Probe
from llamad.hardware.host import host_memory
from llamad.ledger.booking import Booking, MustWait
from llamad.ledger.lease import Phase
from llamad.service.desk import Desk
from llamad.service.direct import is_told_as_before, remove_stale
from llamad.service.facts import FactsReader, are_replaced
from llamad.service.lessons import Lessons
from llamad.service.lookout import Lookout
from llamad.service.paths import Paths
from llamad.service.planner import SOCKET_NAME, PlanMaker, make_launch
from llamad.service.records import LeaseRecorder
from llamad.service.reporter import DaemonReporter
from llamad.service.second import SecondServer, returning_devices
from llamad.service.sharing import Sharing
from llamad.service.turn import wait_for_change
from llamad.supervision.growth import Offer
from llamad.supervision.launch import Launch
from llamad.supervision.learned import LearnedFile
from llamad.supervision.step_down import ENVIRONMENT_BYTES, Failure
from llamad.threads import in_thread

if TYPE_CHECKING:
    from llamad.engine.log import Observed

T = TypeVar("T")
Upgrade = Callable[[], tuple[str, str] | None]

PLAN_S = 120.0
BYTES_BACK_S = 10.0
BYTES_STILL_S = 3.0
BYTES_BACK_POLL_S = 0.1
QUEUE_EXTENDS_S = 60.0
FREE_BYTES_S = 1.0


class BackgroundPlanner:
    """Plans, replans, and waits for the memory of a child that ended."""

    def __init__(
        self,
        paths: Paths,
        reporter: DaemonReporter,
        read: FactsReader,
        nvml: Probe,
        first: Launch | None,
        booking: Booking,
        upgrade: Upgrade | None = None,
        expected: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """`first` was planned a moment ago, for the first start. `expected` names models that are to be served
        besides those that are enabled: plans leave room for them. `nvml` is kept open: opening a GPU that nobody
        uses can take seconds. `upgrade` is `driver_upgrade` where it is not given.
        """
        self._upgrade = upgrade
        self._expected = expected
        self._booking = booking
        self._leases = LeaseRecorder(booking, reporter)
        self._problems: tuple[str, ...] = booking.problems
        self._launch = first
        self._waits = self._runs = False
        self._planning = threading.Lock()
        self._plans = 0
        self._paths = paths
        self._reporter = reporter
        self._read = read
        self._nvml = nvml
        self._first = first
        self._lessons = Lessons(reporter)
        self._proving: set[asyncio.Task[None]] = set()
        self._lookout = Lookout(booking)
        self._pid = 0
        self._observed: Callable[[], Observed] | None = None
        self._learned = LearnedFile(paths.state, self._warn)
        self._pid = 0
        self.second = SecondServer(booking, reporter)

    async def plan(
        self, loaded: Loaded, previous: Launch | None, most_tokens: int | None = None
    ) -> Launch:
        first, self._first = self._first, None
        if first is not None and first.loaded == loaded:
            return first
        what = f"planning {loaded.definition.model}"
        self._plans += 1
        self._booking.start_wait_s = loaded.definition.limits.start_wait_s
        if previous is not None:
            await _off_the_loop(self._booking.returning, self._booking.promise_id, what="writing the lease")
            await _off_the_loop(self._refuse_upgraded_driver, previous, loaded, what="looking at the driver")
        if self._waits:
            previous = None  # its bytes were awaited before it had to stand in the queue
        again = (
            previous is not None
            and self._is_same(previous, loaded)
            and most_tokens is not None
            and previous.plan.context_tokens <= most_tokens
        )
        number = self._plans
        if previous and again and await _off_the_loop(self._alone, number, self._is_back, loaded, previous, what=what):
            self._launch = replace(previous, loaded=loaded)
            return self._launch
        launch = await self._make_or_wait(loaded, previous, most_tokens, what)
        self._reporter.planned(launch.plan)
        self._launch = launch
        return launch

    async def _make_or_wait(
        self, loaded: Loaded, previous: Launch | None, most_tokens: int | None, what: str
    ) -> Launch:
        """Plan anew; a wait is told once when it begins and once when it has ended well."""
        try:
            work = self._alone, self._plans, self._make
            launch: Launch = await _off_the_loop(*work, loaded, previous, most_tokens, what=what)
            self._tell_problems()
        except MustWait as wait:
            if not self._waits:
                self._waits = True
                text = str(wait)
                self._reporter.event("waiting-for-memory", text[0].upper() + text[1:], CAUSE=text)
            raise
        except LlamadError:
            self._waits = False
            raise
        if self._waits:
            self._waits = False
            self._reporter.event("memory-granted", "The wait is over: the model is loaded now")
        return launch

    def _alone(self, number: int, work: Callable[..., T], *args: object) -> T:
        """Make a plan when the one before has ended, though nobody may wait for it any more: it would promise, and take
        away the socket of, what this one has started by then. One that hangs is not waited for until the deadline.
        """
        alone = self._planning.acquire(timeout=PLAN_S / 2)
        try:
            if number != self._plans:
                raise BusyError("another plan was asked for meanwhile")
            return work(*args)
        finally:
            if alone:
                self._planning.release()

    def _tell_problems(self) -> None:
        if self._booking.problems != self._problems:
            self._problems = self._booking.problems
            self._reporter.ledger_problems(self._problems)

    async def turn(self) -> None:
        self._reporter.extend(QUEUE_EXTENDS_S)
        await wait_for_change(self._booking)

    def spawned(self, pid: int, observed: Callable[[], Observed]) -> None:
        self._pid, self._observed, self._runs = pid, observed, True
        if self._launch is not None:
            self._leases.spawned(pid, self._launch.plan, observed)

    def observed(self) -> Observed | None:
        """What the llama-server that was started last says of its buffers."""
        return self._observed() if self._observed is not None else None

    def settled(self, pid: int) -> None:
        self._leases.settled(pid)

    def ended(self) -> None:
        if self.second.is_there:
            self.dismissed()  # the one that it replaced is still there, and has the model's own lease
        else:
            self._runs = False
            self._leases.ended()

    async def beside(self, loaded: Loaded, running: Launch) -> Launch | None:
        what = f"planning {loaded.definition.model}"
        launch = await _off_the_loop(self._plan_beside, loaded, running, what=what)
        if launch is not None:
            self._reporter.planned(launch.plan)
        return launch

    def _plan_beside(self, loaded: Loaded, running: Launch) -> Launch | None:
        def make(loaded: Loaded, socket_name: str, host_bytes: int) -> PlanMaker:
            return self._maker(loaded, promised=False, socket_name=socket_name, host_bytes=host_bytes)

        return self.second.plan(make, loaded, running, self._pid)

    def spawned_beside(self, pid: int, observed: Callable[[], Observed]) -> None:
        self.second.spawned(pid, observed)

    def adopted(self, pid: int) -> None:
        self._pid, self._launch = pid, self.second.adopted(pid)

    def retired(self, pid: int) -> None:
        if pid and self.second.is_there:
            self.second.absorbed(self._leases, pid)
        else:
            self._runs = bool(pid)
            self._leases.ended()

    def dismissed(self) -> None:
        task = asyncio.create_task(self._leave_second())
        self._proving.add(task)
        task.add_done_callback(self._proving.discard)

    async def _leave_second(self) -> None:
        try:
            await _off_the_loop(self.second.leave, what="giving a lease back")
        except LlamadError as error:
            text = f"The lease of the second llama-server is not given back: {error}"
            self._reporter.event("ledger-problem", text, CAUSE=str(error))

    def close(self) -> None:
        """Plan and write nothing more. For who goes on living after the model."""
        self._leases.close()
        for task in self._proving:
            task.cancel()

    def failed(self, failure: Failure) -> None:
        self._lessons.failed(failure)

    def proved(self, launch: Launch, observed: Observed) -> None:
        self._lessons.settled()
        task = asyncio.create_task(self._prove(launch, observed))
        self._proving.add(task)
        task.add_done_callback(self._proving.discard)

    async def _prove(self, launch: Launch, observed: Observed) -> None:
        try:
            await _off_the_loop(self._keep_load, launch, observed, self._pid, what="keeping what was learned")
        except LlamadError as error:
            self._warn(str(error))

    def _keep_load(self, launch: Launch, observed: Observed, pid: int) -> None:
        maker = self._maker(launch.loaded)
        self._lessons.proved(maker, launch, observed)
        held = self._booking.held_by(pid)
        self._lessons.measured(maker, launch, observed, held, ready=True, used=False)

    async def free_bytes(self, launch: Launch) -> dict[str, int]:
        """From NVML alone: other sources take a run of llama-server."""
        uuids = {device.uuid: device.name for device in launch.plan.devices if device.uuid}
        if not any(uuid.startswith(("GPU-", "MIG-")) for uuid in uuids):
            return {}
        try:
            async with asyncio.timeout(FREE_BYTES_S):
                found = await in_thread(self._nvml.devices)
        except (TimeoutError, LlamadError):
            return {}
        return {uuids[device.uuid]: device.free_bytes for device in found if device.uuid in uuids}

    async def look(self, launch: Launch, *, used: bool, grows: bool) -> Offer | None:
        try:
            return await _off_the_loop(
                self._look, launch, self._pid, used, grows, what="looking at the devices"
            )
        except LlamadError:
            return None  # a driver that does not answer now offers nothing; a start would say so

    def _look(self, launch: Launch, pid: int, used: bool, grows: bool) -> Offer | None:
        held = self._booking.held_by(pid)
        maker = self._maker(launch.loaded, promised=False)
        if self._observed is not None:
            self._lessons.measured(maker, launch, self._observed(), held, ready=False, used=used)
        if not grows or self._upgraded(launch):  # a new llama-server could not have the GPUs
            return None
        return self._lookout.offer(maker, launch, held, pid)

    def _warn(self, text: str) -> None:
        self._reporter.event("learned-lost", text, CAUSE=text)

    async def check(self, loaded: Loaded, running: Launch) -> None:
        await _off_the_loop(self._check, loaded, running, what=f"planning {loaded.definition.model}")

    def _maker(
        self, loaded: Loaded, *, promised: bool = True, socket_name: str = SOCKET_NAME, host_bytes: int = 0
    ) -> PlanMaker:
        return PlanMaker(
            loaded,
            engine=self._paths.engine,
            cache=self._paths.cache,
            read=self._read,
            nvml=self._nvml,
            booking=self._booking if promised else None,
            sharing=Sharing(loaded.file.parent, self._paths.cache, self._booking.others, expected=self._expected),
            learned=self._learned,
            socket_name=socket_name,
            host_returning_bytes=host_bytes,
            rpc_in_use=self._runs,
        )

    def _refuse_upgraded_driver(self, previous: Launch, loaded: Loaded) -> None:
        """Raise DeviceError where a new llama-server could not have the NVIDIA GPUs that the last one had.

        Our own view of them is the old library's, which still works: memory would come back, and nothing could use it.
        """
        if loaded.definition.placement.allow_cpu:
            return
        from llamad.hardware.nvml_errors import driver_upgraded

        if versions := self._upgraded(previous):
            raise driver_upgraded(*versions)

    def _upgraded(self, launch: Launch) -> tuple[str, str] | None:
        """The versions of the driver that runs and of the one on disk, where a launch's GPUs need them to be one."""
        if not any(device.uuid.startswith(("GPU-", "MIG-")) for device in launch.plan.devices):
            return None
        from llamad.hardware.driver import driver_upgrade

        return (self._upgrade or driver_upgrade)()

    def _is_back(self, loaded: Loaded, previous: Launch) -> bool:
        """Whether the memory of the child that just ended is back and promised again, so that its plan still holds."""
        remove_stale(previous.socket_path)
        maker = self._maker(loaded)
        wanted = {d.name: d.parts.total_bytes - d.parts.margin_bytes for d in previous.plan.devices}
        return self._wait_for(maker, wanted) and self._take_again(maker, loaded, previous)

    def _take_again(self, maker: PlanMaker, loaded: Loaded, previous: Launch) -> bool:
        if maker.capabilities().key != previous.engine_key or are_replaced(previous, loaded, self._read):
            return False  # another engine may want other flags, and another file other bytes
        plan = previous.plan
        self._booking.look()
        desk = Desk(self._booking, loaded, maker.devices() if plan.devices else [], host_memory())
        return desk.take_again(plan)

    def _grown(self, loaded: Loaded, previous: Launch) -> Launch | None:
        """A larger plan for a model that served a moment ago and gave its place up for it; the same plan again where
        there is none after all. None where not even that can be had.

        What it had is promised to it again first: nobody who came later may take that for the sake of the growth.
        """
        maker, before = self._maker(loaded), previous.plan
        remove_stale(previous.socket_path)
        self._wait_for(maker, self._lookout.expected(before))
        if not self._take_again(maker, loaded, previous):
            return None
        if not any(lease.phase is Phase.WAITING for lease in self._booking.others()):
            with contextlib.suppress(LlamadError):
                launch = make_launch(maker, loaded)
                if launch.plan.context_tokens > before.context_tokens:
                    return replace(launch, grown_from=before.context_tokens)
        return replace(previous, loaded=loaded) if self._take_again(maker, loaded, previous) else None

    def _is_same(self, previous: Launch, loaded: Loaded) -> bool:
        """Whether the last plan would do again: for this definition, and no lesson says otherwise."""
        return not self._lessons.pending and self._is_for(previous, loaded)

    def _is_for(self, previous: Launch, loaded: Loaded) -> bool:
        """Whether the command of the last launch is that of this definition, with the keys in force."""
        told = is_told_as_before(previous.socket_path, loaded.definition, self._paths.engine)
        return told and needs_no_new_child(previous.loaded, loaded)

    def _make(self, loaded: Loaded, previous: Launch | None, most_tokens: int | None) -> Launch:
        grows = previous is not None and most_tokens is None and self._is_same(previous, loaded)
        if previous is not None and grows and (launch := self._grown(loaded, previous)):
            return launch
        maker = self._maker(loaded)
        if self._launch is not None and not needs_no_new_child(self._launch.loaded, loaded):
            self._lessons.drop()
        if previous is not None and not self._is_for(previous, loaded):
            remove_stale(previous.socket_path)
            self._wait_for(
                maker, {d.name: d.free_bytes - d.parts.margin_bytes for d in previous.plan.devices}
            )
        elif previous is not None and self._lessons.pending:
            remove_stale(previous.socket_path)
            before = {d.name: d.free_bytes - d.held_back_bytes - ENVIRONMENT_BYTES for d in previous.plan.devices}
            self._lessons.learn(maker, previous, lambda: self._wait_for(maker, before))
        return self._lessons.tell(maker, make_launch(maker, loaded, most_tokens))

    def _check(self, loaded: Loaded, running: Launch) -> None:
        """As if the running child were gone."""
        maker = self._maker(loaded, promised=False)
        maker.make(computed=True, returning=returning_devices(maker, self._booking, running))

    def _wait_for(self, maker: PlanMaker, wanted: dict[str, int]) -> bool:
        """Whether the driver shows these free bytes, before the deadline and before nothing moves any more: a killed
        server's come back late, and others may have taken some.
        """
        if not wanted:
            return True
        began_s = since_s = time.monotonic()
        before: dict[str, int] = {}
        while True:
            free = {device.name: device.free_bytes for device in maker.devices()}
            if all(free.get(name, 0) >= size for name, size in wanted.items()):
                return True
            now_s = time.monotonic()
            if free != before:
                since_s, before = now_s, free
            if now_s - began_s > BYTES_BACK_S or now_s - since_s > BYTES_STILL_S:
                return False
            time.sleep(BYTES_BACK_POLL_S)  # in a worker thread; no driver tells when memory returns


async def _off_the_loop(work: Callable[..., T], *args: object, what: str) -> T:
    """Run blocking work in a thread. A thread that hangs (a dead file server) is left behind, not waited for."""
    try:
        # Not wait_for: before Python 3.12 it can lose the cancellation that ends a state's job.
        async with asyncio.timeout(PLAN_S):
            return await in_thread(work, *args)
    except TimeoutError:
        raise BusyError(
            f"{what} takes longer than {PLAN_S:g} s", why="the file system or the driver does not answer",
            fix="check the mount of the model file and the GPU driver",
        ) from None  # fmt: skip
