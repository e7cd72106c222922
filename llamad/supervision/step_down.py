"""How much smaller the next plan must be after an allocation failed: measured where that is possible. Pure.

A correction is bytes of a device that its driver claims and a llama-server cannot have; the planner leaves them
out, as if others had them. It comes from the best of these sources:

- measured: the driver showed how much was free when an allocation of known size failed;
- tried: the driver claims room enough, so llama-server itself was asked how large a context it can get;
- grown: it grew beyond the plan while it worked, so it gets more room for that, doubled each time;
- guessed: nothing can be known, so an eighth of the buffers less, then a quarter, a half, ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from llamad.engine.names import plan_names
from llamad.frozen import dataclass
from llamad.planning.plan import DevicePlan, Plan
from llamad.units import MIB

if TYPE_CHECKING:
    from llamad.engine.log import Observed

MOST_STEPS = 6
ONE_BUFFER = "exceeds device buffer size limit"
GRANULARITY_BYTES = 8 * MIB
"""Drivers hand out pieces of 2 MiB; a server has a few buffers."""
ENVIRONMENT_BYTES = 64 * MIB
"""Less than this is the noise of a driver's free figure."""
GROWTH_STEP_BYTES = 128 * MIB
_GUESSES = (7 / 8, 3 / 4, 1 / 2, 1 / 4, 1 / 8, 1 / 16)

How = Literal["measured", "tried", "guessed", "grown"]


@dataclass(frozen=True)
class Failure:
    """A child that ended for lack of a device's memory."""

    cause: str
    """The name of its cause of death."""
    text: str
    device: str
    """The plan's name of the device; "" where the log does not tell and the plan has several."""
    size_bytes: int = 0
    """Of the allocation that failed; 0 where the log does not tell."""
    held_bytes: int = 0
    """Buffers that the child had on that device."""
    free_bytes: int | None = None
    """What the driver showed free while they were held; None where it does not tell in time."""
    running: bool = False
    """Whether it had loaded: then it grew beyond the plan."""
    one_buffer: bool = False
    """Whether the log says that the device limits the size of one buffer."""


@dataclass(frozen=True)
class Step:
    """What one failure taught about one device."""

    device: str
    uuid: str
    correction_bytes: int
    how: How
    cause: str
    context_tokens: int
    """Of the plan that failed."""
    size_bytes: int = 0
    room_bytes: int | None = None
    """What there is at most, whatever the driver claims; None where less is had than it claims at any time."""

    @property
    def key(self) -> str:
        """What the planner knows the device by."""
        return self.uuid or self.device


def failed_device(plan: Plan, failure: Failure) -> DevicePlan | None:
    """The device that it was; the fullest where the log does not tell. None for a plan without devices."""
    named = [device for device in plan.devices if device.name == failure.device]
    fullest = sorted(plan.devices, key=lambda one: -one.parts.buffers_bytes)
    return next(iter([*named, *fullest]), None)


def is_environments(device: DevicePlan, free_after_bytes: int | None) -> bool:
    """Whether others took the memory: with the child gone, less is free than when it was planned, and too little."""
    if free_after_bytes is None:
        return False
    tolerance = max(ENVIRONMENT_BYTES, device.free_bytes // 100)
    needed = device.parts.total_bytes - device.parts.margin_bytes
    return free_after_bytes < device.free_bytes - tolerance and free_after_bytes < needed


def measured_capacity(failure: Failure) -> int | None:
    """Bytes of buffers that the device had room for; None where the driver did not tell, or claims it had more."""
    if failure.free_bytes is None or failure.running or failure.free_bytes >= failure.size_bytes > 0:
        return None
    return max(0, failure.held_bytes + failure.free_bytes - GRANULARITY_BYTES)


def step(
    plan: Plan,
    failure: Failure,
    earlier: Mapping[str, int],
    steps: int,
    tried_capacity: Callable[[], int | None],
) -> Step | None:
    """What to correct. `earlier` has what was left out of it by device name, `steps` counts those of this start.

    It corrects what is free, also where the definition's `memory` or others' shares allowed less than that. Always
    more than before: the same plan must not be tried twice. None for a plan without devices.
    """
    device = failed_device(plan, failure)
    if device is None:
        return None
    how: How
    if failure.running:
        how, capacity = "grown", device.parts.buffers_bytes - _growth(failure, steps)
    elif (measured := measured_capacity(failure)) is not None:
        how, capacity = "measured", measured
    elif failure.cause.endswith("-weights"):  # no context makes weights smaller: let the planner say so
        how, capacity = "guessed", device.parts.weights_bytes - MIB
    elif (tried := tried_capacity()) is not None:
        how, capacity = (
            "tried",
            tried + (device.parts.buffers_bytes - device.parts.context_bytes) * failure.one_buffer,
        )
    else:
        how, capacity = "guessed", int(device.parts.buffers_bytes * _GUESSES[min(steps, len(_GUESSES) - 1)])
    before = earlier.get(device.name, 0)
    free_bytes = device.free_bytes - device.held_back_bytes
    over = _over(device, free_bytes - before, min(capacity, device.parts.buffers_bytes - MIB))
    correction = before + max(over, MIB)
    room_bytes = free_bytes - correction if how in ("tried", "guessed") else None
    return Step(
        device.name, device.uuid, correction, how, failure.cause, plan.context_tokens, failure.size_bytes, room_bytes
    )  # fmt: skip


def _growth(failure: Failure, steps: int) -> int:
    """At run time the size is seldom told, and the next allocation would have failed as well."""
    least: int = GROWTH_STEP_BYTES << min(steps, 5)
    return max(failure.size_bytes + GRANULARITY_BYTES, least)


def _over(device: DevicePlan, room_bytes: int, capacity_bytes: int) -> int:
    """What the plan's room has more than a llama-server gets. A smaller plan has a smaller margin: a part of it."""
    parts = device.parts
    claimed = room_bytes - parts.overhead_bytes - parts.margin_bytes
    return max(0, claimed - capacity_bytes + max(0, parts.buffers_bytes - capacity_bytes) // 200)


def bisect(low: int, high: int, holds: Callable[[int], bool | None], tries: int) -> int | None:
    """The largest amount between one that holds and one that does not, to a 2**-`tries` of their distance.

    None as soon as `holds` cannot tell.
    """
    for _ in range(tries):
        middle = (low + high) // 2
        answer = holds(middle)
        if answer is None:
            return None
        low, high = (middle, high) if answer else (low, middle)
    return low


def failure_of(
    cause: str,
    text: str,
    plan: Plan,
    observed: Observed,
    memory: Mapping[str, tuple[int, int]],
    *,
    running: bool,
    lines: Sequence[str] = (),
) -> Failure:
    """A failure from what a child said. `memory` has bytes held and free by the plan's names, sampled while it
    loaded.
    """
    names = plan_names(plan.devices)
    told = [names.get(one.buffer, one.buffer) for one in observed.alloc_failures if one.buffer]
    size_bytes = max((one.size_bytes for one in observed.alloc_failures), default=0)
    failure = Failure(
        cause, text, told[0] if told else "", size_bytes, running=running,
        one_buffer=any(ONE_BUFFER in line for line in lines),
    )  # fmt: skip
    device = failed_device(plan, failure)
    if device is None:
        return failure
    child = {mine: theirs for theirs, mine in names.items()}[device.name]
    held = sum(size for (buffer, _), size in observed.buffers.items() if buffer == child)
    if device.name in memory:
        held, free_bytes = memory[device.name]
        return replace(failure, device=device.name, held_bytes=held, free_bytes=free_bytes)
    return replace(failure, device=device.name, held_bytes=held)
