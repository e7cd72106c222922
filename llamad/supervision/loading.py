"""Watching a child load: until it answers and its bytes are where the plan puts them, or it never will."""

from __future__ import annotations

import asyncio

from llamad.clock import Clock
from llamad.engine.names import child_names
from llamad.engine.proof import compare
from llamad.errors import ChildError, DeviceError, LlamadError
from llamad.supervision.child import Child
from llamad.supervision.intake import Intake
from llamad.supervision.launch import Launch, Reporter, Seams
from llamad.supervision.words import device_names, place_text

FIRST_POLL_S = 0.02
POLL_S = 0.5
LAST_LINES_S = 2.0
GROWTH_BYTES = 256 << 10


class NotUsable(Exception):
    """The child must go. `because` is the word for the classifier: `stalled`, `placement`, `warm-up`."""

    def __init__(self, because: str, error: LlamadError) -> None:
        super().__init__(str(error))
        self.because = because
        self.error = error


class Growth:
    """Whether a load moved since it last did: a new kind of line, or figures (bytes) that grew by more than the
    noise of a process that only talks.
    """

    def __init__(self) -> None:
        self._lines = -1
        self._figures: tuple[int, ...] = ()

    def seen(self, lines: int, figures: tuple[int, ...]) -> bool:
        """Take in the latest; whether they are progress."""
        grew = len(figures) > len(self._figures) or any(
            latest - last >= GROWTH_BYTES for latest, last in zip(figures, self._figures, strict=False)
        )
        if lines <= self._lines and not grew:
            return False
        self._lines = max(lines, self._lines)
        self._figures = figures or self._figures
        return True


def tell_loading(launch: Launch, reporter: Reporter) -> None:
    """The record of a llama-server that was started."""
    reporter.event(
        "loading", f"Loading {launch.definition.model} on {place_text(launch.plan)}",
        DEVICE=device_names(launch.plan),
    )  # fmt: skip


async def watch_load(child: Child, intake: Intake, launch: Launch, seams: Seams, clock: Clock) -> None:
    """Return once /health says 200 and every planned byte was seen on its device. Raises NotUsable.

    The time-out counts from the last sign of progress: a line that is new, bytes read, or memory taken. A slow disk
    is not a fault; a load that stands still is.
    """
    stall_s = launch.definition.limits.start_stall_s
    growth, sampled = Growth(), 0
    since_s = clock.monotonic()
    extended_s = since_s
    poll_s = FIRST_POLL_S
    seams.reporter.extend(stall_s + 30.0)
    while True:
        loaded = intake.loaded.is_set()
        await either(intake.loaded, poll_s if not loaded else FIRST_POLL_S, clock)
        if await seams.engine.healthy(launch.socket_path):
            break
        poll_s = min(POLL_S, poll_s * 1.5)
        if intake.observer.buffer_count != sampled:
            sampled = intake.observer.buffer_count
            await _sample(intake, launch, seams)
        now_s = clock.monotonic()
        if growth.seen(intake.progress_count, child.progress()):
            since_s = now_s
            if now_s - extended_s > 5.0:
                extended_s = now_s
                seams.reporter.extend(stall_s + 30.0)
        elif now_s - since_s > stall_s:
            raise _stalled(launch, seams, stall_s)
    await either(intake.loaded, LAST_LINES_S, clock)
    prove(intake, launch, seams)


async def _sample(intake: Intake, launch: Launch, seams: Seams) -> None:
    """Note what the driver shows free beside what the child holds. A sample that a failure overtook says nothing."""
    observed = intake.observer.observed()
    held = dict.fromkeys(child_names(launch.plan.devices).values(), 0)
    for (buffer, _), size in observed.buffers.items():
        if buffer in held:
            held[buffer] += size
    free = await seams.planner.free_bytes(launch)
    if intake.observer.observed().alloc_failures:
        return
    for name, child in child_names(launch.plan.devices).items():
        if name in free:
            intake.memory[name] = (held[child], free[name])


def prove(intake: Intake, launch: Launch, seams: Seams) -> None:
    """Hold the buffers that llama-server reported against the plan. Raises NotUsable (`placement`)."""
    try:
        intake.check_allocations()
    except LlamadError as error:
        raise NotUsable("placement", error) from error
    mismatches = compare(launch.plan, intake.observer.observed())
    if not mismatches:
        return
    text = "; ".join(str(mismatch) for mismatch in mismatches)
    fix = "check the driver, the backend package and `[environment]`; `llamad plan` shows what was planned"
    seams.reporter.event(
        "placement-mismatch", f"Not ready: {text}", CAUSE=text, FIX=fix, DEVICE=device_names(launch.plan)
    )
    raise NotUsable("placement", DeviceError("the model is not where the plan puts it", why=text, fix=fix))


async def warm_up(intake: Intake, launch: Launch, seams: Seams) -> float:
    """Have it compute for the first time; seconds that took. Raises NotUsable (`warm-up`)."""
    limits = launch.definition.limits
    seams.reporter.extend(limits.warmup_s + 30.0)
    try:
        batch_s = await seams.engine.warm_up(launch, limits.warmup_s)
        intake.check_allocations()
    except LlamadError as error:
        seams.reporter.event("warm-up-failed", f"The warm-up failed: {error}", CAUSE=str(error))
        raise NotUsable("warm-up", error) from error
    return batch_s


async def take_over_prompts(launch: Launch, seams: Seams) -> None:
    """Give a child that is warm what its predecessor kept for it. Never fails."""
    tokens = await seams.engine.restore_prompts(launch)
    if tokens:
        text = f"The prompt caches of the former llama-server were taken over: {tokens} tokens"
        seams.reporter.event("prompts-kept", text, TOKENS=str(tokens))


def _stalled(launch: Launch, seams: Seams, stall_s: float) -> NotUsable:
    text = f"no progress for {stall_s:g} s while loading {launch.definition.model}"
    seams.reporter.event("start-stalled", f"Killing llama-server: {text}")
    fix = "check the disk or network file system; a slow one can be given a larger `start_stall_s`"
    return NotUsable("stalled", ChildError(text, fix=fix))


async def either(event: asyncio.Event, timeout_s: float, clock: Clock) -> None:
    """Return when the event is set, or after the time."""
    if event.is_set():
        if timeout_s <= FIRST_POLL_S:
            await clock.sleep(timeout_s)
        return
    waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(clock.sleep(timeout_s))]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()  # not awaited: a cancellation of ours that came meanwhile would be taken for theirs
