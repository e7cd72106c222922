"""The records of requests: one each, one a second for many, none when turned off; and the counts for metrics."""

from __future__ import annotations

from collections.abc import Callable

from llamad.front.metrics import render
from llamad.front.settings import Outcome, RequestRecord
from llamad.front.usage import Usage
from llamad.service.events import EVENTS
from llamad.service.requests import RequestFigures, RequestLog, fields_of, text_of

USAGE = Usage(1000, 800, 256, 12.5)


def record(outcome: Outcome = Outcome.ANSWERED, status: int = 200, usage: Usage | None = USAGE) -> RequestRecord:
    path = "/v1/chat/completions"
    return RequestRecord("POST", path, status, outcome, "id-1", 13.0, 0.0, 0.31, 10, 20, 0, "tiny", usage)


class Written:
    """A journal, a clock and a timer in the test's hand."""

    def __init__(self, level: str = "info") -> None:
        self.now_s = 0.0
        self.records: list[tuple[str, str, str | None, dict[str, str]]] = []
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.log = RequestLog(self, lambda: self.now_s, self.later, level)

    def event(self, name: str, message: str, priority: str | None = None, **fields: str) -> None:
        self.records.append((name, message, priority, fields))

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        self.due.append((self.now_s + delay_s, call))

    def pass_to(self, now_s: float) -> None:
        self.now_s = now_s
        for at_s, call in list(self.due):
            if at_s <= now_s:
                self.due.remove((at_s, call))
                call()

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.records]


def test_the_line_of_a_request() -> None:
    assert text_of(record()) == (
        "Generated 256 tokens in 12.5 s (20.5 tokens/s), prompt of 1000 tokens (800 cached), first token after 310 ms"
    )
    held = record()._replace(hold_s=2.04)
    assert text_of(held).endswith(", held for 2.0 s")
    assert text_of(record(usage=Usage(7, 0, 0, 0.0))) == "Read a prompt of 7 tokens in 13.0 s"
    assert text_of(record(status=400, usage=None)) == "Answered 400 in 13.0 s"
    assert text_of(record(Outcome.LOST, 503, None)) == "Lost: llama-server died or answered nonsense (status 503)"


def test_the_fields_of_a_request_are_those_of_the_event() -> None:
    fields = fields_of(record())
    assert fields.keys() == set(EVENTS["request"].fields)
    assert (fields["OUTPUT_TOKENS"], fields["FIRST_TOKEN_MS"], fields["REQUEST_ID"]) == ("256", "310", "id-1")
    assert fields_of(record(usage=None)).keys() <= set(EVENTS["request"].fields)


def test_up_to_twenty_a_second_have_a_record_each() -> None:
    written = Written()
    for second in range(3):
        written.pass_to(second)
        for _ in range(20):
            written.log.finished(record())
    assert written.names == ["request"] * 60 and not written.due


def test_of_more_there_is_one_record_a_second() -> None:
    written = Written()
    for second in range(4):
        for step in range(100):
            written.pass_to(second + step / 100)
            written.log.finished(record(Outcome.LOST if step % 10 == 0 else Outcome.ANSWERED))
    written.pass_to(4.0)
    assert written.names == ["request"] * 20 + ["requests"] * 4
    assert [fields["COUNT"] for name, _, _, fields in written.records if name == "requests"] == ["80"] + ["100"] * 3
    assert written.records[-1][1] == "100 requests within a second: 90 answered, 23040 tokens generated, 10 lost"
    written.pass_to(10.0)
    written.log.finished(record())
    assert written.names[-1] == "request"


def test_the_level_and_turning_it_off() -> None:
    written = Written("debug")
    written.log.finished(record())
    written.log.level = "off"
    written.log.finished(record())
    written.log.level = "info"
    written.log.finished(record(Outcome.LOCAL))
    assert [(name, priority) for name, _, priority, _ in written.records] == [("request", "debug")]


def test_what_waits_is_written_at_the_end() -> None:
    written = Written()
    for _ in range(25):
        written.log.finished(record())
    written.log.flush()
    written.log.flush()
    assert written.names == ["request"] * 20 + ["requests"]


def test_the_figures_of_requests() -> None:
    figures = RequestFigures()
    for outcome in (Outcome.ANSWERED, Outcome.ANSWERED, Outcome.LOCAL, Outcome.HELD_OUT):
        figures.finished(record(outcome, 503 if outcome is Outcome.HELD_OUT else 200))
    text = render(figures.families(model="tiny")).decode()
    for line in (
        'llamad_requests_total{model="tiny",outcome="answered"} 2',
        'llamad_responses_total{model="tiny",status="503"} 1',
        'llamad_tokens_total{model="tiny",kind="output"} 768',
        'llamad_request_seconds_bucket{model="tiny",le="10"} 0',
        'llamad_request_seconds_bucket{model="tiny",le="30"} 3',
        'llamad_request_seconds_bucket{model="tiny",le="+Inf"} 3',
        'llamad_request_seconds_count{model="tiny"} 3',
        'llamad_output_tokens_per_second_bucket{model="tiny",le="30"} 3',
    ):
        assert f"{line}\n" in text
