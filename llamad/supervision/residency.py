"""Which loaded models make room for one that has to wait for memory. Pure.

Nobody is sent away unless that suffices. Of all sets that suffice it is a smallest one, and of those the one that has
been idle for longest, measured by the time that loading it again would take: idle_s / load_s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

LEAST_LOADS = 3.0
"""A model stays for at least so many times the time that it took to load."""
_EXACT_SETS = 20_000
"""So many sets are looked at one by one; with more the largest models are taken first."""


class Resident(NamedTuple):
    """A model that has memory."""

    name: str
    holds: Mapping[str, int]
    """Bytes by place that come back when it goes."""
    idle_s: float = 0.0
    """Since its last request ended; 0 while it has one."""
    load_s: float = 1.0
    resident_s: float = 0.0
    """Since it was ready."""
    pinned: bool = False
    """It never goes: `start = "always"`, or not ready yet."""
    fresh: bool = False
    """It was loaded for a request whose answer has not begun."""
    leaving: bool = False
    """It is on its way out already."""


class Decision(NamedTuple):
    """Who goes now; where nobody does, when it is worth asking again (None: only when something changes)."""

    evict: tuple[str, ...] = ()
    after_s: float | None = None


def least_resident_s(load_s: float, floor_s: float) -> float:
    """How long a model stays at least, once it is ready."""
    return max(floor_s, LEAST_LOADS * load_s)


def choose(missing: Mapping[str, int], residents: Iterable[Resident], floor_s: float = 30.0) -> Decision:
    """Whom to evict so that `missing` bytes come free on any one of its places.

    Idle models go first; busy ones, which are drained with a bound, only where the idle ones do not suffice, so that
    a busy model cannot keep who waits out for ever. `floor_s`: see `least_resident_s`.
    """
    everybody = list(residents)
    options = [option for place, size in missing.items() if (option := _for_place(place, size, everybody, floor_s))]
    if any(not option.evict and option.after_s is None for option in options):
        return Decision()  # what is leaving already suffices
    sets = [option for option in options if option.evict]
    if sets:
        by_name = {one.name: one for one in everybody}
        return min(sets, key=lambda option: _cost([by_name[name] for name in option.evict]))
    waits = [option.after_s for option in options if option.after_s is not None]
    return Decision(after_s=min(waits)) if waits else Decision()


def _for_place(place: str, size: int, everybody: Sequence[Resident], floor_s: float) -> Decision | None:
    """The decision for one place; None where nothing helps."""
    coming = sum(one.holds.get(place, 0) for one in everybody if one.leaving)
    if coming >= size:
        return Decision()
    needed = size - coming
    movable = [
        one
        for one in everybody
        if one.holds.get(place, 0) > 0 and not (one.pinned or one.fresh or one.leaving)
    ]
    settled = [one for one in movable if one.resident_s >= least_resident_s(one.load_s, floor_s)]
    for group in ([one for one in settled if one.idle_s > 0], settled):
        found = _smallest(place, needed, group)
        if found:
            return Decision(tuple(sorted(one.name for one in found)))
    if sum(one.holds[place] for one in movable) < needed:
        return None
    due = [least_resident_s(one.load_s, floor_s) - one.resident_s for one in movable if one not in settled]
    return Decision(after_s=min(due))


def _smallest(place: str, needed: int, group: Sequence[Resident]) -> Sequence[Resident]:
    """A smallest set that holds `needed` bytes, the cheapest of them; () where all together hold less."""
    by_size = sorted(group, key=lambda one: -one.holds[place])
    count, held = 0, 0
    while held < needed:
        if count == len(by_size):
            return ()
        held += by_size[count].holds[place]
        count += 1
    if _sets(len(by_size), count) > _EXACT_SETS:
        return by_size[:count]
    enough = (
        chosen
        for chosen in combinations(by_size, count)
        if sum(one.holds[place] for one in chosen) >= needed
    )
    return min(enough, key=_cost)


def _sets(members: int, count: int) -> int:
    total = 1
    for number in range(count):
        total = total * (members - number) // (number + 1)
    return total


def _cost(chosen: Sequence[Resident]) -> tuple[int, int, float, tuple[str, ...]]:
    """Less is better: busy ones, then how many, then how little idle they are; names make it the same each time."""
    busy = sum(one.idle_s <= 0 for one in chosen)
    idleness = min(one.idle_s / max(one.load_s, 0.001) for one in chosen)
    return busy, len(chosen), -idleness, tuple(sorted(one.name for one in chosen))
