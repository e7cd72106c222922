"""From a model, a machine and a definition to a plan, or to a refusal that says what would help. Pure.

Order of sacrifice under `auto`: whole model on a device with the full context, less context, a quantised cache
(`kv_cache = "auto"`), a smaller micro-batch, a smaller prompt cache, context down to `context_min`, and with
`allow_cpu` the projector to the CPU, then experts, fewer layers on the device, the CPU alone. What the definition
promises is kept or refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from llamad.config.definition import Placement
from llamad.gguf.facts import ModelFacts
from llamad.hardware.device import Device, HostMemory
from llamad.planning.choice import Choice
from llamad.planning.demand import Need
from llamad.planning.plan import BuildGates, DevicePlan, NextContext, Plan
from llamad.planning.problem import HOST, Problem
from llamad.planning.reasons import checkpoint_reasons, reasons_of
from llamad.planning.refusal import NoDevice, PromiseError
from llamad.planning.search import Search
from llamad.planning.solution import Solution, solve
from llamad.units import MIB

if TYPE_CHECKING:
    from llamad.planning.extras import Extras

_NOTHING: Mapping[str, int] = MappingProxyType({})
_CACHE_RAM_MOST_BYTES = 8192 * MIB
_CHECKPOINTS_MOST = 32  # llama-server's default
_CACHE_RAM_STEP_BYTES = 64 * MIB


def plan(
    facts: ModelFacts,
    devices: Sequence[Device],
    host: HostMemory,
    placement: Placement,
    written: frozenset[str],
    gates: BuildGates,
    *,
    cache_ram: str = "auto",
    reserved: Mapping[str, int] = _NOTHING,
    measured_overhead: Mapping[str, int] = _NOTHING,
    corrections: Mapping[str, int] = _NOTHING,
    lessons: Mapping[str, int] = _NOTHING,
    rooms: Mapping[str, int] = _NOTHING,
    share: Mapping[str, int] | None = None,
    others: Sequence[str] = (),
    extras: Extras | None = None,
    most_tokens: int | None = None,
) -> Plan:
    """The best plan for a model on this machine at this moment.

    `written`: keys that the admin wrote, as `placement.context`; they only change wording, since every value that
    is not `auto` is kept or refused. `reserved`, `measured_overhead` and `corrections` are bytes by device name or
    UUID, or `host`: held back for others; taken outside llama.cpp's buffers by a former load; found missing in the
    computed buffers by a better source (see confirm.py). `lessons`, `rooms`: what former loads taught: bytes of the
    free ones that nobody can have, and how many there are at most; no wait changes them. `share`: what the model may
    take beside `others`, which are meant to run too (see shares.py); without a plan that keeps to it, all that is free
    may be taken.
    `extras`: what is there beside the model; None = nothing. `most_tokens`: what a context of `auto` may be at most.

    Raises NoDevice (69), NoRoomNow (75), NeverFits or PromiseError (78).
    """
    problem = Problem(
        facts,
        tuple(devices),
        host,
        placement,
        gates,
        cache_ram,
        reserved,
        measured_overhead,
        corrections,
        share,
        extras,
        lessons,
        rooms,
        most_tokens,
    )
    _refuse_half_kept(problem)
    _refuse_without_device(problem)
    found = solve(problem)
    if found is None and share is not None:
        problem, others = replace(problem, share=None), ()
        found = solve(problem)
    if found is None:
        from llamad.planning.refuse import refusal  # only for what is refused: a start has no time for it

        raise refusal(problem, written)
    return _plan_of(problem, replace(found, choice=found.search.balanced(found.choice)), others)


def _refuse_half_kept(problem: Problem) -> None:
    placement = problem.placement
    for key, value, what in _left_to_the_cpu(problem):
        if value and not placement.allow_cpu:
            raise PromiseError(
                f"{key} leaves {what} to the CPU",
                why="allow_cpu is false",
                fix=f"write allow_cpu = true, or remove {key.partition(' ')[0]}",
            )
    layers = placement.gpu_layers
    if layers != "auto" and layers <= problem.facts.n_layers and not placement.allow_cpu:
        raise PromiseError(
            f"gpu_layers = {layers} leaves {problem.facts.n_layers + 1 - layers} layers to the CPU",
            why="allow_cpu is false",
            fix='write allow_cpu = true, or gpu_layers = "auto"',
        )


def _left_to_the_cpu(problem: Problem) -> tuple[tuple[str, bool, str], ...]:
    """Keys that place something apart from its layer: as written, whether they do, and what."""
    placement, experts = problem.placement, problem.facts.n_expert > 0
    return (
        ("cpu_moe = true", placement.cpu_moe and experts, "experts"),
        (
            f"n_cpu_moe = {placement.n_cpu_moe}",
            placement.n_cpu_moe not in ("auto", 0) and experts,
            "experts",
        ),
        (f"n_cpu_ffn = {placement.n_cpu_ffn}", placement.n_cpu_ffn not in ("auto", 0), "matrices"),
        ("kv_offload = false", not placement.kv_offload, "caches and attention"),
    )


def _refuse_without_device(problem: Problem) -> None:
    placement = problem.placement
    if (
        placement.gpu_layers == 0
        or problem.candidates()
        or (placement.allow_cpu and placement.gpu_layers == "auto")
    ):
        return
    raise NoDevice(
        f"no device for {problem.title}",
        why="neither the driver nor llama-server lists one",
        fix="check the driver and llama.cpp's backend package, or write allow_cpu = true",
    )


def _plan_of(problem: Problem, found: Solution, others: Sequence[str]) -> Plan:
    devices, search, choice = found.devices, found.search, found.choice
    need = search.demand.need(choice)
    checkpoints, checkpoints_bytes = _checkpoints(problem, search, need, choice)
    cache_ram_mib = _cache_ram_mib(problem, search, need, checkpoints_bytes)
    following = _following(found)
    return Plan(
        model=problem.facts.path,
        context_tokens=choice.context_tokens,
        context_train_tokens=problem.facts.n_ctx_train,
        slots=choice.slots,
        unified_cache=choice.unified,
        cache_type_k=choice.type_k,
        cache_type_v=choice.type_v,
        batch_tokens=choice.batch_tokens,
        ubatch_tokens=choice.ubatch_tokens,
        flash_attention=choice.flash_attention,
        layers=choice.layers,
        layers_total=search.terms.layers_total,
        split_mode=problem.placement.split_mode if devices else "layer",
        main_device=devices[0].name if devices else "none",
        tensor_split=choice.split if len(devices) > 1 else (),
        cache_ram_mib=cache_ram_mib,
        devices=_device_plans(problem, found, need),
        host=need.host,
        host_available_bytes=problem.host.available_bytes,
        reasons=(
            *reasons_of(problem, found, cache_ram_mib=cache_ram_mib, following=following, others=others),
            *checkpoint_reasons(problem, checkpoints, checkpoints_bytes),
        ),
        next_context=following,
        warnings=_warnings(problem, choice),
        host_experts=choice.host_experts,
        host_ffn=choice.host_ffn,
        pipeline=choice.pipeline,
        checkpoints=checkpoints,
        exact=search.demand.exact(choice),
        vision_place=_vision_place(problem, found),
        doubts=_doubts(search, choice),
    )


def _vision_place(problem: Problem, found: Solution) -> str:
    if problem.extras is None or problem.extras.vision is None:
        return ""
    beside = found.search.demand.beside
    index = beside.vision_place if beside else None
    return HOST if index is None else found.devices[index].name


def _device_plans(problem: Problem, found: Solution, need: Need) -> tuple[DevicePlan, ...]:
    rows = zip(found.devices, found.choice.counts, need.devices, found.search.room.devices, strict=True)
    return tuple(
        DevicePlan(
            name=device.name,
            uuid=device.uuid,
            free_bytes=device.free_bytes,
            total_device_bytes=device.total_bytes,
            layers=layers,
            parts=parts,
            budget_bytes=room.budget(parts),
            held_back_bytes=problem.held_back_bytes(device),
        )
        for device, layers, parts, room in (rows if found.devices else ())
    )


def _checkpoints(problem: Problem, search: Search, need: Need, choice: Choice) -> tuple[int | None, int]:
    """How many checkpoints of states and windows llama-server may keep a slot, and their bytes in all.

    Without them a prompt that differs a little is computed again from its start. They are host memory that grows
    with use, 32 a slot by default: at most a quarter of what is left. None = the model needs none.
    """
    size = search.demand.cache.checkpoint_bytes(choice) * choice.slots
    if not size:
        return None, 0
    written = problem.placement.ctx_checkpoints
    if written != "auto":
        return written, 0  # promised, so it is in the host's parts already
    left = max(0, -search.room.host_missing(need))
    count = min(_CHECKPOINTS_MOST, left // 4 // size)
    return count, count * size


def _cache_ram_mib(problem: Problem, search: Search, need: Need, taken_bytes: int) -> int:
    """The promised prompt cache, or a share of what is left of the host's memory, in steps that hide its noise."""
    if problem.cache_ram != "auto":
        return problem.promised_cache_ram_bytes // MIB
    left = max(0, -search.room.host_missing(need) - taken_bytes)
    chosen = min(_CACHE_RAM_MOST_BYTES, left // 4)
    return chosen // _CACHE_RAM_STEP_BYTES * (_CACHE_RAM_STEP_BYTES // MIB)


def _following(found: Solution) -> NextContext | None:
    """What the next larger round context lacks, on the device (or the host) where it lacks most."""
    search = found.search
    larger = search.larger_context(found.choice)
    if larger is None:
        return None
    need = search.demand.need(search.nearest(replace(larger, split=())))
    lacks = [
        (missing, device.name)
        for device, missing in zip(found.devices, search.room.missing(need), strict=False)
    ]
    missing, place = max([*lacks, (search.room.host_missing(need), HOST)], key=lambda lack: lack[0])
    return NextContext(larger.context_tokens, place, max(0, missing))


def _warnings(problem: Problem, choice: Choice) -> tuple[str, ...]:
    found = []
    if not choice.flash_attention:
        found.append("without flash attention the compute buffer grows with every head and token")
    if choice.host_experts and choice.layers:
        found.append(f"the experts of {choice.host_experts} layers run on the CPU")
    if not problem.facts.n_expert and (
        problem.placement.cpu_moe or problem.placement.n_cpu_moe not in ("auto", 0)
    ):
        found.append("cpu_moe and n_cpu_moe do nothing: the model has no experts")
    return tuple(found)


def _doubts(search: Search, choice: Choice) -> tuple[str, ...]:
    """Why the computed bytes are no more than a bound."""
    shape, found = search.demand.shape, []
    why = ", ".join(shape.doubts)
    if shape.proof == "bounded":
        found.append(f"not proved for this model ({why}): a fifth and 256 MiB of compute buffer are added")
    if shape.proof == "unknown":
        found.append(f"no formula is known for this model ({why}): half as much again and 512 MiB are added")
    if not found and choice.flash_attention and not search.demand.exact(choice):
        found.append("the first device copies caches of the layers on the CPU: the larger half counts twice")
    return tuple(found)
