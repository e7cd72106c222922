"""Whatever our parser accepts, two other parsers accept with the same meaning (they may accept more)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamad.front.body import LAST_CHUNK, chunk, reader
from llamad.front.head import Framing, HeadError, build_request, find_end, parse_request, parse_response
from llamad.front.memo import read_request, read_response

SETTINGS = settings(max_examples=400, deadline=None, derandomize=True)  # the same cases in every run
LIMIT_BYTES = 1 << 16


@dataclass
class Message:
    """What a parser read: comparable between parsers."""

    method: bytes = b""
    target: bytes = b""
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    complete: bool = False


def ours(data: bytes, cut: int) -> tuple[Message, bytes]:
    """Our reading of `data`, given in two parts, and what is left behind the message. Raises HeadError."""
    end = find_end(data, 0, LIMIT_BYTES)
    if end < 0:
        return Message(), b""
    head = parse_request(data[:end])
    message = Message(head.method, head.target, [(f.key, f.value) for f in head.fields])
    body = reader(head.framing, head.length)
    if body is None:
        message.complete = True
        return message, data[end:]
    rest = data[end:]
    message.body = body.feed(rest[:cut])
    left = rest[cut:]
    if not body.done:
        message.body += body.feed(left)
        left = b""
    message.complete = body.done
    return message, body.rest + left


def by_h11(data: bytes) -> Message:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    message = Message()
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            message.method, message.target = event.method, event.target
            message.fields = list(event.headers)
        elif isinstance(event, h11.Data):
            message.body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            message.complete = True
            return message
        else:
            return message


class Listener:
    """httptools calls these."""

    def __init__(self) -> None:
        self.message = Message()
        self.in_head = True

    def on_url(self, url: bytes) -> None:
        self.message.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:  # trailers come here too
            self.message.fields.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.in_head = False

    def on_body(self, body: bytes) -> None:
        self.message.body += body

    def on_message_complete(self) -> None:
        self.message.complete = True


def by_httptools(data: bytes) -> Message | None:
    """httptools' reading of one message, or None where it does not know the method."""
    httptools: Any = pytest.importorskip("httptools", minversion="0.9")
    listener = Listener()
    parser = httptools.HttpRequestParser(listener)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        listener.message.complete = True
    except httptools.HttpParserInvalidMethodError:
        return None
    listener.message.method = parser.get_method()
    return listener.message


METHODS = st.sampled_from(
    [b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"get", b"FOO!", b"P OST"]
)
TARGETS = st.one_of(
    st.sampled_from(
        [b"/", b"/v1/models", b"*", b"/a?b=c#d", b"http://h/x", b"h:80", b"/%41%zz", b"/\xff", b""]
    ),
    st.binary(min_size=1, max_size=12).map(lambda tail: b"/" + tail),
)
VERSIONS = st.sampled_from(
    [b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/0.9", b"http/1.1", b"HTTP/1.1 ", b""]
)
EOLS = st.sampled_from([b"\r\n"] * 40 + [b"\n", b"\r", b"\r\r\n", b"\r\n ", b"\n\r"])
FIELDS = st.one_of(
    st.sampled_from([b"Host: h"] * 4 + [b"Host: h:1", b"host:h", b"Host: a b", b"Host:"]),
    st.sampled_from(
        [b"Content-Length: 5"] * 3 + [b"Content-Length: 05", b"Content-Length: 5,5", b"content-length:+5"]
    ),
    st.sampled_from(
        [b"Transfer-Encoding: chunked"] * 3
        + [
            b"Transfer-Encoding: Chunked",
            b"Transfer-Encoding: gzip,chunked",
            b"Transfer-Encoding:\x0bchunked",
        ]
    ),
    st.sampled_from(
        [b"Connection: close", b"Connection: keep-alive, x", b"Connection: ,", b"Expect: 100-continue"]
    ),
    st.sampled_from([b"X : y", b" X: y", b"X:\ty ", b"X: \xe9", b"X: a\x00", b": y", b"X", b'X: "a\\"b"']),
    st.builds(lambda name, value: name + b":" + value, st.binary(max_size=6), st.binary(max_size=10)),
)
BODIES = st.one_of(
    st.sampled_from(
        [b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\nT: 1\r\n\r\n", b"0\r\n\r\n"]
    ),
    st.sampled_from(
        [b"5;x=y\r\nhello\r\n0\r\n\r\n", b"5\nhello\n0\n\n", b"0x5\r\nhello\r\n0\r\n\r\n", b"5 \r\nhello"]
    ),
    st.binary(max_size=20),
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    data = b" ".join((draw(METHODS), draw(TARGETS), draw(VERSIONS))) + draw(EOLS)
    for line in [b"Host: h"] * draw(st.booleans()) + draw(st.lists(FIELDS, max_size=4)):
        data += line + draw(EOLS)
    return data + b"\r\n" + draw(BODIES)


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """A good message with one to three bytes changed: near the edge of the grammar."""
    good = draw(
        st.sampled_from(
            [
                b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nX: y\r\n\r\nhello",
                b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"5\r\nhello\r\n0\r\nT: 1\r\n\r\n",
                b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            ]
        )
    )
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data) - 1))
        new = draw(
            st.one_of(st.binary(max_size=2), st.sampled_from([b"\r", b"\n", b" ", b"\t", b":", b";", b","]))
        )
        data[at : at + draw(st.integers(0, 1))] = new
    return bytes(data)


def read_or_none(data: bytes, cut: int) -> tuple[Message, bytes] | None:
    try:
        message, rest = ours(data, cut)
    except HeadError as error:
        assert error.status in (400, 417, 431, 505)
        return None
    return (message, rest) if message.method else None


def same(one: Message, other: Message, data: bytes) -> None:
    assert (one.method, one.fields) == (other.method, other.fields), data
    assert one.target == other.target or other.target.lower().startswith(b"http"), data
    assert (one.body, one.complete) == (other.body, other.complete), data


@SETTINGS
@given(st.one_of(messages(), mutants(), mutants()), st.integers(0, 40))
@example(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;\xff\r\nhello\r\n0\r\n\r\n", 0)
@example(b"GET / HTTP/1.0\r\nContent-Length: 0\r\n\r\n", 0)
def test_what_we_accept_others_read_in_the_same_way(data: bytes, cut: int) -> None:
    read = read_or_none(data, cut)
    if read is None or not read[0].complete:  # an unfinished one is not accepted yet
        return
    message, rest = read
    alone = data[: len(data) - len(rest)]
    same(message, by_h11(alone), data)
    other = by_httptools(alone)
    if other is not None and not any(key == b"upgrade" for key, _ in message.fields):
        same(message, other, data)


@SETTINGS
@given(st.one_of(messages(), mutants()))
def test_the_rebuilt_request_is_one_message_with_the_same_body(data: bytes) -> None:
    read = read_or_none(data, 7)
    if read is None or not read[0].complete:
        return
    message, rest = read
    head = parse_request(data[: find_end(data, 0, LIMIT_BYTES)])
    chunked = head.framing is Framing.CHUNKED
    length = None if chunked or head.framing is Framing.NONE else head.length
    body = (chunk(message.body) if message.body else b"") + LAST_CHUNK if chunked else message.body
    sent = build_request(head, b"id", length, chunked=chunked) + body
    again = by_h11(sent)
    assert (again.method, again.target, again.body) == (message.method, message.target, message.body)
    assert again.complete
    assert len(rest) < len(data)


def outcome(parse: Callable[[], object]) -> object:
    try:
        return parse()
    except HeadError as error:
        return error.status


@SETTINGS
@given(st.one_of(messages(), mutants(), mutants()), st.sampled_from([3, 256]))
@example(b"\r\nContent-Length: 5\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 256)
@example(b"GET / HTTP/1.1\r\nContent-Length: 5\r\n x\r\nHost: h\r\n\r\n", 256)
@example(b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", 256)
@example(b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 256)
@example(b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", 256)
@example(b"GET / HTTP/1.1\r\nHost: h\r\nA: 1\r\nContent-Length: 5\r\n\r\n", 3)
@example(b"GET / HTTP/1.1\r\nHost: h\r\nA: 1\r\nB: 1\r\nContent-Length: 5\r\n\r\n", 3)
def test_a_remembered_request_is_the_parsed_one(data: bytes, max_fields: int) -> None:
    end = data.find(b"\r\n\r\n") + 4
    if end >= 4:
        want = outcome(lambda: parse_request(data[:end], max_fields))
        for _ in range(2):
            assert outcome(lambda: read_request(data[:end], max_fields)) == want


@SETTINGS
@given(st.binary(max_size=200), st.integers(0, 40))
def test_garbage_never_breaks_the_parser(data: bytes, cut: int) -> None:
    read_or_none(data + b"\r\n\r\n", cut)


RESPONSES = st.builds(
    lambda status, fields, eol, body: status + eol + b"".join(f + b"\r\n" for f in fields) + b"\r\n" + body,
    st.sampled_from(
        [b"HTTP/1.1 200 OK", b"HTTP/1.1 404", b"HTTP/1.0 200 OK", b"HTTP/1.1 204 No", b"HTTP/1.1 20 x"]
    ),
    st.lists(FIELDS, max_size=4),
    EOLS,
    BODIES,
)


@SETTINGS
@given(RESPONSES, st.sampled_from([b"GET", b"HEAD", b"POST"]))
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"GET")
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"HEAD")
@example(b"HTTP/1.1 304 OK\r\nContent-Length: 5\r\n\r\n", b"GET")
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", b"GET")
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", b"HEAD")
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", b"GET")
def test_a_remembered_response_is_the_parsed_one(data: bytes, method: bytes) -> None:
    end = data.find(b"\r\n\r\n") + 4
    if end >= 4:
        want = outcome(lambda: parse_response(data[:end], method))
        for _ in range(2):
            assert outcome(lambda: read_response(data[:end], method)) == want


@SETTINGS
@given(RESPONSES, st.sampled_from([b"GET", b"HEAD"]))
def test_responses_that_we_accept_h11_reads_in_the_same_way(data: bytes, method: bytes) -> None:
    try:
        end = find_end(data, 0, LIMIT_BYTES)
        if end < 0:
            return
        head = parse_response(data[:end], method)
        body = reader(head.framing, head.length)
        decoded = body.feed(data[end:]) if body else b""
    except HeadError as error:
        assert error.status in (400, 502)
        return
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    event = connection.next_event()
    assert isinstance(event, h11.Response)
    assert event.status_code == head.status
    assert list(event.headers) == [(f.key, f.value) for f in head.fields]
    theirs = b""
    while isinstance(event := connection.next_event(), h11.Data):
        theirs += bytes(event.data)
    assert theirs == decoded
