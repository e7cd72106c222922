"""Plans in the words of `systemctl status`. Pure, ASCII only."""

from __future__ import annotations

from llamad.errors import ExitCode
from llamad.planning.plan import Plan
from llamad.units import GIB, listed


def device_names(plan: Plan) -> str:
    """`CUDA0, CUDA1` for the journal's fields; `CPU` where no layer is on a device."""
    return ", ".join(device.name for device in plan.devices if device.layers) or "CPU"


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
