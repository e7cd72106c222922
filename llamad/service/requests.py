"""What becomes of the records of requests: a line in the journal each, or one a second, and counts for metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from llamad.front.metrics import Family, Histogram, counters
from llamad.front.settings import Outcome, RequestRecord

LINES_PER_S = 20
_ANSWERED = frozenset((Outcome.ANSWERED, Outcome.REPEATED))
_SILENT = frozenset((Outcome.LOCAL,))
_BAD = frozenset((Outcome.HELD_OUT, Outcome.CUT, Outcome.LOST, Outcome.POISON))
_UNTIMED = frozenset((Outcome.LOCAL, Outcome.REFUSED, Outcome.REPEATED))
_ENDINGS = {
    Outcome.REFUSED: "Refused",
    Outcome.HELD_OUT: "Turned away",
    Outcome.CLIENT_GONE: "The client left before the answer was complete",
    Outcome.CUT: "Cut off by llamad",
    Outcome.LOST: "Lost: llama-server died or answered nonsense",
    Outcome.POISON: "Not tried again: llama-server died twice under it",
    Outcome.LOCAL: "Answered by llamad itself",
}
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_RATES = (1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 50.0, 75.0, 100.0, 150.0, 250.0, 500.0, 1000.0)


class RecordJournal(Protocol):
    """Where lines go."""

    def event(self, name: str, message: str, priority: str | None = None, **fields: str) -> None:
        """One record of the event `name`."""
        ...


class RequestLog:
    """One record a request; above 20 in a second one for all of them. Never a body, a key or a query.

    `later(delay_s, call)` calls back on the loop.
    """

    def __init__(
        self,
        journal: RecordJournal,
        now: Callable[[], float],
        later: Callable[[float, Callable[[], None]], object],
        level: str = "info",
    ) -> None:
        self.level = level
        self._journal = journal
        self._now = now
        self._later = later
        self._second_s = float("-inf")
        self._count = 0
        self._busy = False
        self._rest = Summary()

    def finished(self, record: RequestRecord) -> None:
        """A request is over."""
        if self.level == "off" or record.outcome in _SILENT:
            return
        now_s = self._now()
        if now_s - self._second_s >= 1.0:
            self._busy = self._count > LINES_PER_S and now_s - self._second_s < 2.0
            self._second_s, self._count = now_s, 0
        self._count += 1
        if not self._busy and self._count <= LINES_PER_S:
            self._journal.event("request", text_of(record), self.level, **fields_of(record))
            return
        if not self._rest.count:
            self._later(max(0.0, self._second_s + 1.0 - now_s), self.flush)
        self._rest.add(record)

    def flush(self) -> None:
        """Write what is to be said of the requests that got no line of their own."""
        rest, self._rest = self._rest, Summary()
        if rest.count:
            self._journal.event("requests", str(rest), self.level, COUNT=str(rest.count))


def text_of(record: RequestRecord) -> str:
    """What happened to one request, in words."""
    usage = record.usage
    if record.outcome not in _ANSWERED:
        return f"{_ENDINGS[record.outcome]}{_held(record)} (status {record.status or 'none'})"
    if record.outcome is Outcome.REPEATED:
        return "Answered from the answers that are kept"
    if usage is None or record.status != 200:
        return f"Answered {record.status} in {_seconds(record.duration_s)}{_held(record)}"
    prompt = f"prompt of {usage.prompt_tokens} tokens"
    if usage.cached_tokens:
        prompt += f" ({usage.cached_tokens} cached)"
    if not usage.output_tokens:
        return f"Read a {prompt} in {_seconds(record.duration_s)}{_held(record)}"
    seconds = usage.output_s or record.duration_s
    rate = f" ({usage.output_tokens / seconds:.1f} tokens/s)" if seconds > 0 else ""
    first = "" if record.first_byte_s is None else f", first token after {_seconds(record.first_byte_s)}"
    return f"Generated {usage.output_tokens} tokens in {_seconds(seconds)}{rate}, {prompt}{first}{_held(record)}"


def fields_of(record: RequestRecord) -> dict[str, str]:
    """The same in fields."""
    usage = record.usage
    fields = {
        "REQUEST_ID": record.request_id,
        "STATUS": str(record.status),
        "OUTCOME": str(record.outcome),
        "PATH": record.path[:200],
        "DURATION_MS": _ms(record.duration_s),
        "HOLD_MS": _ms(record.hold_s),
        "FIRST_TOKEN_MS": "" if record.first_byte_s is None else _ms(record.first_byte_s),
    }
    if usage is not None:
        fields["PROMPT_TOKENS"] = str(usage.prompt_tokens)
        fields["CACHED_TOKENS"] = str(usage.cached_tokens)
        fields["OUTPUT_TOKENS"] = str(usage.output_tokens)
    return fields


class Summary:
    """What happened to many requests. Counted as they end: at the end of a busy second nobody waits for a sum."""

    __slots__ = ("_answered", "_bad", "_tokens", "count")

    def __init__(self) -> None:
        self.count = 0
        self._answered = 0
        self._tokens = 0
        self._bad: Counter[str] = Counter()

    def add(self, record: RequestRecord) -> None:
        """One more request."""
        self.count += 1
        if record.outcome in _ANSWERED:
            self._answered += 1
            if record.usage is not None:
                self._tokens += record.usage.output_tokens
        elif record.outcome in _BAD:
            self._bad[record.outcome] += 1

    def __str__(self) -> str:
        text = f"{self.count} requests within a second: {self._answered} answered, {self._tokens} tokens generated"
        return text + "".join(f", {count} {outcome}" for outcome, count in sorted(self._bad.items()))


def _held(record: RequestRecord) -> str:
    return f", held for {_seconds(record.hold_s)}" if record.hold_s >= 0.1 else ""


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f}"


class RequestFigures:
    """Counts over all requests of one model since llamad started, each from 0 where the label's values are known."""

    def __init__(self) -> None:
        self._outcomes: Counter[str] = Counter({outcome.value: 0 for outcome in Outcome})
        self._statuses: Counter[int] = Counter({200: 0})
        self._tokens: Counter[str] = Counter({"prompt": 0, "cached": 0, "output": 0})
        self._duration = Histogram(_SECONDS)
        self._hold = Histogram(_SECONDS)
        self._first = Histogram(_SECONDS)
        self._rate = Histogram(_RATES)

    def finished(self, record: RequestRecord) -> None:
        """A request is over."""
        self._outcomes[record.outcome] += 1
        self._statuses[record.status] += 1
        if record.outcome in _UNTIMED:
            return
        self._duration.observe(record.duration_s)
        self._hold.observe(record.hold_s)
        if record.first_byte_s is not None:
            self._first.observe(record.first_byte_s)
        usage = record.usage
        if usage is not None:
            self._tokens["prompt"] += usage.prompt_tokens
            self._tokens["cached"] += usage.cached_tokens
            self._tokens["output"] += usage.output_tokens
            if usage.output_s > 0:
                self._rate.observe(usage.output_tokens / usage.output_s)

    def families(self, **labels: str) -> list[Family]:
        """The series."""
        statuses = {str(status): count for status, count in self._statuses.items()}
        found = [
            counters("llamad_requests_total", "Requests that are over.", "outcome", self._outcomes, **labels),
            counters("llamad_responses_total", "Answers by HTTP status.", "status", statuses, **labels),
            counters("llamad_tokens_total", "Tokens of finished requests.", "kind", self._tokens, **labels),
        ]
        for name, text, histogram in (
            ("llamad_request_seconds", "From a request's head to the end of its answer.", self._duration),
            ("llamad_hold_seconds", "Waiting at the gate.", self._hold),
            ("llamad_first_token_seconds", "From a request's head to the first token.", self._first),
            ("llamad_output_tokens_per_second", "Speed of generation, one value a request.", self._rate),
        ):
            family = Family(name, "histogram", text)
            histogram.into(family, **labels)
            found.append(family)
        return found
