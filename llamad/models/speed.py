"""How quickly a model would answer: a token is as quick as the bytes that it reads from memory. Pure.

An estimate for choosing among models, within about a third of what llama-bench shows for generation on one stream.
Measured rates are the business of `llamad bench`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llamad.gguf.facts import ModelFacts
from llamad.planning.plan import DevicePlan, Plan

DEVICE_SHARE = 0.75
HOST_SHARE = 0.6
"""Of the memory's bandwidth, what llama.cpp's kernels get in the long run."""
LAYER_DEVICE_S = 50e-6
LAYER_HOST_S = 30e-6
"""What a layer costs beside its bytes: starting kernels, waiting for threads.

Fitted to published rates of Llama 3 8B and 70B, Q4_K_M and F16, on an RTX 3090, an RTX 4090, an A100 and an H100."""
DEPTH_TOKENS = 4096
"""So full is the context that the rate is told for."""


def tokens_s(
    plan: Plan,
    facts: ModelFacts,
    active: Mapping[str, float],
    speeds: Mapping[str, float],
    host_bytes_s: float,
) -> float:
    """Tokens a second of one stream under a plan.

    `active`: bytes of each tensor that a token reads; `speeds`: bytes a second by the devices' names.
    """
    on_host = _host_bytes(plan, facts, active)
    weights = sum(active.values())
    cached = sum(_cache_bytes(plan, part.parts.context_bytes) for part in plan.devices)
    cached_host = _cache_bytes(plan, plan.host.context_bytes)
    seconds = (on_host + cached_host) / (HOST_SHARE * host_bytes_s)
    if plan.devices:
        seconds += (weights - on_host + cached) / (DEVICE_SHARE * _mean_speed(plan.devices, speeds))
    device_layers = min(plan.layers, facts.n_layers) if plan.devices else 0
    return 1 / (seconds + device_layers * LAYER_DEVICE_S + (facts.n_layers - device_layers) * LAYER_HOST_S)


def _host_bytes(plan: Plan, facts: ModelFacts, active: Mapping[str, float]) -> float:
    """Of the bytes of a token, those of layers and experts that the plan leaves to the CPU."""
    if not plan.devices:
        return sum(active.values())
    first_on_device = facts.n_layers + 1 - plan.layers
    if first_on_device <= 0 and not plan.host_experts:
        return 0.0
    found = 0.0
    for name, size in active.items():
        if name.startswith("blk."):
            layer = int(name.split(".")[1])
            if layer < first_on_device or (layer < plan.host_experts and "_exps." in name):
                found += size
    return found


def _cache_bytes(plan: Plan, context_bytes: int) -> float:
    return context_bytes * min(1.0, DEPTH_TOKENS / max(1, plan.context_tokens))


def _mean_speed(devices: Sequence[DevicePlan], speeds: Mapping[str, float]) -> float:
    """Of devices that work one after another, each on its own layers."""
    layers = sum(max(1, device.layers) for device in devices)
    return layers / sum(max(1, device.layers) / speeds[device.name] for device in devices)
