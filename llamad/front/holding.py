"""The gate between clients and llama-server: requests pass while it is open, and wait, first come first
served, while the model loads, restarts or is full. Bounded in number and in time. Pure but for the clock.

Each start of llama-server is a generation. A request whose llama-server died waits for a later one.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from typing import NamedTuple, Protocol

from llamad.clock import Clock
from llamad.frozen import dataclass


class Refusal(NamedTuple):
    """An error for a client."""

    status: int
    code: str
    message: str
    retry_after_s: float | None = None


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

    def __init__(self, limits: GateLimits, clock: Clock, waiting: Callable[[], None]) -> None:
        self.limits = limits
        self.in_flight = 0
        self._clock = clock
        self._tell_waiting = waiting
        self._generation = 0
        self._target: Target | None = None
        self._refusal: Refusal | None = None
        self._reason = "the model is not started yet"
        self._queue: list[_Place] = []
        self._last_ticket = 0

    @property
    def is_open(self) -> bool:
        """Whether a request would be passed on now."""
        return self._target is not None

    @property
    def generation(self) -> int:
        """The last generation that was opened; 0 before the first."""
        return self._generation

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    def open(self, upstream_path: str) -> int:
        """Let requests through to the llama-server at `upstream_path`; the number of this new generation."""
        self._generation += 1
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
        elif self._target is not None and waiter.after < self._target.generation and self._has_room():
            self.in_flight += 1
            waiter.admitted(self._target, 0.0)
        elif len(self._queue) >= self.limits.queue_requests and not waiter.after:
            waiter.refused(self._full(), 0.0)
        else:
            insort(self._queue, _Place(waiter, self._clock.monotonic()), key=_rank)
            self._tell_waiting()

    def withdraw(self, waiter: Waiter) -> float:
        """`waiter` no longer waits (its client is gone); for how long it did. 0 where it does not wait."""
        for index, place in enumerate(self._queue):
            if place.waiter is waiter:
                del self._queue[index]
                return self._clock.monotonic() - place.since_s
        return 0.0

    def leave(self) -> None:
        """An admitted request is over, or no longer upstream (it may enter again and keeps its rank)."""
        self.in_flight -= 1
        if self._queue:
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

    def _pump(self, settled_before_s: float = float("-inf")) -> None:
        """Admit those who may pass, oldest first. Admission may call back into the gate: look anew each time."""
        while self._target is not None and self._has_room():
            generation = self._target.generation
            for index, place in enumerate(self._queue):
                if place.waiter.after < generation or place.since_s <= settled_before_s:
                    del self._queue[index]
                    self.in_flight += 1
                    place.waiter.admitted(self._target, self._clock.monotonic() - place.since_s)
                    break
            else:
                return

    def _full(self) -> Refusal:
        bound = self.limits.queue_requests
        message = f"{bound} requests wait already ([limits] queue_requests)"
        return Refusal(503, "queue_full", message, self.limits.retry_after_s)

    def _waited_too_long(self) -> Refusal:
        why = "all places are taken" if self._target is not None else self._reason
        message = f"waited {self.limits.wait_s:g} s ([limits] wait_s): {why}"
        return Refusal(503, "wait_timeout", message, self.limits.retry_after_s)
