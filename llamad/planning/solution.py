"""The order in which devices and layer counts are tried. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from llamad.hardware.device import Device
from llamad.planning.choice import Choice
from llamad.planning.problem import Problem
from llamad.planning.search import Search


@dataclass(frozen=True)
class Solution:
    """A choice that fits, and where. `device` None = the CPU alone."""

    device: Device | None
    search: Search
    choice: Choice


def solve(problem: Problem) -> Solution | None:
    """The best solution, or None. Raises NoDevice and PromiseError as `Problem.candidates` and `.search` do."""
    wanted = problem.placement.gpu_layers
    if wanted == 0:
        return _on_cpu(problem)
    searches = [(device, problem.search(device)) for device in problem.candidates()]
    for device, search in searches:
        total = search.terms.layers_total
        layers = total if wanted == "auto" else min(wanted, total)
        if choice := search.best(layers):
            return Solution(device, search, choice)
    if not problem.placement.allow_cpu or wanted != "auto":
        return None
    return _partly_on_cpu(searches) or _on_cpu(problem)


def _partly_on_cpu(searches: list[tuple[Device, Search]]) -> Solution | None:
    """The device that takes most layers; the first of equals."""
    found = [
        Solution(device, search, choice) for device, search in searches if (choice := search.best_partial())
    ]
    return max(found, key=lambda solution: solution.choice.layers, default=None)


def _on_cpu(problem: Problem) -> Solution | None:
    search = problem.search(None)
    choice = search.best(0)
    return Solution(None, search, choice) if choice else None
