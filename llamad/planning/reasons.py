"""The reasons of a plan in words, one for each choice. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from llamad.config.definition import Placement
from llamad.planning.choice import Choice
from llamad.planning.plan import NextContext, Reason
from llamad.planning.problem import Problem
from llamad.planning.search import Search
from llamad.planning.solution import Solution
from llamad.units import MIB, format_bytes, listed


def reasons_of(
    problem: Problem,
    found: Solution,
    *,
    cache_ram_mib: int,
    following: NextContext | None,
    others: Sequence[str] = (),
) -> tuple[Reason, ...]:
    """One reason for each thing that was chosen, in the order of the definition's keys."""
    placement, search, choice = problem.placement, found.search, found.choice
    texts = {
        "devices": _devices(problem, found),
        "gpu_layers": _layers(problem, found),
        "context": _context(search, choice, following) + _left_to(problem, found, others),
        "parallel": _slots(placement, choice),
        "kv_cache": _cache(placement, choice),
        "ubatch": _ubatch(placement, search, choice),
        "batch": _batch(placement, choice),
        "flash_attention": _flash(placement, choice),
        "cache_ram": _cache_ram(problem, cache_ram_mib),
    }
    if len(found.devices) > 1:
        texts["split"] = _split(placement, found)
    if search.demand.weights.has_experts and found.devices:
        texts["experts"] = _experts(placement, found)
    if problem.extras:
        texts |= _beside(problem, found)
    if found.devices and placement.memory != "auto":
        limits = (
            f"{format_bytes(problem.limit_bytes(device) or 0)} of {device.name}" for device in found.devices
        )
        texts["memory"] = f"at most {listed(limits)}, as written"
    return tuple(Reason(topic, text) for topic, text in texts.items())


def _beside(problem: Problem, found: Solution) -> dict[str, str]:
    extras, beside, texts = problem.extras, found.search.demand.beside, {}
    assert extras is not None
    assert beside is not None
    if extras.vision:
        index = beside.vision_place
        if index is not None:
            place = f"on {found.devices[index].name}"
        elif found.devices and extras.vision.offload:
            place = "on the CPU, so that the model has room on the device (allow_cpu = true)"
        else:
            place = "on the CPU"
        texts["vision"] = f"{place}, with room for the largest picture"
    if extras.adapters or extras.control_vectors:
        count = len(extras.adapters) + len(extras.control_vectors)
        texts["lora"] = f"{count} file{'s' if count > 1 else ''}, each part with the layer that it changes"
    if extras.draft:
        kinds = ", ".join(extras.draft.types)
        texts["draft"] = f"{kinds}: up to {extras.guessed_tokens} tokens of each slot are checked at once"
    return texts


def _devices(problem: Problem, found: Solution) -> str:
    if not found.devices:
        if problem.placement.gpu_layers == 0:
            return "the CPU alone: gpu_layers = 0"
        return "the CPU alone: " + ("no device has room" if problem.devices else "there is no device")
    named = ", as named in gpus" if problem.placement.gpus != "auto" else ""
    if len(found.devices) > 1:
        frees = listed(f"{d.name} with {format_bytes(d.free_bytes)} free" for d in found.devices)
        return f"{frees}{named}: {_why_several(problem, found)}"
    device = found.devices[0]
    free = f"{device.name} with {format_bytes(device.free_bytes)} free"
    if named:
        return f"{free}{named}"
    if len(problem.devices) == 1:
        return f"{free}, the only one"
    others = "; ".join(f"{d.name} has {format_bytes(d.free_bytes)}" for d in problem.devices if d != device)
    if _on_cpu_too(found):
        return f"{free}; no more of it would fit with others ({others})"
    return f"{free}, enough for all of it, so no other is needed ({others})"


def _why_several(problem: Problem, found: Solution) -> str:
    if problem.placement.tensor_split:
        return "shares as written in tensor_split"
    if _on_cpu_too(found) and problem.placement.gpu_layers == "auto":
        return "fewer would leave more to the CPU"
    return "fewer have no room for this context"


def _on_cpu_too(found: Solution) -> bool:
    return found.choice.layers < found.search.terms.layers_total or found.choice.host_experts > 0


def _split(placement: Placement, found: Solution) -> str:
    counts = ", ".join(
        f"{count} on {device.name}" for device, count in zip(found.devices, found.choice.counts, strict=True)
    )
    how = "as written" if placement.tensor_split else "so that the fullest has as much left as possible"
    if found.choice.pipeline:
        work = "they work on different micro-batches at once"
    elif _on_cpu_too(found):
        work = "one works at a time, as the CPU has a part too"
    else:
        work = "one works at a time, which saves three copies of the inputs"
    return f"{counts}, {how}; {work}"


def _experts(placement: Placement, found: Solution) -> str:
    kept = found.choice.host_experts
    if not kept:
        return f"on the device{'s' * (len(found.devices) > 1)} with everything else"
    written = placement.cpu_moe or placement.n_cpu_moe != "auto"
    why = "as written" if written else "as few as make the rest fit (allow_cpu = true)"
    return f"those of {kept} of {found.search.terms.layers_total - 1} layers on the CPU, {why}"


def _layers(problem: Problem, found: Solution) -> str:
    total, choice = found.search.terms.layers_total, found.choice
    where = "the device" if len(found.devices) < 2 else "the devices"
    if choice.layers == total:
        return f"all {total} layers on {where}"
    if choice.layers == 0:
        return f"none of {total} layers on a device"
    if problem.placement.gpu_layers != "auto":
        return f"{choice.layers} of {total} layers on {where}, as written"
    return f"{choice.layers} of {total} layers on {where}: as many as fit (allow_cpu = true)"


def _context(search: Search, choice: Choice, following: NextContext | None) -> str:
    terms = search.terms
    if terms.context_tokens is not None:
        return f"{choice.context_tokens}, as written"
    if choice.context_tokens >= terms.context_limit_tokens:
        return f"{choice.context_tokens}, the length that the model was trained for"
    if choice.context_tokens >= terms.largest_tokens:
        return f"{choice.context_tokens} of {terms.context_limit_tokens} trained: no more than before"
    text = f"{choice.context_tokens} of {terms.context_limit_tokens} trained: as much as fits"
    if following:
        missing_mib = -(-following.missing_bytes // MIB)
        text += f"; {following.context_tokens} would need {missing_mib} MiB more on {following.device}"
    return text


def _left_to(problem: Problem, found: Solution, others: Sequence[str]) -> str:
    """What is held back for others, where that makes the context smaller."""
    choice, terms = found.choice, found.search.terms
    if (
        problem.share is None
        or not others
        or terms.context_tokens
        or choice.context_tokens >= terms.context_limit_tokens
    ):
        return ""
    kept = (
        f"{format_bytes(held)} of {device.name}"
        for device in found.devices
        if (held := device.free_bytes - problem.free_bytes(device)) > 0
    )
    text = " and ".join(kept)
    return f"; {text} is left to {', '.join(others)}, which are enabled too" if text else ""


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
    if choice.pipeline:
        return f"{choice.batch_tokens}, so that every device has a micro-batch to work on"
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


def checkpoint_reasons(problem: Problem, count: int | None, size_bytes: int) -> tuple[Reason, ...]:
    """Of a model whose windows or states cannot be cut back to an earlier token."""
    if count is None:
        return ()
    if problem.placement.ctx_checkpoints != "auto":
        text = f"{count} checkpoints a slot, as written"
    else:
        text = (
            f"up to {count} checkpoints a slot, {format_bytes(size_bytes)} of host memory when all are taken"
        )
    return (Reason("ctx_checkpoints", text),)
