"""What `llamad recommend` looks at before it asks the planner: this machine, or one that is only asked about."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress

from llamad.errors import LlamadError
from llamad.frozen import dataclass
from llamad.gguf.facts import ModelFacts
from llamad.hardware.bandwidth import GB, Bandwidth, bandwidth_of, driver_bandwidths, measure_host
from llamad.hardware.deadline import Bounded
from llamad.hardware.device import Device, HostMemory
from llamad.hardware.host import host_memory
from llamad.hardware.nvml import Nvml
from llamad.models.catalogue import Shape, load_catalogue
from llamad.models.recommend import Advice, Machine, placement_of, recommend
from llamad.planning.plan import BuildGates, Plan
from llamad.planning.solve import plan
from llamad.service.onlooker import Onlooker
from llamad.service.planner import PlanMaker
from llamad.units import GIB

ASSUMED_HOST_BYTES_S = 50.0 * GB
"""Two channels of DDR4-3200. Twelve of DDR5-4800 have nine times as much."""
_LEAST_FOR_MEASURING_BYTES = 2 * GIB
_DRIVER_DEADLINE_S = 10.0


@dataclass(frozen=True)
class Asked:
    """What the command line says. `devices`: instead of those that are here; None = look. Speeds in bytes a second."""

    devices: tuple[Device, ...] | None = None
    speeds: Mapping[str, Bandwidth] | None = None
    ram_bytes: int | None = None
    host_bytes_s: float | None = None
    device_bytes_s: float | None = None
    allow_cpu: bool = False


def look(asked: Asked, maker: PlanMaker | None) -> Machine:
    """The machine. `maker` finds the devices that are here; None where they are not looked for.

    Raises LlamadError where a driver does not answer.
    """
    host = host_memory() if asked.ram_bytes is None else HostMemory(asked.ram_bytes, asked.ram_bytes)
    if asked.devices is not None:
        devices: Sequence[Device] = asked.devices
    else:
        devices = _here(maker)
    speeds = _speeds(devices, asked)
    host_speed = _host_speed(host, asked, needed=asked.allow_cpu or not devices)
    return Machine(tuple(devices), host, speeds, host_speed, asked.allow_cpu)


def gates_of(maker: PlanMaker | None) -> BuildGates:
    """What the installed llama-server does to its buffers; that of a new one where there is none."""
    try:
        return maker.capabilities().gates if maker is not None else BuildGates()
    except LlamadError:
        return BuildGates()


def advice(
    machine: Machine, gates: BuildGates, onlooker: Onlooker | None, shapes: Sequence[Shape] = ()
) -> list[Advice]:
    """Advice on every model of the catalogue (or on `shapes`), best first. What is promised to models that run is left
    to them.
    """
    reserved = onlooker.reserved() if onlooker is not None else {}
    placement = placement_of(machine)

    def make_plan(facts: ModelFacts) -> Plan:
        return plan(facts, machine.devices, machine.host, placement, frozenset(), gates, reserved=reserved)

    return recommend(shapes or load_catalogue(), machine, make_plan)


def _here(maker: PlanMaker | None) -> Sequence[Device]:
    """As llama-server would have them; before there is one, NVIDIA's GPUs by their driver. Raises LlamadError."""
    if maker is None:
        return ()
    try:
        maker.capabilities()
    except LlamadError:
        return Nvml().devices()
    return maker.devices()


def _speeds(devices: Sequence[Device], asked: Asked) -> dict[str, Bandwidth]:
    if asked.device_bytes_s is not None:
        return {device.name: Bandwidth(asked.device_bytes_s, "given") for device in devices}
    known: Mapping[str, float] = {}
    if asked.devices is None and any(device.source == "nvml" for device in devices):
        try:
            known = Bounded("the NVIDIA driver", _DRIVER_DEADLINE_S).call(driver_bandwidths)
        except LlamadError:
            known = {}  # the table of cards has it as well
    given = asked.speeds or {}
    return {device.name: given.get(device.name) or bandwidth_of(device, known) for device in devices}


def _host_speed(host: HostMemory, asked: Asked, *, needed: bool) -> Bandwidth:
    if asked.host_bytes_s is not None:
        return Bandwidth(asked.host_bytes_s, "given")
    here = asked.ram_bytes is None and needed and host.available_bytes >= _LEAST_FOR_MEASURING_BYTES
    if here:
        with suppress(MemoryError, OSError, RuntimeError):  # no thread, no memory: it is assumed then
            if (found := measure_host(len(os.sched_getaffinity(0)))).bytes_s > 0:
                return found
    return Bandwidth(ASSUMED_HOST_BYTES_S, "assumed")

