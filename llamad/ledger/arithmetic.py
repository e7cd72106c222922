"""What the ledger decides: which bytes are still to come, who may go, who must wait. Pure.

The order of reading makes it safe: what is visible of the others' leases is noted first, then the drivers are asked
what is free, and only then, under the lock, the promises are summed up. A byte may so be counted twice, as free no
more and as still to come; never not at all.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from llamad.ledger.lease import Lease, Phase

MOST_PASSES = 3
OVERDUE_S = 5.0
"""A queued model that has not given up so long after its time is not running: nobody waits behind it."""
_NOTHING: Mapping[str, int] = {}

Seen = Mapping[str, Mapping[str, int]]
"""By the id of a lease: bytes by place that the drivers' figures lacked for certain when they were asked."""


def visible(lease: Lease, held: Mapping[str, int] = _NOTHING) -> dict[str, int]:
    """What of a lease the drivers' figures lack for certain, by place.

    `held`: what the driver itself says that its process holds. No more than was promised counts.
    """
    if lease.phase not in (Phase.LOADING, Phase.SETTLED):
        return {}
    return {
        place: min(size, max(lease.visible.get(place, 0), held.get(place, 0)))
        for place, size in lease.promised.items()
    }


def outstanding(lease: Lease, seen: Mapping[str, int]) -> dict[str, int]:
    """Bytes by place that others must not plan on although they may be free: promised and not seen to be taken."""
    if lease.phase is Phase.WAITING:
        return {}
    if lease.phase in (Phase.PROMISED, Phase.RETURNING):
        return dict(lease.promised)
    return {place: max(0, size - seen.get(place, 0)) for place, size in lease.promised.items()}


def all_outstanding(leases: Iterable[Lease], seen: Seen) -> dict[str, int]:
    """The sum over leases. One that was not there when the drivers were asked counts in full."""
    total: dict[str, int] = {}
    for lease in leases:
        for place, size in outstanding(lease, seen.get(lease.id, {})).items():
            total[place] = total.get(place, 0) + size
    return total


class Request(NamedTuple):
    """A plan that would fit, and asks whether it is its turn."""

    takes: Mapping[str, int]
    ticket: int = 0
    """0: it has not been waiting, so everybody who has came before it."""
    source: str = ""
    parallel_loads: int = 1
    loads: bool = True
    """False for what was loaded a moment ago and only comes back: it needs no turn."""


class Verdict(NamedTuple):
    """Whether it may go, past whom; or behind whom it waits and for what."""

    go: bool
    passing: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    for_turn: bool = False


def judge(request: Request, others: Sequence[Lease], available: Mapping[str, int], now_s: float) -> Verdict:
    """Whether a plan that fits may be promised now.

    `available` has the free bytes by place, less what is outstanding to others. First come, first served; but who
    needs less than a model that cannot start yet may pass it, `MOST_PASSES` times at most.
    """
    ahead = sorted(queue(others, now_s), key=lambda lease: lease.ticket)
    ahead = [lease for lease in ahead if not request.ticket or lease.ticket < request.ticket]
    if request.loads and (behind := _loads_first(request, others, ahead)):
        return Verdict(go=False, behind=behind, for_turn=True)
    passing = []
    for waiter in ahead:
        contested = {place: size for place, size in waiter.wants.items() if request.takes.get(place)}
        if not contested or _room_for_both(request, waiter, available):
            continue
        could_start = any(available.get(place, 0) >= size for place, size in waiter.wants.items())
        smaller = all(request.takes[place] < size for place, size in contested.items())
        if could_start or not smaller or waiter.passed >= MOST_PASSES:
            return Verdict(go=False, behind=(waiter.name,))
        passing.append(waiter.name)
    return Verdict(go=True, passing=tuple(passing))


def queue(leases: Iterable[Lease], now_s: float) -> list[Lease]:
    """Those that wait, without those that should have given up long ago (a stopped process, for instance)."""
    return [lease for lease in leases if lease.phase is Phase.WAITING and now_s <= lease.until_s + OVERDUE_S]


def place_in_queue(ticket: int, others: Iterable[Lease], now_s: float) -> int:
    """1 for who is next."""
    return 1 + sum(0 < lease.ticket < ticket for lease in queue(others, now_s))


def _room_for_both(request: Request, waiter: Lease, available: Mapping[str, int]) -> bool:
    return any(
        available.get(place, 0) - request.takes.get(place, 0) >= size for place, size in waiter.wants.items()
    )


def _loads_first(request: Request, others: Sequence[Lease], ahead: Sequence[Lease]) -> tuple[str, ...]:
    """Who loads from the same file system, or waits to, before this one; () where there is a place free."""
    if not request.source:
        return ()
    loading = [
        lease.name
        for lease in others
        if lease.phase in (Phase.PROMISED, Phase.LOADING) and lease.source == request.source
    ]
    next_ones = [lease.name for lease in ahead if not lease.wants and lease.source == request.source]
    taken = loading + next_ones
    return tuple(taken) if len(taken) >= request.parallel_loads else ()


class Departed(NamedTuple):
    """A lease that ended a moment ago: a driver may show its bytes as free only later."""

    lease: Lease
    at_s: float


def may_come_back(
    places: Iterable[str],
    others: Iterable[Lease],
    departed: Iterable[Departed],
    reserved: Mapping[str, int] = _NOTHING,
) -> int:
    """The most bytes that a wait could bring on any one of these places: all that others hold or have just left.

    `reserved`: what was subtracted from the free bytes for others; it comes back on top, for it may be taken already.
    """
    sums = {place: reserved.get(place, 0) for place in places}
    for held in [lease.promised for lease in others] + [gone.lease.promised for gone in departed]:
        for place in sums:
            sums[place] += held.get(place, 0)
    return max(sums.values(), default=0)


def is_back(departed: Departed, free: Mapping[str, int], others: Iterable[Lease], slack_bytes: int) -> bool:
    """Whether the drivers show what a lease had: as much as was free before it, less what others may hold by now."""
    held: dict[str, int] = {}
    for lease in others:
        for place, size in lease.promised.items():
            held[place] = held.get(place, 0) + size
    return all(
        free.get(place, 0) + held.get(place, 0) + slack_bytes >= departed.lease.free.get(place, 0)
        for place in departed.lease.promised
        if place in free
    )
