"""One model's dealings with the ledger: look, plan on what is left, be promised it, take it, or wait. Blocking."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from llamad.errors import BusyError
from llamad.ledger.arithmetic import (
    Departed,
    Request,
    Seen,
    Verdict,
    all_outstanding,
    is_back,
    judge,
    may_come_back,
    place_in_queue,
)
from llamad.ledger.lease import HOST, Lease, Phase
from llamad.ledger.ledger import LOCK_S, Held, Ledger, Transaction, nobody_says
from llamad.units import MIB, format_bytes

_MOST_NAMES = 3
STABLE_S = 1.0
NOISE_BYTES = 64 * MIB
"""Between two readings of a driver, or of the host, that show the same state."""


class MustWait(BusyError):
    """What a plan needs is held by others, or it is not its turn: in the queue now, to be tried again."""


class GaveUpWaiting(BusyError):
    """It has waited as long as it may. The unit is retried."""


class Booking:
    """What one process has in the ledger for its model, over all its plans. One thread at a time plans."""

    def __init__(self, ledger: Ledger, held: Held = nobody_says) -> None:
        self.ledger = ledger
        self.start_wait_s = 0.0
        self.held = held
        self._seen: Seen = {}
        self.looked_s = 0.0
        """When the drivers were asked, or a little before."""
        self._reading: tuple[float, Mapping[str, int]] = (0.0, {})
        self.until_s = 0.0
        """When it gives up, on the ledger's clock; 0 where it does not wait."""
        self.bytes_may_come = False
        """Whether the drivers may show bytes as free any moment that somebody has given back."""
        self.promise_id = ""
        """Which promise it has."""
        self.mark: object = None
        """What the ledger looked like when it was last told to wait."""
        self._waits_for: tuple[str, ...] = ()
        self.problems: tuple[str, ...] = ()
        """Files of the ledger that said nothing sensible when it was looked at last."""

    def onlooker(self) -> Booking:
        """Another one for the same ledger, to look with while this one plans."""
        return Booking(self.ledger, self.held)

    def held_by(self, pid: int) -> dict[str, int]:
        """Bytes by device that the driver says a process holds; {} where it does not tell."""
        return {place: by_pid[pid] for place, by_pid in self.held().items() if by_pid.get(pid)}

    def look(self) -> None:
        """Note what is visible of the others' leases. Call it before the drivers are asked what is free."""
        self.looked_s = self.ledger.now()
        self._seen = self.ledger.seen(self.held)

    @contextmanager
    def step(self, free: Mapping[str, int], names: Mapping[str, str] | None = None) -> Iterator[Step]:
        """The locked step of planning on `free` (by place, read since `look`) and promising what was planned.

        `names` has the names of the places for people. Raises MustWait, GaveUpWaiting, BusyError.
        """
        with self.ledger.transaction(LOCK_S) as transaction:
            self.problems = tuple(transaction.problems)
            step = Step(self, transaction, free, names or {})
            step.require_start()
            yield step

    def loading(self, promise_id: str, child_pid: int) -> None:
        """llama-server was started: it takes what was promised. A word about an earlier promise changes nothing."""
        with self.ledger.transaction() as transaction:
            own = transaction.own
            if own is not None and own.id == promise_id and own.phase is Phase.PROMISED:
                pids = (os.getpid(), child_pid)
                transaction.put(own._replace(phase=Phase.LOADING, pids=pids))

    def progress(self, promise_id: str, visible: Mapping[str, int]) -> None:
        """So many bytes were allocated for certain, by place."""
        with self.ledger.transaction() as transaction:
            own = transaction.own
            if own is not None and own.id == promise_id and own.phase is Phase.LOADING:
                transaction.put(own._replace(visible=dict(visible)))

    def settled(self, promise_id: str, child_pid: int, host_bytes: int) -> None:
        """The model is ready: the drivers' figures lack all that it takes. Of host memory only what its process has
        for itself, `host_bytes`: mapped files still count as available, and a prompt cache grows later.
        """
        with self.ledger.transaction() as transaction:
            own = transaction.own
            if own is not None and own.id == promise_id and own.phase in (Phase.LOADING, Phase.PROMISED):
                pids = (os.getpid(), child_pid)
                visible = {**own.promised, HOST: min(own.promised.get(HOST, 0), host_bytes)}
                transaction.put(own._replace(phase=Phase.SETTLED, visible=visible, pids=pids))

    def returning(self, promise_id: str) -> None:
        """llama-server has ended, and another one will take the same bytes again: nobody else may have them."""
        with self.ledger.transaction() as transaction:
            own = transaction.own
            taken = (Phase.PROMISED, Phase.LOADING, Phase.SETTLED)
            if own is not None and own.id == promise_id and own.phase in taken:
                pids = (os.getpid(),)
                back = own._replace(phase=Phase.RETURNING, id=transaction.new_id(), visible={}, pids=pids)
                transaction.put(back)

    def absorb(self, second: Ledger, child_pid: int, host_bytes: int) -> Mapping[str, int]:
        """A second llama-server is the only one now: have its lease as ours. What it was promised.

        `host_bytes` as for `settled`.
        """
        with self.ledger.transaction() as transaction:
            promise_id = transaction.new_id()
            pids = (os.getpid(), child_pid)

            def visible(lease: Lease) -> Mapping[str, int]:
                return {**lease.promised, HOST: min(lease.promised.get(HOST, 0), host_bytes)}

            taken = transaction.absorb(second.name, promise_id, visible)
            if taken is None:
                return {}
            transaction.put(taken._replace(pids=pids))
            self.promise_id = promise_id
            return taken.promised

    def outstanding(self) -> dict[str, int]:
        """What is promised to others and was not yet taken at the last `look`, by place."""
        with self.ledger.transaction() as transaction:
            return self.reserved(transaction)

    def others(self) -> list[Lease]:
        """The leases of other models that are alive now."""
        with self.ledger.transaction() as transaction:
            return transaction.others

    # -- for Step ------------------------------------------------------------------------------------------

    def reserved(self, transaction: Transaction) -> dict[str, int]:
        """What is promised to others and was not yet lacking when the drivers were asked.

        Who has ended since may have taken it after that, and the drivers be slow to give it back.
        """
        ended = [gone.lease for gone in transaction.departed if gone.at_s >= self.looked_s]
        return all_outstanding([*transaction.others, *ended], self._seen)

    def give_up_at(self, transaction: Transaction, behind: tuple[str, ...], *, for_turn: bool) -> float:
        """When waiting ends. A queue for loading that moves on is no reason to give up."""
        if not self.until_s or (for_turn and behind != self._waits_for):
            self.until_s = transaction.now_s + self.start_wait_s
        self._waits_for = behind
        return self.until_s

    def has_started(self, promise_id: str) -> None:
        """It waits no more."""
        self.promise_id = promise_id
        self.until_s, self._waits_for = 0.0, ()

    def look_for_change(self) -> bool:
        """Whether the ledger is another one than when it was told to wait. Blocking, about a millisecond."""
        with self.ledger.transaction() as transaction:
            return mark_of(transaction) != self.mark

    def is_stable(self, now_s: float, free: Mapping[str, int]) -> bool:
        """Whether free memory is what it was a while ago; called with each reading."""
        since_s, before = self._reading
        same = free.keys() == before.keys() and all(
            abs(size - before[place]) <= NOISE_BYTES for place, size in free.items()
        )
        if not same:
            self._reading = since_s, _ = now_s, dict(free)
        return now_s - since_s >= STABLE_S


class Step:
    """The inside of `Booking.step`."""

    def __init__(
        self, booking: Booking, transaction: Transaction, free: Mapping[str, int], names: Mapping[str, str]
    ) -> None:
        self._booking = booking
        self._transaction = transaction
        self._free = free
        self._names = names
        promised = booking.reserved(transaction)
        self.reserved = {place: min(size, free[place]) for place, size in promised.items() if place in free}
        """Bytes by place that are free and promised to others."""

    @property
    def mark(self) -> object:
        """Of two steps with the same mark nobody was let go or has ended in between."""
        return mark_of(self._transaction)

    def fits(self, takes: Mapping[str, int]) -> bool:
        """Whether there is room for so many bytes by place."""
        available = self.available
        return all(size <= available.get(place, 0) for place, size in takes.items())

    @property
    def available(self) -> dict[str, int]:
        """What is left by place for a plan."""
        return {place: size - self.reserved.get(place, 0) for place, size in self._free.items()}

    def require_start(self) -> None:
        """Raise MustWait while something of a former run of this model is still there."""
        transaction, booking = self._transaction, self._booking
        if not transaction.begin():
            self._wait((), "a former llama-server of this model to end", ())
        gone = transaction.coming_back(booking.looked_s)
        own = next((one for one in gone if one.lease.name == booking.ledger.name), None)
        if own is None or (transaction.own is not None and transaction.own.promised):
            return
        if not self._is_back(own):
            self._wait((), "the driver to show the memory of the former run as free", ())

    def _is_back(self, own: Departed) -> bool:
        back = is_back(own, self._free, self._transaction.others, NOISE_BYTES)
        return back or self._booking.is_stable(self._transaction.now_s, self._free)

    def promise(
        self, takes: Mapping[str, int], *, source: str = "", parallel_loads: int = 1, loads: bool = True
    ) -> None:
        """Be promised these bytes by place, which fit. Raises MustWait where others come first.

        `source`, `parallel_loads`: the file system that it loads from, and how many may do so at a time. `loads`:
        False for what only comes back.
        """
        transaction = self._transaction
        own = transaction.own
        if not _is_ours(own, takes):
            ticket = own.ticket if own is not None else 0
            request = Request(takes, ticket, source, parallel_loads, loads=loads)
            verdict = judge(request, transaction.others, self.available, transaction.now_s)
            if not verdict.go:
                self._stand_behind(verdict, takes, source)
            transaction.count_passes(verdict.passing)
        promise = Lease(
            self._booking.ledger.name, Phase.PROMISED, transaction.new_id(), dict(takes), free=dict(self._free),
            source=source, names={place: self._names.get(place, place) for place in takes}, pids=(os.getpid(),),
        )  # fmt: skip
        transaction.put(promise)
        self._booking.has_started(promise.id)

    def lacks(self, place: str, missing_bytes: int, alternatives: Sequence[str], source: str = "") -> None:
        """`missing_bytes` are missing on a place for the smallest plan. Raises MustWait if others may give them back;
        returns if no wait can help.

        `alternatives`: places that would do as well.
        """
        transaction = self._transaction
        places = tuple(dict.fromkeys((place, *alternatives)))
        gone = transaction.coming_back(self._booking.looked_s)
        back = may_come_back(places, transaction.others, gone, self.reserved)
        own = transaction.own
        if own is not None and own.phase is not Phase.WAITING:
            transaction.drop()
        if back < missing_bytes:
            return
        need = max(0, self.available.get(place, 0) + missing_bytes)
        holders = {other.name: self._largest(other, places) for other in transaction.others}
        by = [f"{name} ({format_bytes(size)})" for name, size in _most_first(holders) if size]
        more = f" and {len(by) - _MOST_NAMES} more" if len(by) > _MOST_NAMES else ""
        held = f", held by {', '.join(by[:_MOST_NAMES])}{more}" if by else ", which others have just given back"
        text = f"{format_bytes(need)} on {self._names.get(place, place)}{held}"
        lacks = {one: max(0, need - self.available.get(one, 0)) for one in places}
        self._wait(tuple(holders), text, places, need, source, lacks=lacks)

    def _largest(self, lease: Lease, places: Sequence[str]) -> int:
        return max((lease.promised.get(place, 0) for place in places), default=0)

    def _stand_behind(self, verdict: Verdict, takes: Mapping[str, int], source: str) -> None:
        names = ", ".join(verdict.behind)
        if verdict.for_turn:
            self._wait(
                verdict.behind, f"its turn to load, after {names}", (), source=source, for_turn=True
            )
        device = max((place for place in takes if place != HOST), key=lambda place: takes[place], default=HOST)
        text = f"{format_bytes(takes[device])} on {self._names.get(device, device)}, after {names}"
        self._wait(verdict.behind, text, (device,), takes[device], source)

    def _wait(
        self,
        behind: tuple[str, ...],
        text: str,
        places: Sequence[str],
        need_bytes: int = 0,
        source: str = "",
        *,
        for_turn: bool = False,
        lacks: Mapping[str, int] | None = None,
    ) -> None:
        """Stand in the queue, and say so by MustWait or, if it was long enough, by GaveUpWaiting."""
        transaction, booking = self._transaction, self._booking
        until_s = booking.give_up_at(transaction, behind, for_turn=for_turn)
        if transaction.now_s >= until_s:
            raise GaveUpWaiting(
                f"waited {booking.start_wait_s:g} s for {text}",
                fix="stop one of the others, lower `context` in [placement], or raise `start_wait_s` in [limits]",
            )
        if booking.ledger.lease_fds:
            own = transaction.own
            waiting = own if own is not None and own.phase is Phase.WAITING else None
            ticket = waiting.ticket if waiting else transaction.next_ticket()
            lease = Lease(
                booking.ledger.name, Phase.WAITING, waiting.id if waiting else transaction.new_id(),
                wants=dict.fromkeys(places, need_bytes), why=text, ticket=ticket,
                passed=waiting.passed if waiting else 0, until_s=int(until_s), source=source, pids=(os.getpid(),),
                lacks=lacks or {},
            )  # fmt: skip
            if lease != waiting:
                transaction.put(lease)
            place = place_in_queue(ticket, transaction.others, transaction.now_s)
            if places or for_turn:
                text += f"; place {place} in the queue"
        booking.mark, booking.bytes_may_come = mark_of(transaction), bool(
            transaction.coming_back(transaction.now_s)
        )
        raise MustWait(f"waiting for {text}")


def mark_of(transaction: Transaction) -> object:
    """All of the ledger that can let somebody go; not what others wait for, which they may write at any time."""
    leases = [
        (lease.name, lease.ticket) if lease.phase is Phase.WAITING else (lease.name, lease.id, lease.phase)
        for lease in transaction.others
    ]
    return sorted(map(str, leases)), transaction.begin()


def _is_ours(own: Lease | None, takes: Mapping[str, int]) -> bool:
    """Whether nobody in the queue can ask for these bytes: a promise is only corrected, or taken up again."""
    if own is None or own.phase not in (Phase.PROMISED, Phase.RETURNING):
        return False
    return own.phase is Phase.PROMISED or all(
        size <= own.promised.get(place, 0) for place, size in takes.items()
    )


def _most_first(sizes: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(sizes.items(), key=lambda pair: -pair[1])
