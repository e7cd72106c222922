"""Plans in the words of `systemctl status`. Pure, ASCII only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from llamad.errors import ExitCode
from llamad.planning.plan import Plan
from llamad.units import GIB, format_bytes, listed

if TYPE_CHECKING:
    from llamad.supervision.causes import Cause
    from llamad.supervision.growth import Offer
    from llamad.supervision.launch import Launch
    from llamad.supervision.machine import State


def device_names(plan: Plan) -> str:
    """`CUDA0, CUDA1` for the journal's fields; `CPU` where no layer is on a device."""
    return ", ".join(device.name for device in plan.devices if device.layers) or "CPU"


def status_words(
    state: State, launch: Launch | None, text: str, cause: Cause | None, remarks: Iterable[str] = ()
) -> str:
    """The one line of `systemctl status`. `text`: what a waiting model waits for, what one is replaced for, or why one
    has failed or is stuck; `remarks`: what an admin should know of one that serves.
    """
    from llamad.supervision.machine import State  # a start needs other words than these

    if state.serves and launch:
        return "; ".join(filter(None, (ready_text(launch.plan), *remarks)))
    if state in (State.LOADING, State.WARMING) and launch:
        return loading_text(str(state), launch)
    if state is State.FAILED:
        return f"failed: {text}"
    if state in (State.WAITING, State.REPLACING) and text:
        return text
    if state is State.STUCK:
        return f"stuck: llama-server cannot be killed: {text}"
    if state is State.BACKOFF and cause:
        return f"{state}: {cause.text}"
    return str(state)


def loading_text(state: str, launch: Launch) -> str:
    """`loading: ctx 8192 on CUDA0`, and from which context it came down, or grew."""
    plan = launch.plan
    stepped = f", stepped down from {launch.stepped_from}" if launch.stepped_from else ""
    grown = f", grown from {launch.grown_from}" if launch.grown_from else ""
    return f"{state}: ctx {plan.context_tokens} on {place_text(plan)}{stepped}{grown}"


def ready_text(plan: Plan) -> str:
    """`ready: ctx 16384 of 16384, 41/41 layers on CUDA0, 11.9 of 15.6 GiB, 4 slots`.

    Of several devices `on CUDA0 and CUDA1, 11.9 of 15.6 GiB and 7.2 of 11.9 GiB`, in the same order.
    """
    slots = f"{plan.slots} slot{'s' if plan.slots != 1 else ''}"
    context = f"ready: ctx {plan.context_tokens} of {plan.context_train_tokens}"
    used = [device for device in plan.devices if device.layers]
    if not used:
        host = f"{_gib(plan.host.buffers_bytes)} of {_gib(plan.host_available_bytes)} GiB"
        return f"{context}, on the CPU, {host}, {slots}"
    layers = f"{plan.layers}/{plan.layers_total} layers on {place_text(plan)}"
    if plan.host_experts:
        layers += f", the experts of {plan.host_experts} on the CPU"
    taken = [(d.parts.total_bytes - d.parts.margin_bytes, d.free_bytes) for d in used]
    sizes = listed(f"{_gib(mine)} of {_gib(free)} GiB" for mine, free in taken)
    return f"{context}, {layers}, {sizes}, {slots}"


def offered_text(plan: Plan, offer: Offer) -> str:
    """`14.1 GiB of CUDA0 can be had, 9.8 GiB when it was planned, and no request is in work`."""
    before = {device.name: device.free_bytes - device.held_back_bytes for device in plan.devices}
    before = before or {"host": plan.host_available_bytes}
    had = listed(
        f"{format_bytes(size)} of {name}" + (f" ({format_bytes(before[name])} when it was planned)" * (name in before))
        for name, size in offer.free_bytes.items()
    )
    return f"{had} can be had for ten minutes now, and no request is in work"


def restarting_text(delay_s: float, why: str) -> str:
    """When llama-server is started again, and why it must be."""
    when = f"in {delay_s:.1f} s" if delay_s else "at once"
    return f"llama-server is started again {when}: {why}"


def place_text(plan: Plan) -> str:
    """`CUDA0`, `CUDA0 and CUDA1`, `the CPU`: where a plan puts its layers, for a sentence."""
    return listed(device.name for device in plan.devices if device.layers) or "the CPU"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f}" if size_bytes >= GIB else f"{size_bytes / GIB:.2f}"


def event_of(code: ExitCode) -> str:
    """The catalog's event for a final failure with this exit code."""
    by_code = {
        ExitCode.NO_DEVICE: "no-device",
        ExitCode.CONFIG: "config-refused",
        ExitCode.BAD_MODEL: "model-file",
        ExitCode.NO_MODEL_FILE: "model-file",
        ExitCode.TEMPORARY: "held-by-another",
    }
    return by_code.get(code, "gave-up")


def verdict(code: ExitCode) -> str:
    """How a failure with this exit code begins."""
    retried = (ExitCode.NO_MODEL_FILE, ExitCode.NO_DEVICE, ExitCode.TEMPORARY)
    return "Cannot serve now" if code in retried else "Giving up"


def exit_words(returncode: int) -> str:
    """A return code as subprocess gives it, in words."""
    return f"status {returncode}" if returncode >= 0 else f"signal {-returncode}"
