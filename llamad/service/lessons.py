"""From a failure to a lesson: looks at the devices, tries where only trying tells, and keeps what it learned."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llamad.engine.names import child_names
from llamad.errors import ChildError
from llamad.planning.plan import DevicePlan, Parts, Plan
from llamad.service.planner import ASK_SOCKET_NAME, PlanMaker
from llamad.service.reporter import DaemonReporter
from llamad.supervision.launch import Launch
from llamad.supervision.learned import Load, Measured, args_digest
from llamad.supervision.step_down import (
    MOST_STEPS,
    Failure,
    Step,
    bisect,
    failed_device,
    is_environments,
    step,
)
from llamad.units import format_bytes

if TYPE_CHECKING:
    from llamad.engine.log import Observed

TRIES = 8
CONTEXT_STEP_TOKENS = 256
LOOKS_IN_USE = 10
"""After so many minutes in use, pools and libraries have what they ever take."""


class Lessons:
    """One model's. Blocking, but for `failed`."""

    def __init__(self, reporter: DaemonReporter) -> None:
        self._reporter = reporter
        self._failure: Failure | None = None
        self._steps = 0
        self._looks_in_use = 0
        self._lock = threading.Lock()
        """A look may be late: what others keep meanwhile must not be lost."""
        self._taken: tuple[Step, Launch] | None = None
        """The step that no plan has followed yet, and the launch that failed."""

    def failed(self, failure: Failure) -> None:
        """Keep a failure until the next plan."""
        self._failure = failure

    def drop(self) -> None:
        """Forget what has happened: the definition is another now."""
        self._failure = self._taken = None

    @property
    def pending(self) -> bool:
        """Whether the next plan must be another than the last."""
        return self._failure is not None

    def settled(self) -> None:
        """The model serves: steps count anew."""
        self._steps = 0

    def learn(self, maker: PlanMaker, launch: Launch, returned: Callable[[], object]) -> Step | None:
        """Turn the pending failure into a correction on disk; None where others took the memory.

        `returned` waits for the memory of the child that ended. Raises ChildError after too many steps.
        """
        failure, self._failure = self._failure, None
        device = failed_device(launch.plan, failure) if failure else None
        if failure is None or device is None:
            return None
        returned()
        now = {one.name: one for one in maker.devices()}
        free_bytes = now[device.name].free_bytes if device.name in now else None
        if is_environments(device, free_bytes):
            assert free_bytes is not None
            self._tell_environment(device, failure, device.free_bytes - free_bytes)
            return None
        if self._steps >= MOST_STEPS:
            raise ChildError(
                f"no smaller plan for {launch.definition.model} was small enough",
                why=f"after {self._steps} steps {failure.text}",
                fix="lower `context` in [placement], and see the records before this one",
            )
        with self._lock:
            learned = maker.learned(launch.learned_key)
            taken = step(
                launch.plan,
                failure,
                learned.reserved(
                    (one.name, one.uuid, one.free_bytes - one.held_back_bytes) for one in launch.plan.devices
                ),
                self._steps,
                lambda: self._tried(maker, launch, device),
            )
            self._steps += 1
            if taken is not None:
                maker.keep(learned.with_step(taken, time.time()))
                self._taken = taken, launch
        return taken

    def tell(self, maker: PlanMaker, launch: Launch) -> Launch:
        """The launch, with what it was stepped down from. A step has one record, though it may wait for others' memory
        before there is a plan.
        """
        if self._taken is None:
            return launch
        (taken, former), self._taken = self._taken, None
        before, after = former.plan.context_tokens, launch.plan.context_tokens
        held_back = format_bytes(taken.correction_bytes)
        self._reporter.event(
            "stepped-down",
            f"Stepped down: ctx {before} -> {after}, {held_back} of {taken.device} are left out ({taken.how}):"
            f" {taken.cause}",
            CAUSE=taken.cause, CONTEXT=str(after), FORMER=str(before), BYTES=str(taken.correction_bytes),
            DEVICE=taken.device,
        )  # fmt: skip
        with self._lock:
            maker.keep(maker.learned(former.learned_key).with_outcome(after))
        return replace(launch, stepped_from=before)

    def proved(self, maker: PlanMaker, launch: Launch, observed: Observed) -> None:
        """Remember what a load really took, where that is news."""
        self.settled()
        loads = tuple(_load(device, launch.plan, observed) for device in launch.plan.devices)
        args = args_digest(launch.argv[1:])
        plan = launch.plan
        host = Parts(plan.host.weights_bytes, plan.host.context_bytes, plan.host.compute_bytes)
        with self._lock:
            learned = maker.learned(launch.learned_key)
            renewed = learned._replace(
                context_tokens=plan.context_tokens, args_digest=args, loads=loads, host=host
            )
            if (renewed.args_digest, [one.real for one in renewed.loads]) != (
                learned.args_digest,
                [one.real for one in learned.loads],
            ):
                maker.keep(renewed)

    def measured(
        self, maker: PlanMaker, launch: Launch, observed: Observed, held: Mapping[str, int], *, ready: bool, used: bool
    ) -> None:
        """Remember what the driver shows beyond the buffers, where that is news. `held`: bytes by device UUID that it
        says llama-server holds.

        Not with a projector, adapters or a draft: not all that they take is in the log.
        """
        devices = [device for device in launch.plan.devices if held.get(device.uuid)]
        if not devices or any(device.parts.beside_bytes for device in devices):
            return
        self._looks_in_use = 0 if ready else self._looks_in_use + used
        with self._lock:
            learned = renewed = maker.learned(launch.learned_key)
            if not learned.loads:  # of another definition by now: what is kept is about that one
                return
            names = child_names(launch.plan.devices)
            for device in devices:
                buffers = sum(size for (name, _), size in observed.buffers.items() if name == names[device.name])
                outside = held[device.uuid] - buffers
                seen = Measured(
                    device.uuid, outside, outside, launch.plan.ubatch_tokens, used=self._looks_in_use >= LOOKS_IN_USE
                )  # fmt: skip
                renewed = renewed.with_measured(seen, ready=ready)
            if renewed is not learned:
                maker.keep(renewed)

    def _tried(self, maker: PlanMaker, launch: Launch, device: DevicePlan) -> int | None:
        """Bytes of a context that llama-server gets on the device when asked to; None where it cannot be asked."""
        from llamad.engine.trial import can_try, holds, trial_args  # seldom

        plan, caps = launch.plan, maker.capabilities()
        per_token = device.parts.context_bytes // max(1, plan.context_tokens)
        if per_token <= 0 or not can_try(caps):
            return None
        unit = CONTEXT_STEP_TOKENS * (1 if plan.unified_cache else plan.slots)
        socket_path: Path = maker.scratch / ASK_SOCKET_NAME

        def enough(units: int) -> bool | None:
            args = trial_args(launch.argv[1:], units * unit, str(socket_path))
            answer = holds(launch.argv[0], args, launch.env)
            can = "can be had" if answer else "cannot be had" if answer is False else "could not be tried"
            self._reporter.child_line("info", f"tried out: a context of {units * unit} tokens {can}", 0)
            return answer

        units = bisect(0, max(2, device.parts.buffers_bytes // per_token // unit), enough, TRIES)
        return units * unit * per_token if units else None

    def _tell_environment(self, device: DevicePlan, failure: Failure, missing_bytes: int) -> None:
        text = (
            f"{failure.text}: {format_bytes(missing_bytes)} of {device.name} were taken by others meanwhile"
        )
        self._reporter.event(
            "memory-taken", f"Nothing is learned: {text}", CAUSE=text, DEVICE=device.name, BYTES=str(missing_bytes)
        )  # fmt: skip


def _load(device: DevicePlan, plan: Plan, observed: Observed) -> Load:
    child = child_names(plan.devices)[device.name]
    real = Parts(
        observed.bytes_of(child, "model"),
        observed.bytes_of(child, "kv", "rs"),
        observed.bytes_of(child, "compute", "output"),
    )
    planned = Parts(device.parts.weights_bytes, device.parts.context_bytes, device.parts.compute_bytes)
    return Load(device.name, planned, real)
