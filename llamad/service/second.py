"""A second llama-server of a model, beside the one that serves: whether it fits, and its lease. Blocking but where
it says otherwise.

It is planned as if the one that serves were gone, because soon it will be; and it is brought up only where that very
plan has room beside it now, on every device and in the host's memory, prompt cache and margins included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from llamad.config.loaded import Loaded
from llamad.errors import BusyError
from llamad.hardware.device import Device
from llamad.hardware.host import host_memory, process_bytes
from llamad.ledger.booking import Booking
from llamad.service.desk import Desk, place_of
from llamad.service.planner import SECOND_SOCKET_NAME, SOCKET_NAME, Made, PlanMaker, launch_of
from llamad.service.records import LeaseRecorder
from llamad.service.reporter import DaemonReporter
from llamad.supervision.launch import Launch

if TYPE_CHECKING:
    from llamad.engine.log import Observed


def returning_devices(maker: PlanMaker, booking: Booking, running: Launch) -> list[Device]:
    """The devices of a running launch as they would be free if it were gone, and no more than they were before it."""
    booking.look()
    now = {place_of(device): device for device in maker.devices()} if running.plan.devices else {}
    promised = booking.outstanding()
    found = []
    for device in running.plan.devices:
        place, taken = place_of(device), device.parts.total_bytes - device.parts.margin_bytes
        shown, driver = (now[place].free_bytes, now[place].driver) if place in now else (0, "")
        left = min(device.free_bytes, shown + taken) - promised.get(place, 0)
        found.append(
            Device(device.name, device.total_device_bytes, left, device.uuid, driver=driver, source="returning")
        )
    return found


class SecondServer:
    """The lease of a second llama-server, while there is one."""

    def __init__(self, booking: Booking, reporter: DaemonReporter) -> None:
        """`booking` is that of the one that serves."""
        self._main = booking
        self._reporter = reporter
        self._booking: Booking | None = None
        self._recorder: LeaseRecorder | None = None
        self._launch: Launch | None = None

    @property
    def is_there(self) -> bool:
        """Whether it has a lease."""
        return self._booking is not None

    @property
    def lease_fds(self) -> tuple[int, ...]:
        """What it must inherit besides what every llama-server of the model does."""
        return self._booking.ledger.lease_fds if self._booking else ()

    def plan(
        self, make: Callable[[Loaded, str, int], PlanMaker], loaded: Loaded, running: Launch, running_pid: int
    ) -> Launch | None:
        """Its launch, promised; None where it has no room, or others come first. Raises LlamadError where there can be
        no plan at all. `make` gives a planner for a socket and so many bytes of the host's memory that will be free.
        """
        if running.definition.is_direct:
            return None  # an address has one owner
        socket = SECOND_SOCKET_NAME if running.socket_path.endswith(SOCKET_NAME) else SOCKET_NAME
        maker = make(loaded, socket, process_bytes(running_pid))
        if any(device.name.startswith("RPC") for device in running.plan.devices):
            return None  # a remote device serves one llama-server
        returning = returning_devices(maker, self._main, running)
        computed = maker.make(computed=True, returning=returning)
        try:
            made = self._promised(maker, loaded, returning, computed)
        except BusyError:  # others come first, or have taken what there was: it is done without
            made = None
        if made is None:
            self.leave()
            return None
        self._launch = launch_of(made, maker, loaded)
        return self._launch

    def _promised(
        self, maker: PlanMaker, loaded: Loaded, returning: list[Device], computed: Made
    ) -> Made | None:
        """The plan as llama-server itself confirms it, which it may do only when the bytes are promised."""
        booking = self._booking = Booking(self._main.ledger.second(), self._main.held)
        booking.look()
        desk = Desk(booking, loaded, maker.devices() if returning else [], host_memory())
        if not desk.commit(computed.plan):
            return None
        made = maker.make(returning=returning)
        return made if made.plan == computed.plan or desk.commit(made.plan) else None

    # -- on the loop --------------------------------------------------------------------------------------

    def spawned(self, pid: int, observed: Callable[[], Observed]) -> None:
        """It loads. On the loop."""
        assert self._booking is not None and self._launch is not None
        self._recorder = LeaseRecorder(self._booking, self._reporter)
        self._recorder.spawned(pid, self._launch.plan, observed)

    def adopted(self, pid: int) -> Launch:
        """It serves; what it is. On the loop."""
        assert self._recorder is not None and self._launch is not None
        self._recorder.settled(pid)
        return self._launch

    def absorbed(self, leases: LeaseRecorder, pid: int) -> None:
        """It is the only one: its lease is the model's own. On the loop."""
        booking, self._booking = self._booking, None
        assert booking is not None
        if self._recorder is not None:
            self._recorder.stop()
        leases.absorb(booking.ledger, pid)

    def leave(self) -> None:
        """It is gone, or will not be started."""
        booking, self._booking = self._booking, None
        if self._recorder is not None:
            self._recorder.stop()
            self._recorder = None
        if booking is not None:
            booking.ledger.leave()
