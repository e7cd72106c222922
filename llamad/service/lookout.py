"""What a plan made now would give a model that serves: asked once a minute. Blocking, some milliseconds.

It promises nothing and runs no llama-server: where only llama-server could tell what is free, nothing is offered, for
it takes memory of its own to look.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from llamad.errors import LlamadError
from llamad.hardware.device import Device, HostMemory
from llamad.hardware.host import host_memory, process_bytes
from llamad.ledger.booking import NOISE_BYTES, Booking
from llamad.ledger.lease import HOST, Phase
from llamad.planning.overhead import shares_host
from llamad.planning.plan import Plan
from llamad.service.desk import place_of
from llamad.service.planner import PlanMaker
from llamad.supervision.growth import Offer
from llamad.supervision.launch import Launch
from llamad.units import GIB

AGAIN_S = 600.0
"""What is free does not say all: the shares of other models change with their definitions."""

_Reading = tuple[object, ...]


class Lookout:
    """Remembers what was offered last, so that a minute in which nothing happened costs no plan."""

    def __init__(self, booking: Booking) -> None:
        self._booking = booking.onlooker()
        self._launch: Launch | None = None
        self._reading: _Reading = ()
        self._made_s = 0.0
        self._offer: Offer | None = None

    def offer(self, maker: PlanMaker, launch: Launch, held: Mapping[str, int], pid: int) -> Offer | None:
        """What a plan would give if this launch's memory were free; None where it cannot be told, or others wait.

        `held`: bytes by device UUID that the driver says its llama-server, `pid`, holds.
        """
        self._booking.look()
        now = maker.glance()
        if now is None:
            return None
        if any(lease.phase is Phase.WAITING for lease in self._booking.others()):
            return None
        promised = self._booking.outstanding()
        devices = returned(now, launch, held, promised)
        memory = host_memory()
        back = memory.available_bytes + process_bytes(pid) - promised.get(HOST, 0)
        host = replace(memory, available_bytes=max(0, min(memory.total_bytes, back)))
        reading, now_s = _reading(devices, host), time.monotonic()
        known = launch is self._launch and reading == self._reading and now_s - self._made_s < AGAIN_S
        if not known:
            self._launch, self._reading, self._made_s = launch, reading, now_s
            self._offer = _offered(maker, launch, devices, host)
        return self._offer

    def expected(self, plan: Plan) -> dict[str, int]:
        """Free bytes by device name that the drivers should show once the llama-server of this plan is gone."""
        offer = self._offer
        return {
            device.name: offer.free_bytes[device.name] - NOISE_BYTES
            for device in plan.devices
            if offer is not None and device.name in offer.free_bytes
        }


def returned(
    now: Sequence[Device], launch: Launch, held: Mapping[str, int], promised: Mapping[str, int]
) -> list[Device]:
    """The devices as they would be without this launch's llama-server, less what others were promised.

    Where the driver does not tell what it holds its buffers count, without the driver's own overhead: rather too
    little comes back than too much.
    """
    mine = {place_of(device): device.parts.held_bytes for device in launch.plan.devices}
    found = []
    for device in now:
        place = place_of(device)
        back = (held.get(device.uuid) or mine[place]) if place in mine else 0
        free = min(device.total_bytes, device.free_bytes + back) - promised.get(place, 0)
        found.append(replace(device, free_bytes=max(0, free)))
    return found


def _reading(devices: Sequence[Device], host: HostMemory) -> _Reading:
    """The same for two looks between which nothing has changed that matters."""
    step = NOISE_BYTES if all(map(shares_host, devices)) else GIB
    rows = ((place_of(device), device.free_bytes // NOISE_BYTES) for device in devices)
    return (*rows, host.available_bytes // step)


def _offered(
    maker: PlanMaker, launch: Launch, devices: Sequence[Device], host: HostMemory
) -> Offer | None:
    try:
        made = maker.make(computed=True, returning=devices, host=host)
    except LlamadError:
        return None  # there is no plan at all now, and one runs
    if made.learned_key != launch.learned_key:
        return None  # another file, engine or driver by now: to start that is for the admin to decide
    plan = made.plan
    free = {device.name: device.free_bytes for device in plan.devices}
    return Offer(plan.context_tokens, free or {HOST: host.available_bytes})
