"""Tokens of an answer, read from its ends: as llama-server writes them, and not as a model might."""

from __future__ import annotations

import json
import random

import pytest

from llamad.front.usage import Usage, read_usage
from tests.support.fake_upstream import Call
from tests.support.front import running
from tests.support.http import scenario

TIMINGS = (
    '"timings":{"cache_n":30,"prompt_n":70,"prompt_ms":12.5,"prompt_per_token_ms":0.17,"prompt_per_second":5600.0,'
    '"predicted_n":256,"predicted_ms":12500.0,"predicted_per_token_ms":48.8,"predicted_per_second":20.48}'
)
USAGE = '"usage":{"completion_tokens":256,"prompt_tokens":100,"total_tokens":356,"prompt_tokens_details":{"cached_tokens":30}}'
BOTH = Usage(100, 30, 256, 12.5)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"{{{USAGE},{TIMINGS}}}", BOTH),
        (f"data: {{{TIMINGS}}}\n\ndata: [DONE]\n\n", BOTH),
        (f'{{"choices":[],{USAGE},"id":"chatcmpl"}}', Usage(100, 30, 256, 0.0)),
        ('{"usage":{"input_tokens":9,"output_tokens":4,"cache_read_input_tokens":2}}', Usage(9, 2, 4, 0.0)),
        ('{"usage":{"prompt_tokens":9,"total_tokens":9}}', Usage(9, 0, 0, 0.0)),
        ("{}", None), ("", None), ('"timings":{"prompt_n":1}', None), ('"usage":{}', None),
    ],
)  # fmt: skip
def test_what_llama_server_says(text: str, wanted: Usage | None) -> None:
    assert read_usage(b"", text.encode()) == wanted


def test_at_the_beginning_of_a_long_answer() -> None:
    head = b'{"model":"m","object":"list","usage":{"prompt_tokens":7,"total_tokens":7},"data":[{"embedding":['
    assert read_usage(head, b"0.1," * 1000) == Usage(7, 0, 0, 0.0)


def test_text_of_the_model_is_no_figure() -> None:
    spoof = json.dumps({"choices": [{"delta": {"content": "," + TIMINGS + "," + USAGE}}]})
    assert read_usage(b"", f"data: {spoof}\n\n".encode()) is None
    assert read_usage(b"", f"data: {spoof}\n\ndata: {{{TIMINGS}}}\n\n".encode()) == BOTH


def test_any_bytes_are_read_without_an_error() -> None:
    draw = random.Random(5)
    pieces = [TIMINGS.encode(), USAGE.encode(), b'"usage":{', b'"timings":{', b"\xff\x00", b'"prompt_n":' + b"9" * 15]
    for _ in range(2000):
        text = b"".join(draw.choice(pieces)[: draw.randrange(300)] for _ in range(5))
        read_usage(text, text)


@scenario
async def test_the_record_has_them_however_the_stream_is_cut() -> None:
    async def stream(call: Call) -> None:
        await call.begin_stream()
        for number in range(300):
            await call.event(json.dumps({"n": number, "pad": "x" * 50}))
        last = f"data: {{{TIMINGS}}}\n\n"
        at = int(call.body)
        await call.chunk(last[:at].encode())
        await call.chunk(last[at:].encode())
        await call.event("[DONE]")
        await call.end()

    async with running(handler=stream) as bench:
        for at in (1, 9, 40, len(TIMINGS)):
            answer = await bench.ask(body=b"%d" % at)
            assert len(answer.events) == 302
        assert [record.usage for record in bench.observer.records] == [BOTH] * 4
        assert {record.model for record in bench.observer.records} == {"tiny"}


@scenario
async def test_the_record_has_them_of_a_plain_answer() -> None:
    async def plain(call: Call) -> None:
        await call.reply(b'{"content":"' + b"x" * 100_000 + b'",' + f"{USAGE},{TIMINGS}}}".encode())

    async with running(handler=plain) as bench:
        assert (await bench.ask()).status == 200
        assert bench.observer.records[0].usage == BOTH
        assert (await bench.ask("GET", "/props", None)).status == 200
