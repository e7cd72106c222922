"""Heads: what is accepted has one meaning; what could have two is refused."""

from __future__ import annotations

import pytest

from llamad.front.head import (
    Framing,
    HeadError,
    build_request,
    find_end,
    parse_request,
    parse_response,
)


def request(*lines: bytes) -> bytes:
    return b"\r\n".join(lines) + b"\r\n\r\n"


HOST = b"Host: localhost:8081"

REFUSED_REQUESTS: list[tuple[str, int, bytes]] = [
    ("http/0.9", 400, b"GET /\r\n\r\n"),
    ("http/2.0", 505, request(b"GET / HTTP/2.0", HOST)),
    ("http/2 preface", 505, b"PRI * HTTP/2.0\r\n\r\n"),
    ("http/1.2", 505, request(b"GET / HTTP/1.2", HOST)),
    ("version in lower case", 400, request(b"GET / http/1.1", HOST)),
    ("two spaces", 400, request(b"GET  / HTTP/1.1", HOST)),
    ("tab in the request line", 400, request(b"GET\t/ HTTP/1.1", HOST)),
    ("space at the end of the request line", 400, request(b"GET / HTTP/1.1 ", HOST)),
    ("leading empty line", 400, b"\r\n" + request(b"GET / HTTP/1.1", HOST)),
    ("method with a bad byte", 400, request(b"G(T / HTTP/1.1", HOST)),
    ("a method of 33 bytes", 400, request(b"A" * 33 + b" / HTTP/1.1", HOST)),
    ("non-ASCII target", 400, request(b"GET /\xc3\xa9 HTTP/1.1", HOST)),
    ("NUL in the target", 400, request(b"GET /\x00 HTTP/1.1", HOST)),
    ("no slash", 400, request(b"GET models HTTP/1.1", HOST)),
    ("authority form", 400, request(b"CONNECT localhost:22 HTTP/1.1", HOST)),
    ("star for GET", 400, request(b"GET * HTTP/1.1", HOST)),
    ("fragment", 400, request(b"GET /a#b HTTP/1.1", HOST)),
    ("bad escape", 400, request(b"GET /%zz HTTP/1.1", HOST)),
    (
        "%u escape, which llama-server's HTTP library decodes",
        400,
        request(b"POST /%u0073lots HTTP/1.1", HOST),
    ),
    ("cut escape", 400, request(b"GET /%4 HTTP/1.1", HOST)),
    ("absolute form of another host", 400, request(b"GET http://evil/ HTTP/1.1", HOST)),
    ("absolute form of another scheme", 400, request(b"GET ftp://localhost:8081/ HTTP/1.1", HOST)),
    ("no host", 400, request(b"GET / HTTP/1.1")),
    ("two hosts", 400, request(b"GET / HTTP/1.1", HOST, HOST)),
    ("two hosts on 1.0", 400, request(b"GET / HTTP/1.0", HOST, HOST)),
    ("host with a path", 400, request(b"GET / HTTP/1.1", b"Host: a/b")),
    ("host with a user", 400, request(b"GET / HTTP/1.1", b"Host: a@b")),
    ("folding with a space", 400, request(b"GET / HTTP/1.1", HOST, b"X: a", b" b")),
    ("folding with a tab", 400, request(b"GET / HTTP/1.1", HOST, b"X: a", b"\tb")),
    ("space before the colon", 400, request(b"GET / HTTP/1.1", HOST, b"Content-Length : 5")),
    ("space before the name of the first field", 400, request(b"GET / HTTP/1.1", b" X: 1", HOST)),
    ("no colon", 400, request(b"GET / HTTP/1.1", HOST, b"X")),
    ("empty name", 400, request(b"GET / HTTP/1.1", HOST, b": x")),
    ("non-token name", 400, request(b"GET / HTTP/1.1", HOST, b"X(y): 1")),
    ("NUL in a value", 400, request(b"GET / HTTP/1.1", HOST, b"X: a\x00b")),
    ("bell in a value", 400, request(b"GET / HTTP/1.1", HOST, b"X: a\x07b")),
    ("DEL in a value", 400, request(b"GET / HTTP/1.1", HOST, b"X: a\x7fb")),
    ("bare CR in a value", 400, request(b"GET / HTTP/1.1", HOST, b"X: a\rTransfer-Encoding: chunked")),
    ("bare LF in a value", 400, request(b"GET / HTTP/1.1", HOST, b"X: a\nTransfer-Encoding: chunked")),
    ("bare LF after the request line", 400, b"GET / HTTP/1.1\nHost: a\r\n\r\n"),
    (
        "length twice, the same",
        400,
        request(b"POST / HTTP/1.1", HOST, b"Content-Length: 5", b"Content-Length: 5"),
    ),
    ("length twice", 400, request(b"POST / HTTP/1.1", HOST, b"Content-Length: 5", b"content-length: 6")),
    ("list of lengths", 400, request(b"POST / HTTP/1.1", HOST, b"Content-Length: 5, 5")),
    ("plus sign", 400, request(b"POST / HTTP/1.1", HOST, b"Content-Length: +5")),
    ("minus sign", 400, request(b"POST / HTTP/1.1", HOST, b"Content-Length: -5")),
    ("hex length", 400, request(b"POST / HTTP/1.1", HOST, b"Content-Length: 0x5")),
    ("length with an underscore", 400, request(b"POST / HTTP/1.1", HOST, b"Content-Length: 1_0")),
    ("length in other digits", 400, request(b"POST / HTTP/1.1", HOST, "Content-Length: ٥".encode())),
    ("empty length", 400, request(b"POST / HTTP/1.1", HOST, b"Content-Length:")),
    ("length of 16 digits", 400, request(b"POST / HTTP/1.1", HOST, b"Content-Length: " + b"1" * 16)),
    (
        "both lengths",
        400,
        request(b"POST / HTTP/1.1", HOST, b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    ),
    ("chunked on 1.0", 400, request(b"POST / HTTP/1.0", HOST, b"Transfer-Encoding: chunked")),
    ("other coding", 400, request(b"POST / HTTP/1.1", HOST, b"Transfer-Encoding: gzip, chunked")),
    ("chunked, identity", 400, request(b"POST / HTTP/1.1", HOST, b"Transfer-Encoding: chunked, identity")),
    ("identity", 400, request(b"POST / HTTP/1.1", HOST, b"Transfer-Encoding: identity")),
    ("xchunked", 400, request(b"POST / HTTP/1.1", HOST, b"Transfer-Encoding: xchunked")),
    ("quoted", 400, request(b"POST / HTTP/1.1", HOST, b'Transfer-Encoding: "chunked"')),
    ("vertical tab", 400, request(b"POST / HTTP/1.1", HOST, b"Transfer-Encoding: \x0bchunked")),
    ("empty coding", 400, request(b"POST / HTTP/1.1", HOST, b"Transfer-Encoding:")),
    (
        "two codings",
        400,
        request(b"POST / HTTP/1.1", HOST, b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    ),
    ("bad connection", 400, request(b"GET / HTTP/1.1", HOST, b"Connection: a b")),
    ("other expectation", 417, request(b"POST / HTTP/1.1", HOST, b"Content-Length: 1", b"Expect: 200-ok")),
    ("too many fields", 431, request(b"GET / HTTP/1.1", HOST, *[b"X: 1"] * 256)),
]


@pytest.mark.parametrize(
    ("status", "head"), [case[1:] for case in REFUSED_REQUESTS], ids=[c[0] for c in REFUSED_REQUESTS]
)
def test_refused(status: int, head: bytes) -> None:
    with pytest.raises(HeadError) as caught:
        parse_request(head)
    assert caught.value.status == status
    assert caught.value.what


def test_a_plain_request() -> None:
    head = parse_request(
        request(
            b"POST /v1/chat/completions?model=a%20b HTTP/1.1",
            HOST,
            b"X-A: \t b c \t",
            b"Content-Length: 007",
        )
    )
    assert (head.method, head.target, head.minor) == (b"POST", b"/v1/chat/completions?model=a%20b", 1)
    assert head.raw_path == head.path == b"/v1/chat/completions"
    assert [field.value for field in head.fields if field.key == b"x-a"] == [b"b c"]
    assert (head.framing, head.length, head.keep_alive) == (Framing.LENGTH, 7, True)
    assert head.host == b"localhost:8081"


def test_obs_text_is_carried_and_an_empty_value_is_fine() -> None:
    head = parse_request(request(b"GET / HTTP/1.1", HOST, b"X: caf\xc3\xa9", b"Y:", b"Z:  "))
    assert [field.value for field in head.fields[1:]] == [b"caf\xc3\xa9", b"", b""]


@pytest.mark.parametrize(
    ("target", "want"),
    [
        (b"http://localhost:8081/v1?x=1", b"/v1?x=1"),
        (b"HTTP://LOCALHOST:8081", b"/"),
        (b"http://localhost:8081?x=1", b"/?x=1"),
    ],
)
def test_absolute_form_of_the_same_host_becomes_origin_form(target: bytes, want: bytes) -> None:
    assert parse_request(request(b"GET " + target + b" HTTP/1.1", HOST)).target == want


def test_the_decoded_path_is_what_llama_server_would_see() -> None:
    assert parse_request(request(b"POST /%73lots%2f0?a=%zz HTTP/1.1", HOST)).path == b"/slots/0"


def test_options_star() -> None:
    assert parse_request(request(b"OPTIONS * HTTP/1.1", HOST)).target == b"*"


@pytest.mark.parametrize(
    ("version", "connection", "want"),
    [
        (b"1.1", None, True),
        (b"1.1", b"close", False),
        (b"1.1", b"Keep-Alive, Close", False),
        (b"1.0", None, False),
        (b"1.0", b"keep-alive", True),
        (b"1.0", b"keep-alive, close", False),
    ],
)
def test_keep_alive(version: bytes, connection: bytes | None, want: bool) -> None:
    fields = [b"Connection: " + connection] if connection else []
    assert parse_request(request(b"GET / HTTP/" + version, HOST, *fields)).keep_alive is want


def test_expect_continue_only_where_a_body_follows_on_1_1() -> None:
    expect = b"Expect: 100-Continue"
    length = b"Content-Length: 3"
    assert parse_request(request(b"POST / HTTP/1.1", HOST, length, expect)).expects_continue
    assert not parse_request(request(b"POST / HTTP/1.1", HOST, expect)).expects_continue
    assert not parse_request(request(b"POST / HTTP/1.0", HOST, length, expect)).expects_continue


def test_the_rebuilt_request_has_no_hop_no_key_and_one_length() -> None:
    head = parse_request(
        request(
            b"POST /v1/completions HTTP/1.1",
            HOST,
            b"Connection: X-Hop, upgrade, keep-alive",
            b"X-Hop: 1",
            b"Upgrade: websocket",
            b"Keep-Alive: timeout=1",
            b"TE: trailers",
            b"Trailer: X",
            b"Proxy-Connection: keep-alive",
            b"Proxy-Authorization: Basic x",
            b"Authorization: Bearer secret",
            b"X-Api-Key: secret",
            b"Api-Key: secret",
            b"X-Request-Id: theirs",
            b"Expect: 100-continue",
            b"Content-Type: application/json",
            b"Transfer-Encoding: chunked",
        )
    )
    assert build_request(head, b"id1", 12) == (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost:8081\r\nContent-Type: application/json\r\n"
        b"Content-Length: 12\r\nX-Request-Id: id1\r\n\r\n"
    )
    assert b"Transfer-Encoding: chunked\r\nX-Request-Id" in build_request(head, b"id1", None, chunked=True)
    assert b"Content-Length" not in build_request(head, b"id1", None)


def test_a_request_without_host_gets_one_upstream() -> None:
    assert b"\r\nHost: localhost\r\n" in build_request(parse_request(b"GET / HTTP/1.0\r\n\r\n"), b"i", None)


def test_the_rebuilt_head_parses_to_the_same() -> None:
    head = parse_request(request(b"GET /x HTTP/1.1", HOST, b"A: 1", b"a: 2"))
    again = parse_request(build_request(head, b"i", None))
    assert [field for field in again.fields if field.key == b"a"] == list(head.fields[1:])


@pytest.mark.parametrize("size", range(1, 40))
def test_find_end_in_pieces(size: int) -> None:
    data = request(b"GET / HTTP/1.1", b"Host: a") + b"body"
    seen = bytearray()
    for at in range(0, len(data), size):
        before = len(seen)
        seen += data[at : at + size]
        end = find_end(seen, before, 1000)
        if end >= 0:
            assert data[end:] == b"body"
            return
    pytest.fail("the end was not found")


def test_find_end_refuses_early() -> None:
    assert find_end(b"GET / HTTP/1.1\r\nA: b\r", 0, 100) == -1
    with pytest.raises(HeadError, match="CRLF") as caught:
        find_end(b"GET / HTTP/1.1\nA: b", 0, 100)
    assert caught.value.status == 400
    with pytest.raises(HeadError) as caught:
        find_end(b"G" * 100, 0, 100)
    assert caught.value.status == 431


def test_a_head_of_exactly_the_limit_is_accepted_and_one_byte_more_is_not() -> None:
    head = request(b"GET / HTTP/1.1", b"A: " + b"x" * 50)
    assert find_end(head, 0, len(head)) == len(head)
    with pytest.raises(HeadError) as caught:
        find_end(head, 0, len(head) - 1)
    assert caught.value.status == 431


@pytest.mark.parametrize(
    ("head", "method", "framing", "length", "keep"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", b"GET", Framing.LENGTH, 3, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"GET", Framing.LENGTH, 0, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", b"HEAD", Framing.NONE, 3, True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"GET", Framing.CHUNKED, -1, True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"HEAD", Framing.NONE, -1, True),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"GET", Framing.UNTIL_CLOSE, -1, True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n", b"GET", Framing.LENGTH, 3, False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"GET", Framing.NONE, -1, True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b"GET", Framing.NONE, 9, True),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"POST", Framing.NONE, -1, True),
        (
            b"HTTP/1.1 200\r\nContent-Length: 1\r\nConnection: close\r\n\r\n",
            b"GET",
            Framing.LENGTH,
            1,
            False,
        ),
    ],
)
def test_response_framing(head: bytes, method: bytes, framing: Framing, length: int, keep: bool) -> None:
    parsed = parse_response(head, method)
    assert (parsed.framing, parsed.length, parsed.keep_alive) == (framing, length, keep)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/2 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 600 X\r\n\r\n",
        b"HTTP/1.1 200 O\x01K\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_refused_responses(head: bytes) -> None:
    with pytest.raises(HeadError) as caught:
        parse_response(head, b"GET")
    assert caught.value.status == 502


def test_the_rebuilt_response() -> None:
    head = parse_response(
        b"HTTP/1.1 200 Fine\r\nServer: llama.cpp\r\nKeep-Alive: timeout=5\r\nConnection: X-Hop\r\n"
        b"X-Hop: 1\r\nX-Request-Id: theirs\r\nContent-Length: 3\r\n\r\n",
        b"GET",
    )
    assert head.forwarded == b"HTTP/1.1 200 Fine\r\nServer: llama.cpp\r\n"
