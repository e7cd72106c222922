"""The gate between clients and llama-server: requests pass while it is open, and wait, first come first
served, while the model loads, restarts or is full. Bounded in number and in time. Pure but for the clock.

Each start of llama-server is a generation. A request whose llama-server died waits for a later one.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple, Protocol

from llamad.clock import Clock
from llamad.frozen import dataclass


class Refusal(NamedTuple):
    """An error for a client."""

    status: int
    code: str
    message: str
    retry_after_s: float | None = None


class Admission(StrEnum):
    """What becomes of a request that comes now."""

    PASSED = "passed"
    HELD = "held"
    REFUSED = "refused"


class Target(NamedTuple):
    """Where an admitted request goes."""

    generation: int
    path: str


class Waiter(Protocol):
    """A request at the gate."""

    after: int
    """The last generation that died under it; 0 if none."""
    ticket: int
    """Its rank, given by the gate; 0 before it first enters."""

    @property
    def tokens(self) -> int:
        """The most that it takes of a shared cache; 0 if nothing."""
        ...

    def admitted(self, target: Target, held_s: float) -> None:
        """The request may go upstream, after it waited for `held_s`. Each admission must be followed by one
        `leave`."""
        ...

    def refused(self, refusal: Refusal, held_s: float) -> None:
        """The request is not served, after it waited for `held_s`. It is no longer at the gate."""
        ...


@dataclass(frozen=True)
class GateLimits:
    """Requests admitted at once (None: no bound), requests waiting, seconds of waiting. `settle_s`: see enter."""

    max_concurrent_requests: int | None
    queue_requests: int
    wait_s: float
    retry_after_s: float
    settle_s: float


class _Place(NamedTuple):
    """A place in the queue."""

    waiter: Waiter
    since_s: float


def _rank(place: _Place) -> int:
    return place.waiter.ticket


class Gate:
    """Decides when a request goes upstream. Single-threaded: every call is made on the loop."""

    def __init__(
        self,
        limits: GateLimits,
        clock: Clock,
        waiting: Callable[[], None],
        too_long: Callable[[Waiter], None] = lambda _waiter: None,
    ) -> None:
        self.limits = limits
        self.in_flight = 0
        self.used_tokens = 0  # of the pool, by those that are admitted to this generation
        self.pool_tokens: int | None = None
        self._promised: dict[int, tuple[int, int]] = {}  # by ticket: generation, tokens
        self._clock = clock
        self._tell_waiting = waiting
        self._tell_too_long = too_long
        self._generation = 0
        self._target: Target | None = None
        self._refusal: Refusal | None = None
        self._reason = "the model is not started yet"
        self._queue: list[_Place] = []
        self._last_ticket = 0
        self.on_counts: Callable[[int, int], None] = lambda _in_flight, _waiting: None
        """Hears how many requests are admitted and how many wait, whenever that changes."""

    @property
    def is_open(self) -> bool:
        """Whether a request would be passed on now."""
        return self._target is not None

    @property
    def admission(self) -> Admission:
        """What becomes of a request that comes now, as long as there is room for it."""
        if self._refusal is not None:
            return Admission.REFUSED
        return Admission.HELD if self._target is None else Admission.PASSED

    @property
    def generation(self) -> int:
        """The last generation that was opened; 0 before the first."""
        return self._generation

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    def open(self, upstream_path: str, pool_tokens: int | None = None, *, same_server: bool = False) -> int:
        """Let requests through to the llama-server at `upstream_path`; the number of this new generation.

        `pool_tokens`: the cache that its requests share. The tokens of the admitted never exceed it, unless a
        request is alone. None: no such bound. `same_server`: it is the one before, with the requests on it.
        """
        self._generation += 1
        self.pool_tokens = pool_tokens
        if same_server:
            last = self._generation - 1
            for ticket, (generation, tokens) in self._promised.items():
                self._promised[ticket] = (self._generation if generation == last else generation, tokens)
        else:
            self.used_tokens = 0
        self._target = Target(self._generation, upstream_path)
        self._refusal = None
        self._pump()
        return self._generation

    def hold(self, reason: str) -> None:
        """Let requests wait. `reason` is told to those that wait too long."""
        self._target = None
        self._refusal = None
        self._reason = reason

    def refuse(self, refusal: Refusal) -> None:
        """Refuse every request, those that wait and those to come, until `open` or `hold`."""
        self._target = None
        self._refusal = refusal
        places, self._queue = self._queue, []
        now_s = self._clock.monotonic()
        for place in places:
            place.waiter.refused(refusal, now_s - place.since_s)
        self._count()

    def lost(self, generation: int) -> None:
        """The llama-server of `generation` cannot be reached: hold, unless a later one is open already."""
        if self._target is not None and self._target.generation == generation:
            self.hold("llama-server is gone")

    def enter(self, waiter: Waiter) -> None:
        """Ask for admission: `waiter` is admitted or refused, at once or later, exactly once, unless it is
        withdrawn. A waiter with `after` waits for a later generation; where none comes but the gate stays
        open for `settle_s` (only its connection died, not llama-server), it is admitted all the same.
        """
        if not waiter.ticket:
            self._last_ticket += 1
            waiter.ticket = self._last_ticket
        if self._refusal is not None:
            waiter.refused(self._refusal, 0.0)
        elif self._target is not None and self._may_pass(waiter, self._target):
            self._admit(waiter, self._target, 0.0)
        elif len(self._queue) >= self.limits.queue_requests and not waiter.after:
            if self._target is None:
                self._tell_waiting()  # where nobody may wait, who comes again is to find the model loaded
            waiter.refused(self._full(), 0.0)
        else:
            insort(self._queue, _Place(waiter, self._clock.monotonic()), key=_rank)
            self._count()
            self._tell_waiting()
            if self._target is not None and self.pool_tokens is not None:
                self._pump()

    def withdraw(self, waiter: Waiter) -> float:
        """`waiter` no longer waits (its client is gone); for how long it did. 0 where it does not wait."""
        for index, place in enumerate(self._queue):
            if place.waiter is waiter:
                del self._queue[index]
                self._count()
                return self._clock.monotonic() - place.since_s
        return 0.0

    def leave(self, waiter: Waiter) -> None:
        """An admitted request is over, or no longer upstream (it may enter again and keeps its rank)."""
        self.in_flight -= 1
        self._count()
        generation, tokens = self._promised.pop(waiter.ticket, (0, 0))
        if generation == self._generation:
            self.used_tokens -= tokens
        if self._queue:
            self._pump()

    def recount(self, waiter: Waiter) -> None:
        """`waiter.tokens` has changed, be it admitted or waiting."""
        generation, tokens = self._promised.get(waiter.ticket, (0, 0))
        if generation and generation == self._generation:
            self._promised[waiter.ticket] = (generation, waiter.tokens)
            self.used_tokens += waiter.tokens - tokens
        self._pump()

    def set_limits(self, limits: GateLimits) -> None:
        """Use other bounds from now on, for those that wait too."""
        self.limits = limits
        self._pump()

    def expire(self) -> None:
        """Refuse who has waited too long; admit who has settled. To be called about once a second."""
        now_s = self._clock.monotonic()
        overdue = [place for place in self._queue if now_s - place.since_s >= self.limits.wait_s]
        for place in overdue:
            self.withdraw(place.waiter)
        for place in overdue:
            place.waiter.refused(self._waited_too_long(), now_s - place.since_s)
        if self._target is not None:
            self._pump(settled_before_s=now_s - self.limits.settle_s)

    def _has_room(self) -> bool:
        bound = self.limits.max_concurrent_requests
        return bound is None or self.in_flight < bound

    def _fits(self, waiter: Waiter) -> bool:
        """Whether the shared cache has room. One that is longer than all of it is served alone."""
        pool = self.pool_tokens
        return pool is None or not self.used_tokens or self.used_tokens + waiter.tokens <= pool or not waiter.tokens

    def _may_pass(self, waiter: Waiter, target: Target) -> bool:
        """Whether a request that has just come need not queue: also not behind one that waits for tokens."""
        if waiter.after >= target.generation or not self._has_room() or not self._fits(waiter):
            return False
        if not self._queue or self.pool_tokens is None or not waiter.tokens:
            return True
        return not any(one.waiter.tokens and one.waiter.after < target.generation for one in self._queue)

    def _admit(self, waiter: Waiter, target: Target, held_s: float) -> None:
        self.in_flight += 1
        if self.pool_tokens is not None and (tokens := waiter.tokens):
            self._promised[waiter.ticket] = (target.generation, tokens)
            self.used_tokens += tokens
        self._count()
        waiter.admitted(target, held_s)

    def _count(self) -> None:
        self.on_counts(self.in_flight, len(self._queue))

    def _pump(self, settled_before_s: float = float("-inf")) -> None:
        """Admit those who may pass, oldest first. Admission may call back into the gate: look anew each time."""
        while self._target is not None and self._has_room():
            target, index = self._target, self._first(self._target.generation, settled_before_s)
            if index is None:
                return
            place = self._queue.pop(index)
            self._admit(place.waiter, target, self._clock.monotonic() - place.since_s)

    def _first(self, generation: int, settled_before_s: float) -> int | None:
        """The place in the queue of who may pass first. Behind one for which the cache has no room only those
        pass that take nothing of it."""
        blocked = False
        for index, place in enumerate(self._queue):
            if place.waiter.after >= generation and place.since_s > settled_before_s:
                continue
            if place.waiter.tokens and blocked:
                continue
            if self._fits(place.waiter):
                return index
            blocked = True
            self._tell_too_long(place.waiter)
        return None

    def _full(self) -> Refusal:
        bound = self.limits.queue_requests
        message = f"{bound} requests wait already ([limits] queue_requests)"
        status = 429 if self._target is not None else 503  # the clients are too many, or there is no model
        return Refusal(status, "queue_full", message, self.limits.retry_after_s)

    def _waited_too_long(self) -> Refusal:
        why = self._reason
        if self._target is not None:
            taken = self._has_room() and self.pool_tokens is not None
            why = "the tokens of the context are taken" if taken else "all places are taken"
        message = f"waited {self.limits.wait_s:g} s ([limits] wait_s): {why}"
        return Refusal(503, "wait_timeout", message, self.limits.retry_after_s)
