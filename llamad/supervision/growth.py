"""When a context may be larger than it was. Pure: events, observations and the time are brought in.

A context falls for lack of memory; it rises only with a cause: a start, another definition, a wait for memory that
has ended, or because a plan made now would have given a quarter more for ten minutes. What grew and then failed is
not tried again before something has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from llamad.supervision.machine import Event

LEAST_GAIN = 1.25
"""A restart is worth a quarter more context, no less."""
STABLE_S = 600.0
LOOK_S = 60.0
"""Between two looks at the devices, a tenth more or less, so that many models do not look at once."""
LONGEST_GAP_S = 3 * LOOK_S
"""After a longer time without a look nobody knows what was free meanwhile."""
QUIET_S = 30.0
"""A pause between requests in which a restart costs nobody anything."""

_CAUSES = frozenset({Event.START, Event.RELOAD, Event.REVERT, Event.QUEUED, Event.PARKED, Event.GROW})


class Offer(NamedTuple):
    """What a plan made now would give if the memory of the llama-server that runs were free."""

    context_tokens: int
    free_bytes: Mapping[str, int]
    """By device name (or `host`): free for that plan."""

    @property
    def total_bytes(self) -> int:
        """Everything that it could use."""
        return sum(self.free_bytes.values())


class Growth:
    """What the context of one model may be, over all its llama-servers."""

    def __init__(self) -> None:
        self._most_tokens: int | None = None
        self._serving_tokens = 0
        self._since_s: float | None = None
        self._looked_s = 0.0
        self._tried: Offer | None = None
        self._former_tokens = 0
        """What served before the growth that has not proved itself yet; 0 where there is none."""
        self._failed_bytes = 0
        """What was free when a growth failed."""

    # -- the bound of a plan ------------------------------------------------------------------------------

    @property
    def most_tokens(self) -> int | None:
        """The most that the next plan may give; None where it may give all that there is."""
        return self._most_tokens

    def note(self, event: Event) -> None:
        """Some events are causes for another context."""
        if event in _CAUSES:
            self._most_tokens = None
        if event in (Event.RELOAD, Event.REVERT):
            self._tried, self._former_tokens, self._failed_bytes = None, 0, 0
        if event is Event.STABLE:
            self._former_tokens = 0

    def planned(self, context_tokens: int) -> None:
        """This is what comes next; without a cause nothing after it is larger."""
        self._most_tokens = context_tokens

    # -- growing ------------------------------------------------------------------------------------------

    def serves(self, context_tokens: int) -> None:
        """A llama-server is ready with this context."""
        if self._former_tokens and context_tokens < _least(self._former_tokens):
            self._fail()
            self._former_tokens = 0
        self._serving_tokens, self._since_s = context_tokens, None

    def sees(self, offer: Offer | None, now_s: float) -> bool:
        """Take in an observation (None: nothing could be told); whether the context should grow to it now."""
        gap_s, self._looked_s = now_s - self._looked_s, now_s
        if offer is None or offer.context_tokens < _least(self._serving_tokens) or not self._is_news(offer):
            self._since_s = None
            return False
        if self._since_s is None or gap_s > LONGEST_GAP_S:
            self._since_s = now_s
        return now_s - self._since_s >= STABLE_S

    def takes(self, offer: Offer) -> None:
        """The offer is taken: what serves now ends for it."""
        self._tried, self._former_tokens = offer, self._serving_tokens

    def died(self, *, short: bool) -> bool:
        """A llama-server died, `short` of memory or not. True where it had grown and not proved itself: the next
        plan gives what had served before, however it died.
        """
        unproved, self._former_tokens = self._former_tokens, 0
        if unproved or short:
            self._fail()
        if unproved:
            self._most_tokens = min(unproved, self._most_tokens or unproved)
        return unproved > 0

    def _fail(self) -> None:
        if self._tried is not None:
            self._failed_bytes, self._tried = self._tried.total_bytes, None

    def _is_news(self, offer: Offer) -> bool:
        return offer.total_bytes >= self._failed_bytes * LEAST_GAIN


def _least(tokens: int) -> int:
    return int(tokens * LEAST_GAIN)


def can_grow(context: int | str, context_tokens: int, trained_tokens: int) -> bool:
    """Whether a context that the definition leaves open (`auto`) can be larger by what is worth a restart."""
    return context == "auto" and trained_tokens >= _least(context_tokens)
