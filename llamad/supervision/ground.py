"""What a child that serves stands on: its engine's files, the driver, its devices, the machine that may sleep.

All of it can change under a running llama-server. None of it ends one that still works: what changed is told in the
status line and by one record, and only a child that no longer computes, or whose device is gone, is replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

from llamad.clock import Clock
from llamad.errors import BusyError, ChildError, DeviceError, LlamadError
from llamad.hardware.faults import Fault
from llamad.hardware.nvml_errors import DriverUpgraded
from llamad.supervision.launch import Launch, Seams
from llamad.supervision.loading import either
from llamad.supervision.machine import State
from llamad.threads import in_thread

T = TypeVar("T")

TICK_S = 10.0
LOOK_S = 60.0
SETTLE_S = 1.0
"""After a child became ready, or died: several changes in a row are one look."""
SLEPT_S = 1.0
ANSWER_TRIES = 3
ANSWER_EVERY_S = 2.0
BLOCKING_S = 40.0
DRIVER_FIX = "reboot (or reload the module)"


class Ground(Protocol):
    """Looks at it. All but `suspended_s` block and are called off the loop."""

    def engine_key(self, launch: Launch) -> str:
        """The identity of the engine's files now."""
        ...

    def engine_words(self, launch: Launch) -> str:
        """The version that is installed now: `b11702`. Raises LlamadError while it cannot be run."""
        ...

    def driver(self, launch: Launch) -> str:
        """Why nothing that starts now gets the planned devices, though what runs keeps them; "" where it does."""
        ...

    def lost(self, launch: Launch) -> DeviceError | None:
        """Which planned device does not answer. Raises DeviceError where that cannot be told."""
        ...

    def suspended_s(self) -> float:
        """How long the machine has slept since it was booted."""
        ...

    def listen(self, launch: Launch, on_fault: Callable[[Fault], None]) -> Callable[[], None]:
        """Tell faults of the planned devices, from any thread, until the function that is returned is called."""
        ...


class Served(Protocol):
    """The supervisor, as far as it concerns this."""

    state: State
    launch: Launch | None

    @property
    def child_pid(self) -> int: ...

    def remark(self, topic: str, text: str) -> None:
        """Add this to the status line, in place of what was said of the topic; "" takes it back."""
        ...

    def condemn(self, because: str, error: LlamadError) -> None:
        """The child that serves must go; nothing if none does."""
        ...


class GroundWatch:
    """Looks now and then, and when told to, for as long as `run` runs."""

    def __init__(self, served: Served, seams: Seams, ground: Ground, clock: Clock) -> None:
        self._served = served
        self._seams = seams
        self._ground = ground
        self._clock = clock
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._pid = 0
        self._deaf: Callable[[], None] = lambda: None
        self._faults: list[Fault] = []
        self._told: set[str] = set()
        self._suspended_s = ground.suspended_s()
        self._looked_at_s = 0.0

    def state_changed(self) -> None:
        """Have a look soon."""
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await either(self._woken, TICK_S, self._clock)
                if self._woken.is_set():
                    await self._clock.sleep(SETTLE_S)
                    self._looked_at_s = -LOOK_S
                self._woken.clear()
                await self._look()
        finally:
            self._deaf()

    def _fault(self, fault: Fault) -> None:
        """Called in another thread."""
        self._loop.call_soon_threadsafe(self._faulted, fault)

    def _faulted(self, fault: Fault) -> None:
        if fault not in self._faults:  # a GPU in trouble reports the same one over and over
            self._faults.append(fault)
        self._woken.set()

    async def _look(self) -> None:
        launch = self._served.launch
        if not self._served.state.serves or launch is None:
            self._pid = 0
            self._deaf()
            self._deaf = lambda: None
            return
        fresh = self._served.child_pid != self._pid
        if fresh:
            self._begin(launch)
        await self._look_at_sleep(launch)
        await self._look_at_faults(launch)
        now_s = self._clock.monotonic()
        if fresh or now_s - self._looked_at_s >= LOOK_S:
            self._looked_at_s = now_s
            await self._look_at_engine(launch)
            await self._look_at_driver(launch)

    def _begin(self, launch: Launch) -> None:
        """Another child: what was said of the last one is no longer true."""
        self._pid = self._served.child_pid
        self._faults.clear()
        self._suspended_s = self._ground.suspended_s()
        for topic in ("engine", "fault"):
            self._served.remark(topic, "")
        self._deaf()
        self._deaf = self._ground.listen(launch, self._fault) if launch.plan.devices else lambda: None

    # -- what changes nothing for the child ---------------------------------------------------------------

    async def _look_at_engine(self, launch: Launch) -> None:
        installed = await _off_the_loop(lambda: self._ground.engine_key(launch))
        if installed is None:
            return
        if installed == launch.engine_key:
            self._served.remark("engine", "")
            return
        words = await _off_the_loop(lambda: self._ground.engine_words(launch))
        if words is None:
            return  # half installed: at the next look
        running = launch.engine_words
        text = f"running {running}, installed {words}" + (" (other files)" if words == running else "")
        self._served.remark("engine", text)
        fix = f"systemctl restart llamad@{launch.loaded.name}"
        self._tell("engine-replaced", f"llama-server was replaced on disk: {text}", installed, CAUSE=text, FIX=fix)

    async def _look_at_driver(self, launch: Launch) -> None:
        if not launch.plan.devices:
            return
        why = await _off_the_loop(lambda: self._ground.driver(launch))
        if why is None:
            return
        text = f"NVIDIA driver was upgraded: {DRIVER_FIX}"
        self._served.remark("driver", text if why else "")
        if why:
            self._tell("driver-upgraded", f"{text}; {why}", why, CAUSE=why, FIX=DRIVER_FIX)

    # -- what may have taken its device -------------------------------------------------------------------

    async def _look_at_sleep(self, launch: Launch) -> None:
        before, self._suspended_s = self._suspended_s, self._ground.suspended_s()
        slept_s = self._suspended_s - before
        if slept_s < SLEPT_S or not launch.plan.devices:
            return
        text = f"the machine slept for {slept_s:.0f} s"
        self._seams.reporter.event("resumed", f"Looking at the devices again: {text}", CAUSE=text)
        await self._prove(launch, text)

    async def _look_at_faults(self, launch: Launch) -> None:
        faults, self._faults = self._faults, []
        names = {device.uuid: device.name for device in launch.plan.devices}
        for fault in dict.fromkeys(faults):
            if not fault.of_the_device:
                continue
            text = f"{names.get(fault.uuid, 'a GPU')}: {fault}"
            self._served.remark("fault", text)
            fix = "see the kernel log (`journalctl -k`); nvidia-smi -q tells whether it needs a reset"
            self._seams.reporter.event("device-fault", f"The driver reports a fault of {text}", CAUSE=text, FIX=fix)
            await self._prove(launch, text)

    async def _prove(self, launch: Launch, why: str) -> None:
        """Have the child replaced, once, if a planned device is gone or it does not compute any more."""
        pid = self._served.child_pid
        error = await self._gone(launch) or await self._silent(launch)
        if error is not None and pid == self._served.child_pid == self._pid:
            self._served.condemn("device-lost", ChildError(f"{why}, and then: {error}", fix=error.fix))

    async def _gone(self, launch: Launch) -> LlamadError | None:
        try:
            async with asyncio.timeout(BLOCKING_S):
                return await in_thread(self._ground.lost, launch)
        except (TimeoutError, DriverUpgraded, BusyError):
            return None  # the child itself is asked next
        except DeviceError as error:
            return error

    async def _silent(self, launch: Launch) -> LlamadError | None:
        """What the child fails at. While it works on requests, those show whether it moves."""
        engine, limits = self._seams.engine, launch.definition.limits
        for _ in range(ANSWER_TRIES):
            if await engine.healthy(launch.socket_path):
                break
            await self._clock.sleep(ANSWER_EVERY_S)
        else:
            return ChildError("llama-server does not answer", fix="see its last lines and the kernel log")
        if self._seams.front.at_work():
            return None
        try:
            await engine.warm_up(launch, limits.warmup_s)
        except LlamadError as error:
            return error
        return None

    def _tell(self, event: str, message: str, what: str, **fields: str) -> None:
        """One record for one thing."""
        if f"{event} {what}" not in self._told:
            self._told.add(f"{event} {what}")
            self._seams.reporter.event(event, message, **fields)


async def _off_the_loop(look: Callable[[], T]) -> T | None:
    """What a blocking look finds; None where it fails, does not come back in time, or no thread is to be had."""
    try:
        # Not wait_for: before Python 3.12 it can lose the cancellation that ends the watch.
        async with asyncio.timeout(BLOCKING_S):
            return await in_thread(look)
    except (TimeoutError, LlamadError):
        return None
