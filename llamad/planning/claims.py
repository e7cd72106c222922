"""What a model claims of devices that it shares with others: see shares.py. Pure."""

from __future__ import annotations

from llamad.hardware.device import Device
from llamad.planning.choice import Choice
from llamad.planning.problem import Problem
from llamad.planning.refusal import NoDevice, PromiseError
from llamad.planning.search import Search
from llamad.planning.shares import Claim, Claimant, Claims


def claimant(name: str, problem: Problem) -> Claimant:
    """Where the model could go if nothing else were there, and what it needs with its smallest and largest context.

    A problem that contradicts itself, or whose devices are not here, claims nothing: its own start will say why.
    """
    alone = problem.emptied()
    try:
        sets = alone.sets() if problem.placement.gpu_layers != 0 else ()
        places = tuple(claims for devices in sets if (claims := _claims(alone, devices)))
    except (NoDevice, PromiseError):
        places = ()
    return Claimant(name, places)


def _claims(alone: Problem, devices: tuple[Device, ...]) -> Claims:
    """{} where not even the smallest context fits."""
    search = alone.search(devices)
    wanted = alone.placement.gpu_layers
    layers = search.terms.layers_total if wanted == "auto" else min(wanted, search.terms.layers_total)
    smallest = _smallest(search, layers)
    if smallest is None:
        return {}
    most = search.terms.context_tokens or search.terms.context_limit_tokens
    largest = search.nearest(search.choice(search.terms.variants[0], most, layers))
    floor, want = (search.demand.need(choice).devices for choice in (smallest, largest))
    return {
        device.uuid or device.name: Claim(low.total_bytes, max(low.total_bytes, high.total_bytes))
        for device, low, high in zip(devices, floor, want, strict=True)
    }


def _smallest(search: Search, layers: int) -> Choice | None:
    """The smallest plan that keeps every promise: of all variants the one that takes least."""
    floors = (
        search.placed(search.choice(variant, search.terms.floor_tokens, layers))
        for variant in search.terms.variants
    )
    fitting = [choice for choice in floors if choice is not None]
    return min(fitting, key=lambda choice: _taken(search, choice), default=None)


def _taken(search: Search, choice: Choice) -> int:
    return sum(parts.total_bytes for parts in search.demand.need(choice).devices)
