"""Holds a plan against llama-server's own figures for the very same flags. Pure.

The caller plans, asks, and calls `confirmed`. A `Refit` goes back into `plan(..., corrections=refit.corrections)`,
at most three times: each round knows better how far the formulas are off for this model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace

from llamad.frozen import dataclass
from llamad.planning.choice import CELL_PADDING
from llamad.planning.plan import DevicePlan, NextContext, Parts, Plan, Reason
from llamad.planning.problem import HOST
from llamad.planning.refusal import NoDevice
from llamad.units import MIB, format_bytes

_NO_PARTS = Parts()


@dataclass(frozen=True)
class Asked:
    """llama-server's breakdown: weights, context and compute by the plan's device names, and of the host.

    It prints whole MiB, rounded down: `rounding_bytes`.
    """

    devices: Mapping[str, Parts]
    host: Parts
    rounding_bytes: int = MIB
    draft: Mapping[str, Parts] | None = None
    """Of what guesses ahead, where it has an account of its own; without weights that are the model's."""
    draft_host: Parts = _NO_PARTS
    vision_bytes: int = 0
    """Of a projector with a picture of middling size; 0 = not told."""


@dataclass(frozen=True)
class Refit:
    """The plan does not fit by llama-server's figures. Plan again with `corrections`."""

    place: str
    missing_bytes: int
    context_tokens: int
    """About the context that would fit; what the next plan really takes is for the search to find."""
    corrections: Mapping[str, int] = field(default_factory=dict)
    """Bytes by device name, or `host`, that buffers take beyond the formulas; the earlier corrections included."""

    def __str__(self) -> str:
        return f"{self.place} lacks {format_bytes(self.missing_bytes)}, about {self.context_tokens} tokens would fit"


def confirmed(plan: Plan, asked: Asked, *, corrections: Mapping[str, int] | None = None) -> Plan | Refit:
    """The plan with llama-server's bytes in it, or what to plan again with.

    `corrections` are those that this plan was made with. Raises NoDevice if a planned device is not in the answer.
    """
    devices = {
        device.name: _with_vision(plan, device.name, _device_parts(device, asked), asked)
        for device in plan.devices
    }
    host = _merged(plan.host, asked.host, asked.rounding_bytes)
    host = _with_vision(plan, HOST, _with_draft(host, asked, asked.draft_host), asked)
    # Weights that the CPU backend repacks for speed are in memory but not in the breakdown: never count less.
    host = replace(host, weights_bytes=max(host.weights_bytes, plan.host.weights_bytes))
    renewed = plan.with_parts(devices, host, "asked")
    place, missing = _largest_lack(renewed)
    if missing > 0:
        found = corrections_from(plan, renewed, corrections or {})
        return Refit(place, missing, _smaller_context(renewed, place, missing), found)
    reason = Reason("bytes", "llama-server's own figures for these very flags")
    return replace(
        renewed,
        reasons=(*plan.reasons, reason),
        next_context=_renewed_next(plan, renewed),
        warnings=(*plan.warnings, *_moved_weights(plan, renewed)),
    )


def _device_parts(device: DevicePlan, asked: Asked) -> Parts:
    if device.name not in asked.devices:
        listed = ", ".join(asked.devices) or "none"
        raise NoDevice(
            f"llama-server does not use {device.name}",
            why=f"devices in its memory breakdown: {listed}",
            fix="check the driver and the backend package of llama.cpp",
        )
    merged = _merged(device.parts, asked.devices[device.name], asked.rounding_bytes)
    return _with_draft(merged, asked, (asked.draft or {}).get(device.name, _NO_PARTS))


def _with_draft(computed: Parts, asked: Asked, draft: Parts) -> Parts:
    """The draft's own account, where there is one: three figures, each rounded down."""
    if asked.draft is None:
        return computed
    shown = [size for size in (draft.weights_bytes, draft.context_bytes, draft.compute_bytes) if size]
    low, high = sum(shown), sum(shown) + len(shown) * asked.rounding_bytes
    mine = computed.draft_bytes
    return computed if low <= mine < max(high, 1) else replace(computed, draft_bytes=max(0, high - 1))


def _with_vision(plan: Plan, place: str, parts: Parts, asked: Asked) -> Parts:
    """Never less than llama-server reserves at its load; what the largest picture needs more stays counted."""
    if place != plan.vision_place:
        return parts
    return replace(parts, vision_bytes=max(parts.vision_bytes, asked.vision_bytes))


def _merged(computed: Parts, asked: Parts, rounding_bytes: int) -> Parts:
    """The asked bytes; where the computed ones round to the same, these are the finer figure."""

    def better(mine: int, theirs: int) -> int:
        return (
            mine
            if theirs <= mine < theirs + rounding_bytes
            else theirs + rounding_bytes - 1
            if theirs
            else 0
        )

    return replace(
        computed,
        weights_bytes=better(computed.weights_bytes, asked.weights_bytes),
        context_bytes=better(computed.context_bytes, asked.context_bytes),
        compute_bytes=better(computed.compute_bytes, asked.compute_bytes),
    )


def _largest_lack(plan: Plan) -> tuple[str, int]:
    host = plan.host.total_bytes + plan.cache_ram_mib * MIB - plan.host_available_bytes
    lacks = [(device.parts.total_bytes - device.budget_bytes, device.name) for device in plan.devices]
    missing, place = max([*lacks, (host, HOST)], key=lambda lack: lack[0])
    return place, missing


def corrections_from(plan: Plan, renewed: Plan, earlier: Mapping[str, int]) -> dict[str, int]:
    """How far the formulas were off, on top of the corrections that were in them already: bytes by device and host."""
    off = {
        old.name: new.parts.held_bytes - old.parts.held_bytes
        for old, new in zip(plan.devices, renewed.devices, strict=True)
    }
    off[HOST] = renewed.host.held_bytes - plan.host.held_bytes
    return {name: earlier.get(name, 0) + size for name, size in off.items()}


def _smaller_context(plan: Plan, place: str, missing_bytes: int) -> int:
    parts = next((device.parts for device in plan.devices if device.name == place), plan.host)
    per_token = parts.context_bytes // max(1, plan.context_tokens) + 2 * plan.ubatch_tokens
    fewer = -(-missing_bytes // per_token) if per_token else 0
    return max(CELL_PADDING, (plan.context_tokens - fewer) // CELL_PADDING * CELL_PADDING)


def _renewed_next(plan: Plan, renewed: Plan) -> NextContext | None:
    following = plan.next_context
    if following is None:
        return None
    pairs = zip(plan.devices, renewed.devices, strict=True)
    off = {old.name: new.parts.held_bytes - old.parts.held_bytes for old, new in pairs}
    off[HOST] = renewed.host.held_bytes - plan.host.held_bytes
    return replace(following, missing_bytes=max(0, following.missing_bytes + off.get(following.device, 0)))


def _moved_weights(plan: Plan, renewed: Plan) -> list[str]:
    moved = renewed.host.weights_bytes - plan.host.weights_bytes
    if not plan.devices or moved <= MIB:
        return []
    where = plan.devices[0].name if len(plan.devices) == 1 else "a device"
    return [
        f"{format_bytes(moved)} of weights stay in host memory: {where} cannot hold some tensors"
        " (a limit of the device on the size of one buffer), which makes it slower"
    ]
