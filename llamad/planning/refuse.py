"""Builds the refusal for lack of memory: what the smallest allowed plan needs, and which one change would do. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from llamad.hardware.device import Device
from llamad.planning.cache import is_quantised
from llamad.planning.choice import CELL_PADDING, Choice
from llamad.planning.problem import HOST, Problem
from llamad.planning.refusal import Change, Lack, NeverFits, NoDevice, NoRoomNow, PromiseError, no_room
from llamad.planning.search import Search
from llamad.planning.solution import Solution, is_solvable, solve, solve_beyond

_MOST_CHANGES = 3
_SMALLEST_USEFUL_TOKENS = 2 * CELL_PADDING
_SMALLEST_UBATCH = 64
_PROJECTOR_ON_CPU = "[vision] offload"

_Way = tuple[int, int, tuple[Device, ...], Search, Choice]
"""Bytes that the device lacks which lacks most, a place in the order, and what for."""


def refusal(problem: Problem, written: frozenset[str]) -> NoRoomNow | NeverFits:
    """The error for a problem that `solve` found no solution for."""
    devices, search, choice = _nearest(problem)
    changes = []
    for change in _changes(problem, search, choice):
        changes.append(change)
        if len(changes) == _MOST_CHANGES:
            break
    lack = _lack(problem, devices, search, choice, by_default=_by_default(problem, written))
    alone = problem.emptied()
    return no_room(lack, tuple(changes), ever=alone != problem and is_solvable(alone))


def changed(problem: Problem, change: Change) -> Problem:
    """The problem with one edit of the definition made."""
    if change.key == _PROJECTOR_ON_CPU:
        return problem.with_vision_on_host(asked=True) or problem
    if change.key == "cache_ram":
        return replace(problem, cache_ram=str(change.value))
    edit: dict[str, Any] = {change.key: change.value}
    return replace(problem, placement=replace(problem.placement, **edit))


def _nearest(problem: Problem) -> tuple[tuple[Device, ...], Search, Choice]:
    """The smallest plan that keeps every promise, on the devices where it lacks least."""
    placement = problem.placement
    sets: list[tuple[Device, ...]] = list(problem.sets()) if placement.gpu_layers != 0 else []
    if not sets or (placement.allow_cpu and placement.gpu_layers == "auto"):
        sets = [()]  # the CPU alone was the last resort, so it is what lacks memory
    ways: list[_Way] = []
    for devices in sets:
        search = problem.search(devices)
        layers = _smallest_layers(problem, search, devices)
        for variant in search.terms.variants:
            choice = search.choice(variant, search.terms.floor_tokens, layers)
            sure = max(0, search.surely_lacks(choice) // len(devices)) if layers else 0
            ways.append((sure, len(ways), devices, search, choice))
    best: _Way | None = None
    for sure, place, devices, search, choice in sorted(ways, key=lambda way: way[:2]):
        if best and (sure, place) > best[:2]:
            continue  # it lacks more
        choice = search.nearest(choice)
        need = search.demand.need(choice)
        missing = max(*search.room.missing(need), search.room.host_missing(need), 0)
        if best is None or (missing, place) < best[:2]:
            best = missing, place, devices, search, choice
    assert best
    return best[2:]


def _smallest_layers(problem: Problem, search: Search, devices: tuple[Device, ...]) -> int:
    if not devices:
        return 0
    wanted = problem.placement.gpu_layers
    return search.terms.layers_total if wanted == "auto" else min(wanted, search.terms.layers_total)


def _lack(
    problem: Problem, devices: tuple[Device, ...], search: Search, choice: Choice, *, by_default: bool
) -> Lack:
    need = search.demand.need(choice)
    at = f"{choice.context_tokens} tokens of context ({choice.type_k}, micro-batch {choice.ubatch_tokens})"
    if search.terms.context_tokens is None:
        at = f"context_min = {at}{', the default,' if by_default else ''}"
    if len(devices) > 1:
        at += f" over {len(devices)} devices"
    lacks = search.room.missing(need)
    if lacks and max(lacks) > 0:
        index = lacks.index(max(lacks))
        device, parts = devices[index], need.devices[index]
        budget = search.room.devices[index].budget(parts)
        return Lack(problem.title, device.name, parts, at, device.free_bytes, budget, lacks[index])
    available = problem.host.available_bytes
    return Lack(
        problem.title,
        HOST,
        need.host,
        at,
        available,
        search.room.host_bytes,
        search.room.host_missing(need),
        search.room.cache_ram_bytes,
    )


def _by_default(problem: Problem, written: frozenset[str]) -> bool:
    return problem.placement.context == "auto" and "placement.context_min" not in written


def _changes(problem: Problem, search: Search, nearest: Choice) -> Iterator[Change]:
    """Edits that were tried and found to fit, the least intrusive first."""
    for change in (*_returns_to_auto(problem), *_smaller_ubatch(problem, nearest)):
        if _fits(problem, change):
            yield change
    if problem.with_vision_on_host(asked=True) is not None:
        yield from _described(problem, Change(_PROJECTOR_ON_CPU, value=False))
    yield from _smaller_context(problem, search, nearest)
    if problem.placement.kv_cache != "auto" and not is_quantised(problem.placement.kv_cache):
        yield from _described(problem, Change("kv_cache", "q8_0"))
    if not problem.placement.allow_cpu and problem.placement.gpu_layers == "auto":
        yield from _with_cpu(problem)


def _returns_to_auto(problem: Problem) -> Iterator[Change]:
    placement = problem.placement
    for key in ("memory", "vram_margin", "gpus", "main_gpu"):
        if getattr(placement, key) != "auto":
            yield Change(key, "auto")
    if placement.tensor_split:
        yield Change("tensor_split", ())
    if placement.split_mode == "none":
        yield Change("split_mode", "layer")
    if placement.parallel not in ("auto", 1):
        yield Change("parallel", 1)
    if problem.cache_ram != "auto":
        yield Change("cache_ram", "auto")


def _smaller_ubatch(problem: Problem, nearest: Choice) -> Iterator[Change]:
    if problem.placement.ubatch != "auto":
        smaller = nearest.ubatch_tokens // 2
        while smaller >= _SMALLEST_UBATCH:
            yield Change("ubatch", smaller)
            smaller //= 2


def _smaller_context(problem: Problem, search: Search, nearest: Choice) -> Iterator[Change]:
    most = max(search.largest_tokens(variant, nearest.layers) for variant in search.terms.variants)
    most = min(most, search.terms.floor_tokens)
    if most >= _SMALLEST_USEFUL_TOKENS:
        key = "context" if search.terms.context_tokens is not None else "context_min"
        change = Change(key, most)
        if _fits(problem, change):
            yield change


def _described(problem: Problem, change: Change) -> Iterator[Change]:
    try:
        found = solve(changed(problem, change))
    except (NoDevice, PromiseError):
        return
    if found:
        yield replace(change, note=f" at {found.choice.context_tokens}")


def _with_cpu(problem: Problem) -> Iterator[Change]:
    """Without the CPU there is no room: that was found out already."""
    change = Change("allow_cpu", value=True)
    found = solve_beyond(problem.with_cpu(), any_does=True)
    if found:
        yield replace(change, note=f" with {_on_devices(found)}, much slower")


def _on_devices(found: Solution) -> str:
    choice, total = found.choice, found.search.terms.layers_total
    where = "a device" if len(found.devices) < 2 else f"{len(found.devices)} devices"
    if choice.host_experts and choice.layers == total:
        return f"the experts of {choice.host_experts} layers on the CPU"
    return f"{choice.layers} of {total} layers on {where}"


def _fits(problem: Problem, change: Change) -> bool:
    """Whether it would after a change; not if that contradicts another promise."""
    try:
        return is_solvable(changed(problem, change))
    except (NoDevice, PromiseError):
        return False
