"""Events on their way: nothing is lost or changed, and only whole events leave once a stream has begun."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamad.front.sse import EventStream

EVENTS = st.lists(
    st.sampled_from(
        [
            b":\n\n",
            b": a comment\n",
            b'data: {"a":1}\n\n',
            b"event: response.created\ndata: {}\n\n",
            b"id: 7\r\ndata: x\r\n\r\n",
            b"data: one\ndata: two\n\n",
            b"retry: 5\n\n",
            b"data: [DONE]\n\n",
        ]
    ),
    max_size=8,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(EVENTS, st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_any_split_gives_the_same_bytes(events: list[bytes], sizes: list[int]) -> None:
    text = b"".join(events)
    stream = EventStream()
    sent = b""
    at = 0
    for size in sizes * (1 + len(text) // len(sizes)):
        if at >= len(text):
            break
        begun = stream.begun
        out = stream.feed(text[at : at + size])
        at += size
        sent += out
        assert text.startswith(sent)
        assert begun <= stream.begun
        if stream.begun and out:
            assert out.endswith((b"\n\n", b"\r\n\r\n"))
        if not stream.begun:
            assert b"data" not in sent
    assert sent + stream.finish() == text


@pytest.mark.parametrize(
    ("piece", "begun"),
    [
        (b":\n\n", False),
        (b"event: x\n", False),
        (b"event: x\n\n", False),
        (b"id: 1\nretry: 3\n\n", False),
        (b"data: x", False),
        (b"data: x\n", False),
        (b"data: x\n\n", True),
        (b"data\n\n", True),
        (b"event: x\ndata: y\n\n", True),
        (b":\n\ndata: y\r\n\r\n", True),
        (b'error: {"code":500}\n\n', True),
    ],
)
def test_where_a_stream_begins(piece: bytes, begun: bool) -> None:
    stream = EventStream()
    stream.feed(piece)
    assert stream.begun is begun


def test_pings_before_the_beginning_pass_and_the_rest_waits() -> None:
    stream = EventStream()
    assert stream.feed(b":\n\nevent: x\n:") == b":\n\n"
    assert stream.feed(b"\n\ndata: y\n\nda") == b"event: x\n:\n\ndata: y\n\n"
    assert stream.feed(b"ta: z\n\n") == b"data: z\n\n"


def test_an_event_too_large_to_hold_goes_out_in_part() -> None:
    stream = EventStream()
    stream.feed(b"data: x\n\n")
    assert not stream.inside
    large = b"data: " + b"x" * (2 << 20)
    assert stream.feed(large) == large
    assert stream.inside
    assert stream.feed(b"y\n\n") == b"y\n\n"
    assert not stream.inside
