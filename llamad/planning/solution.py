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
    if found := _whole(_searches(problem), wanted):
        return found
    if not problem.placement.allow_cpu or wanted != "auto":
        return None
    return solve_beyond(problem)


def solve_beyond(problem: Problem, *, any_does: bool = False) -> Solution | None:
    """The best solution with a part on the CPU, for a problem that has none without. Raises as `solve`.

    `any_does`: what goes where is asked, and not with how much context.
    """
    if (moved := problem.with_vision_on_host()) is not None:
        return solve(moved)
    searches = _searches(problem)
    experts_auto = problem.placement.n_cpu_moe == "auto" and not problem.placement.cpu_moe
    found = _experts_on_cpu(searches, any_does=any_does) if experts_auto else None
    return found or _partly_on_cpu(searches, any_does=any_does) or _on_cpu(problem, any_does=any_does)


def is_solvable(problem: Problem) -> bool:
    """Whether `solve` would find anything, which is quicker told than what. Raises as `solve`."""
    wanted = problem.placement.gpu_layers
    if wanted == 0:
        return _on_cpu(problem, any_does=True) is not None
    searches = _searches(problem)
    if any(search.best(_whole_layers(search, wanted), any_does=True) for _, search in reversed(searches)):
        return True
    if not problem.placement.allow_cpu or wanted != "auto":
        return False
    return solve_beyond(problem, any_does=True) is not None


_Searches = list[tuple[tuple[Device, ...], Search]]


def _searches(problem: Problem) -> _Searches:
    return [(devices, problem.search(devices)) for devices in problem.sets()]


def _whole_layers(search: Search, wanted: int | str) -> int:
    total = search.terms.layers_total
    return min(wanted, total) if isinstance(wanted, int) else total


def _whole(searches: _Searches, wanted: int | str) -> Solution | None:
    """All layers, or as many as written, on devices: the first set with a comfortable context, else the largest."""
    best: Solution | None = None
    for devices, search in searches:
        choice = search.best(_whole_layers(search, wanted), least_tokens=_least_worth(len(devices), best))
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


def _least_worth(devices: int, best: Solution | None) -> int:
    """The smallest context for which `_worth` may be true."""
    if best is None:
        return 0
    tokens = best.choice.context_tokens
    if devices == len(best.devices):
        return tokens + 1
    return -(-tokens * _WORTH_NUMERATOR // _WORTH_DENOMINATOR)


# The largest sets come first here: the smaller ones are rarely as good, which one question tells then.


def _experts_on_cpu(searches: _Searches, *, any_does: bool) -> Solution | None:
    """The devices that leave the fewest experts to the CPU; the first of equals."""
    best: Solution | None = None
    for devices, search in reversed(searches):
        if not search.demand.weights.has_experts:
            continue
        most = best.choice.host_experts if best else None
        choice = search.best_with_host_experts(most, any_does=any_does)
        best = Solution(devices, search, choice) if choice else best
    return best


def _partly_on_cpu(searches: _Searches, *, any_does: bool) -> Solution | None:
    """The devices that take most layers; the first of equals."""
    best: Solution | None = None
    for devices, search in reversed(searches):
        choice = search.best_partial(best.choice.layers if best else 1, any_does=any_does)
        best = Solution(devices, search, choice) if choice else best
    return best


def _on_cpu(problem: Problem, *, any_does: bool = False) -> Solution | None:
    search = problem.search(())
    choice = search.best(0, any_does=any_does)
    return Solution((), search, choice) if choice else None
