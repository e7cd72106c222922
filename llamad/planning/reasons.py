"""The reasons of a plan in words, one for each choice. Pure."""

from __future__ import annotations

from llamad.config.definition import Placement
from llamad.hardware.device import Device
from llamad.planning.choice import Choice
from llamad.planning.plan import NextContext, Reason
from llamad.planning.problem import Problem
from llamad.planning.search import Search
from llamad.units import MIB, format_bytes


def reasons_of(
    problem: Problem,
    search: Search,
    device: Device | None,
    choice: Choice,
    *,
    cache_ram_mib: int,
    following: NextContext | None,
) -> tuple[Reason, ...]:
    """One reason for each thing that was chosen, in the order of the definition's keys."""
    placement = problem.placement
    texts = {
        "devices": _device(problem, device),
        "gpu_layers": _layers(problem, search, choice),
        "context": _context(search, choice, following),
        "parallel": _slots(placement, choice),
        "kv_cache": _cache(placement, choice),
        "ubatch": _ubatch(placement, search, choice),
        "batch": _batch(placement, choice),
        "flash_attention": _flash(placement, choice),
        "cache_ram": _cache_ram(problem, cache_ram_mib),
    }
    if device is not None and placement.memory != "auto":
        texts["memory"] = (
            f"at most {format_bytes(problem.limit_bytes(device) or 0)} of {device.name}, as written"
        )
    return tuple(Reason(topic, text) for topic, text in texts.items())


def _device(problem: Problem, device: Device | None) -> str:
    if device is None:
        if problem.placement.gpu_layers == 0:
            return "the CPU alone: gpu_layers = 0"
        return "the CPU alone: " + ("no device has room" if problem.devices else "there is no device")
    free = f"{device.name} with {format_bytes(device.free_bytes)} free"
    if problem.placement.gpus != "auto":
        return f"{free}, as named in gpus"
    return f"{free}, the only one" if len(problem.devices) == 1 else f"{free}, the first of those with room"


def _layers(problem: Problem, search: Search, choice: Choice) -> str:
    total = search.terms.layers_total
    if choice.layers == total:
        return f"all {total} layers on the device"
    if choice.layers == 0:
        return f"none of {total} layers on a device"
    if problem.placement.gpu_layers != "auto":
        return f"{choice.layers} of {total} layers on the device, as written"
    return f"{choice.layers} of {total} layers on the device: as many as fit (allow_cpu = true)"


def _context(search: Search, choice: Choice, following: NextContext | None) -> str:
    terms = search.terms
    if terms.context_tokens is not None:
        return f"{choice.context_tokens}, as written"
    if choice.context_tokens >= terms.context_limit_tokens:
        return f"{choice.context_tokens}, the length that the model was trained for"
    text = f"{choice.context_tokens} of {terms.context_limit_tokens} trained: as much as fits"
    if following:
        missing_mib = -(-following.missing_bytes // MIB)
        text += f"; {following.context_tokens} would need {missing_mib} MiB more on {following.device}"
    return text


def _slots(placement: Placement, choice: Choice) -> str:
    shared = ", sharing one cache: each may use the whole context" if choice.unified else ""
    if placement.parallel != "auto":
        return f"{choice.slots}, as written{shared}"
    return f"{choice.slots}{shared}" if choice.slots > 1 else "1: more would cost memory with this model"


def _cache(placement: Placement, choice: Choice) -> str:
    if placement.kv_cache != "auto":
        return choice.type_k
    if choice.type_k == "f16":
        return "f16: there is room for it"
    return f"{choice.type_k}: with f16 the context would be smaller"


def _ubatch(placement: Placement, search: Search, choice: Choice) -> str:
    if placement.ubatch != "auto":
        return f"{choice.ubatch_tokens}, as written"
    if choice.ubatch_tokens < search.terms.variants[0].ubatch_tokens:
        return f"{choice.ubatch_tokens}: a smaller compute buffer leaves more for the context"
    return str(choice.ubatch_tokens)


def _batch(placement: Placement, choice: Choice) -> str:
    if placement.batch != "auto":
        return f"{choice.batch_tokens}, as written"
    return (
        f"{choice.batch_tokens}, one micro-batch: larger ones make other streams wait and gain nothing here"
    )


def _flash(placement: Placement, choice: Choice) -> str:
    word = "on" if choice.flash_attention else "off"
    if placement.flash_attention != "auto":
        return f"{word}, as written"
    return word if choice.flash_attention else "off: the device has none for this model's heads"


def _cache_ram(problem: Problem, cache_ram_mib: int) -> str:
    if problem.cache_ram != "auto":
        return f"prompt cache of {cache_ram_mib} MiB in host memory, as written"
    return f"prompt cache of up to {cache_ram_mib} MiB: a quarter of the host memory left, at most 8192"
