"""Keeps a model's lease true while its llama-server loads and when it is ready. Off the loop, in order, last word wins.

A lease that cannot be written (a full disk) says too much for a while, never too little; it is tried again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING

from llamad.engine.names import plan_names
from llamad.errors import LlamadError
from llamad.hardware.host import process_bytes
from llamad.ledger.booking import Booking
from llamad.ledger.ledger import Ledger
from llamad.planning.plan import Plan
from llamad.service.desk import place_of
from llamad.service.reporter import DaemonReporter
from llamad.threads import in_thread
from llamad.units import MIB

if TYPE_CHECKING:
    from llamad.engine.log import Observed

AGAIN_S = 5.0
FOLLOW_S = 1.0
STEP_BYTES = 256 * MIB
_AT_ONCE = ("CUDA", "ROCm")
"""Backends whose buffers the driver counts as used when the line about them is printed."""


class LeaseRecorder:
    """Writes what becomes of the last promise."""

    def __init__(self, booking: Booking, reporter: DaemonReporter) -> None:
        self._booking = booking
        self._reporter = reporter
        self._task: asyncio.Task[None] | None = None
        self._order = threading.Lock()

    def spawned(self, pid: int, plan: Plan, observed: Callable[[], Observed]) -> None:
        """The child that was planned last loads; follow it by what it says of its buffers."""
        self._begin(self._follow(self._booking.promise_id, pid, plan, observed))

    def ended(self) -> None:
        """The child has ended: it holds nothing, and its successor is to have the same again."""
        # Whose promise that is, is known when what is being written now is written: it may be a lease taken over.
        self._begin(self._write(lambda: self._booking.returning(self._booking.promise_id)))

    def close(self) -> None:
        """Write nothing more: the name is about to be given back, and the lease with it."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def settled(self, pid: int) -> None:
        """It is ready."""
        promise = self._booking.promise_id
        self._begin(self._write(lambda: self._booking.settled(promise, pid, process_bytes(pid))))

    def absorb(self, second: Ledger, pid: int) -> None:
        """The second child is the only one: its lease is ours now."""

        def write() -> None:
            self._booking.absorb(second, pid, process_bytes(pid))
            second.close()

        self._begin(self._write(write))

    def stop(self) -> None:
        """Write no more."""
        if self._task is not None:
            self._task.cancel()

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        before, self._task = self._task, None
        if before is not None:
            before.cancel()  # what was to be written is old now
        self._task = asyncio.create_task(work)
        self._task.add_done_callback(_raise_bug)

    async def _write(self, write: Callable[[], None]) -> None:
        def in_order() -> None:
            with self._order:  # one that was given up goes on in its thread, and must not have the last word
                write()

        told = False
        while True:
            try:
                await in_thread(in_order)
            except LlamadError as error:
                if not told:
                    told = True
                    self._reporter.event("ledger-problem", f"The lease cannot be written: {error}", CAUSE=str(error))
                await asyncio.sleep(AGAIN_S)
            else:
                return

    async def _follow(
        self, promise: str, pid: int, plan: Plan, observed: Callable[[], Observed]
    ) -> None:
        """Until something else is to be written: the load's end."""
        await self._write(lambda: self._booking.loading(promise, pid))
        written = 0
        while True:
            await asyncio.sleep(FOLLOW_S)
            taken = taken_of(plan, observed())
            if sum(taken.values()) >= written + STEP_BYTES:
                written = sum(taken.values())
                await self._write(lambda taken=taken: self._booking.progress(promise, taken))  # type: ignore[misc]


def taken_of(plan: Plan, observed: Observed) -> dict[str, int]:
    """Bytes by place that the child's log shows as allocated on the drivers that count them at once."""
    devices = {device.name: device for device in plan.devices if device.name.startswith(_AT_ONCE)}
    names = plan_names(plan.devices)
    taken: dict[str, int] = {}
    for (buffer, _kind), size in observed.buffers.items():
        device = devices.get(names.get(buffer, buffer))
        if device is not None:
            taken[place_of(device)] = taken.get(place_of(device), 0) + size
    return taken


def _raise_bug(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        raise error
