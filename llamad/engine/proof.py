"""Proof of placement: the bytes that the child says it put somewhere, against the plan. Pure.

The sentence `offloaded 41/41 layers to GPU` is printed with no GPU at all and proves nothing; the buffer lines do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from llamad.engine.log import Observed
from llamad.engine.names import is_host, plan_names
from llamad.frozen import dataclass
from llamad.planning.plan import DevicePlan, Plan
from llamad.units import KIB, MIB

TOLERANCE_BYTES = MIB + 32 * KIB
"""llama-server's own breakdown rounds to 1 MiB, and a planned figure may come from there; its log to 0.01 MiB."""
_NOTHING_BYTES = 16 * KIB
_HOST = "the CPU"

Kind = Literal["weights", "context", "any"]
_LOGGED: dict[str, tuple[str, ...]] = {"weights": ("model",), "context": ("kv", "rs")}
_DRAFT = ("draft model", "draft kv", "draft rs")
_WORDS = {"weights": "weights", "context": "context"}


@dataclass(frozen=True)
class Mismatch:
    """One part that is not where it was planned. `device` is the plan's name, or `CPU`."""

    device: str
    kind: Kind
    planned_bytes: int
    observed_bytes: int
    text: str
    """For the admin: `planned 7952 MiB of weights on Vulkan0, llama-server put 5 MiB there and 7947 MiB on the CPU`."""

    def __str__(self) -> str:
        return self.text


def compare(plan: Plan, observed: Observed) -> list[Mismatch]:
    """What contradicts the plan in a loaded child; [] is the proof that every planned byte is in its place.

    Weights and context of each planned device, and the context on the host, must be equal to 1 MiB. Nothing may be
    on a device that was not planned. Weights on the host are not compared: mapped files show their range there, and
    what is missing on a device shows on the device. Compute buffers are no matter of placement.
    """
    placed = _Placed(plan.devices, observed)
    found: list[Mismatch] = []
    for device in plan.devices:
        found += _parts(placed, device.name, "weights", device.parts.weights_bytes)
        found += _parts(placed, device.name, "context", device.parts.context_bytes)
    found += _parts(placed, _HOST, "context", plan.host.context_bytes)
    if not plan.devices:
        found += _host_weights(placed, plan)
    return found + _drafts(placed, plan) + _strangers(placed, plan.devices)


class _Placed:
    """Observed bytes by the plan's device names and kinds, the host's buffers as one."""

    def __init__(self, devices: Iterable[DevicePlan], observed: Observed) -> None:
        names: Mapping[str, str] = plan_names(devices)
        self.sizes: dict[tuple[str, str], int] = {}
        for (buffer, kind), size in observed.buffers.items():
            place = _HOST if is_host(buffer) else names.get(buffer, buffer)
            self.sizes[place, kind] = self.sizes.get((place, kind), 0) + size

    def bytes_of(self, place: str, kind: str) -> int:
        return sum(self.sizes.get((place, logged), 0) for logged in _LOGGED[kind])

    def has_line(self, place: str, kind: str) -> bool:
        return any((place, logged) in self.sizes for logged in _LOGGED[kind])

    def elsewhere(self, place: str, kind: str) -> list[tuple[str, int]]:
        """Where else bytes of this kind are, most first."""
        others = {other for other, _ in self.sizes if other != place}
        sizes = [(other, self.bytes_of(other, kind)) for other in sorted(others)]
        return sorted(((other, size) for other, size in sizes if size >= MIB), key=lambda pair: -pair[1])


def _parts(placed: _Placed, place: str, kind: Literal["weights", "context"], planned: int) -> list[Mismatch]:
    there = placed.bytes_of(place, kind)
    silent = planned > _NOTHING_BYTES and not placed.has_line(place, kind)
    if abs(there - planned) <= TOLERANCE_BYTES and not silent:
        return []
    text = f"planned {_mib(planned)} of {_WORDS[kind]} on {place}, llama-server put {_mib(there)} there"
    if there < planned:
        text += "".join(f" and {_mib(size)} on {other}" for other, size in placed.elsewhere(place, kind))
    return [Mismatch(_short(place), kind, planned, there, text)]


def _drafts(placed: _Placed, plan: Plan) -> list[Mismatch]:
    """What guesses ahead may take less than planned, which is a bound; not more, and not elsewhere."""
    found = []
    for device in plan.devices:
        planned = device.parts.draft_bytes
        there = sum(placed.sizes.get((device.name, kind), 0) for kind in _DRAFT)
        if there > planned + TOLERANCE_BYTES:
            text = f"planned at most {_mib(planned)} of a draft on {device.name}, llama-server put {_mib(there)} there"
            found.append(Mismatch(device.name, "any", planned, there, text))
    return found


def _host_weights(placed: _Placed, plan: Plan) -> list[Mismatch]:
    """A plan on the CPU alone: the weights must have been seen there at all, for their lines may show a range."""
    planned, there = plan.host.weights_bytes, placed.bytes_of(_HOST, "weights")
    if there or planned <= _NOTHING_BYTES:
        return []
    text = f"planned {_mib(planned)} of weights on the CPU, llama-server put nothing there"
    return [Mismatch("CPU", "weights", planned, there, text)]


def _strangers(placed: _Placed, devices: Iterable[DevicePlan]) -> list[Mismatch]:
    planned = {device.name for device in devices} | {_HOST}
    found: dict[str, int] = {}
    for (place, _), size in placed.sizes.items():
        if place not in planned and size:
            found[place] = found.get(place, 0) + size
    return [
        Mismatch(place, "any", 0, size, f"planned nothing on {place}, llama-server put {_mib(size)} there")
        for place, size in sorted(found.items())
    ]


def _short(place: str) -> str:
    return "CPU" if place == _HOST else place


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:.0f} MiB" if size_bytes >= 10 * MIB else f"{size_bytes / MIB:.2f} MiB"
