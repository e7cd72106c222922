"""The order in which devices and layer counts are tried. Pure."""

from __future__ import annotations

from llamad.frozen import dataclass
from llamad.hardware.device import Device
from llamad.planning.choice import Choice
from llamad.planning.problem import Problem
from llamad.planning.search import Search

# A larger set of devices is worth its copies and its waiting only for a context that is larger by a quarter.
_WORTH_NUMERATOR, _WORTH_DENOMINATOR = 5, 4


@dataclass(frozen=True)
class Solution:
    """A choice that fits, and on which devices; none = the CPU alone."""

    devices: tuple[Device, ...]
    search: Search
    choice: Choice


def solve(problem: Problem) -> Solution | None:
    """The best solution, or None. Raises NoDevice and PromiseError as `Problem.sets` and `.search` do."""
    wanted = problem.placement.gpu_layers
    if wanted == 0:
        return _on_cpu(problem)
    searches = [(devices, problem.search(devices)) for devices in problem.sets()]
    if found := _whole(searches, wanted):
        return found
    if not problem.placement.allow_cpu or wanted != "auto":
        return None
    if (moved := problem.with_vision_on_host()) is not None:
        return solve(moved)
    experts_auto = problem.placement.n_cpu_moe == "auto" and not problem.placement.cpu_moe
    found = _experts_on_cpu(searches) if experts_auto else None
    return found or _partly_on_cpu(searches) or _on_cpu(problem)


_Searches = list[tuple[tuple[Device, ...], Search]]


def _whole(searches: _Searches, wanted: int | str) -> Solution | None:
    """All layers, or as many as written, on devices: the first set with a comfortable context, else the largest."""
    best: Solution | None = None
    for devices, search in searches:
        total = search.terms.layers_total
        layers = min(wanted, total) if isinstance(wanted, int) else total
        choice = search.best(layers)
        if choice is None:
            continue
        if choice.context_tokens >= search.terms.comfort_tokens:
            return Solution(devices, search, choice)
        if best is None or _worth(choice, len(devices), best):
            best = Solution(devices, search, choice)
    return best


def _worth(choice: Choice, devices: int, best: Solution) -> bool:
    if devices == len(best.devices):
        return choice.context_tokens > best.choice.context_tokens
    return choice.context_tokens * _WORTH_DENOMINATOR >= best.choice.context_tokens * _WORTH_NUMERATOR


def _experts_on_cpu(searches: _Searches) -> Solution | None:
    """The devices that leave the fewest experts to the CPU; the first of equals."""
    found = [
        Solution(devices, search, choice)
        for devices, search in searches
        if search.demand.weights.has_experts and (choice := search.best_with_host_experts())
    ]
    return min(found, key=lambda solution: solution.choice.host_experts, default=None)


def _partly_on_cpu(searches: _Searches) -> Solution | None:
    """The devices that take most layers; the first of equals."""
    found = [
        Solution(devices, search, choice)
        for devices, search in searches
        if (choice := search.best_partial())
    ]
    return max(found, key=lambda solution: solution.choice.layers, default=None)


def _on_cpu(problem: Problem) -> Solution | None:
    search = problem.search(())
    choice = search.best(0)
    return Solution((), search, choice) if choice else None
