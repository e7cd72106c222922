"""Between the planner and the ledger: plans as bytes by place, and the refusals for lack of memory as a wait.

Without a booking (`llamad plan`, a check before a reload) nothing is promised and nobody waits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from llamad.config.loaded import Loaded
from llamad.errors import BusyError
from llamad.hardware.device import Device, HostMemory
from llamad.ledger.booking import Booking, Step
from llamad.ledger.lease import HOST
from llamad.planning.overhead import shares_host
from llamad.planning.plan import DevicePlan, Plan
from llamad.planning.refusal import NoRoomNow
from llamad.planning.select import candidates
from llamad.units import MIB

TRIES = 50


def place_of(device: Device | DevicePlan) -> str:
    """A device's key in the ledger: its UUID, which all programs agree on, or its name where it has none."""
    return device.uuid or device.name


def takes_of(plan: Plan, devices: Sequence[Device]) -> dict[str, int]:
    """What a plan takes by place, margins and prompt cache included. `devices`: those that it was made for."""
    shared = {place_of(device) for device in devices if shares_host(device)}
    takes = {HOST: plan.host.total_bytes + plan.cache_ram_mib * MIB}
    for device in plan.devices:
        place = place_of(device)
        takes[place] = takes.get(place, 0) + device.parts.total_bytes
        if place in shared:  # its memory is the host's, so both must keep it
            takes[HOST] += device.parts.total_bytes
    return takes


def source_of(loaded: Loaded) -> str:
    """The file system that the model is on; "" where that cannot be told."""
    try:
        return str(os.stat(loaded.definition.model).st_dev)
    except OSError:
        return ""


class Desk:
    """Where one plan is made, against one reading of the drivers."""

    def __init__(
        self, booking: Booking | None, loaded: Loaded, devices: Sequence[Device], host: HostMemory
    ) -> None:
        self.booking = booking
        self.loaded = loaded
        self.devices = devices
        self.free = {place_of(device): device.free_bytes for device in devices} | {HOST: host.available_bytes}
        self.names = {place_of(device): device.name for device in devices} | {HOST: "the host"}

    def promised(self, solve: Callable[..., Plan], confirm: Callable[[Plan, Mapping[str, int]], Plan]) -> Plan:
        """The plan that `solve` makes with `reserved`, what is promised to others, as `confirm` leaves it, and all of
        it promised to us.

        Nobody is kept waiting while it is made: it counts only if it still fits when the ledger is locked, else it
        is made again, for others have been promised something meanwhile. Its bytes are promised before it is
        confirmed, because llama-server makes a context on the device to be asked. Raises what the two do, MustWait
        where others may give back what is lacking, BusyError if the others never come to rest.
        """
        if self.booking is None:
            return confirm(solve(reserved={}), {})
        for _ in range(TRIES):
            with self.booking.step(self.free, self.names) as step:
                reserved, mark = step.reserved, step.mark
            try:
                plan = solve(reserved=reserved)
                if not self._commit(plan):
                    continue
                better = confirm(plan, reserved)
            except NoRoomNow as error:
                if self._waits(error, mark):
                    raise
                continue
            if better is plan or self._commit(better):
                return better
        raise BusyError(
            f"no plan for {self.loaded.name} that others left room for",
            why=f"the ledger was another one after each of {TRIES} tries",
            fix="wait until the others have started",
        )

    def commit(self, plan: Plan) -> bool:
        """Be promised what this very plan takes; False where there is no room for it. Raises MustWait, BusyError."""
        return self._commit(plan)

    def _commit(self, plan: Plan) -> bool:
        """Be promised what a plan takes, if there still is room for it. Raises MustWait where others come first."""
        assert self.booking is not None
        takes = takes_of(plan, self.devices)
        with self.booking.step(self.free, self.names) as step:
            if not step.fits(takes):
                return False
            self._take(step, takes)
            return True

    def _waits(self, error: NoRoomNow, mark: object) -> bool:
        """Whether no wait can help; False if the ledger is not as it was. Raises MustWait, GaveUpWaiting."""
        assert self.booking is not None
        places = {device.name: place_of(device) for device in self.devices}
        place = places.get(error.place, error.place)
        alternatives = () if place == HOST else self._alternatives()
        with self.booking.step(self.free, self.names) as step:
            if step.mark != mark:
                return False
            step.lacks(place, error.missing_bytes, alternatives, source_of(self.loaded))
        return True

    def _alternatives(self) -> tuple[str, ...]:
        return tuple(map(place_of, candidates(self.devices, self.loaded.definition.placement)))

    def take_again(self, plan: Plan) -> bool:
        """Be promised what a plan had whose llama-server has ended, if it is there but for the margins.

        It needs no turn to load: its file was read a moment ago.
        """
        if self.booking is None:
            return True
        with self.booking.step(self.free, self.names) as step:
            left, margins = step.available, _margins(plan)
            takes = takes_of(plan, self.devices)
            if any(size - margins.get(place, 0) > left.get(place, 0) for place, size in takes.items()):
                return False
            self._take(step, {place: min(size, left[place]) for place, size in takes.items()}, loads=False)
            return True

    def _take(self, step: Step, takes: Mapping[str, int], *, loads: bool = True) -> None:
        source, parallel_loads = source_of(self.loaded), self.loaded.host.parallel_loads
        step.promise(takes, source=source, parallel_loads=parallel_loads, loads=loads)


def _margins(plan: Plan) -> dict[str, int]:
    """What a plan leaves free on purpose, by place; the prompt cache can do with less as well."""
    margins = {place_of(device): device.parts.margin_bytes for device in plan.devices}
    shared = sum(margins.values())
    return margins | {HOST: plan.host.margin_bytes + plan.cache_ram_mib * MIB + shared}
