"""Hostile HTTP, each with the answer that it must get. None of it may reach llama-server, unless it says so."""

from __future__ import annotations

from dataclasses import dataclass

MARK = b"/smuggled"
"""A target that no client asks for: llama-server must never see it."""
HEAD_BYTES, HEAD_FIELDS, BODY_BYTES = 16_384, 64, 65_536
"""The limits that the cases are made for."""
_POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
_INNER = b"POST " + MARK + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True)
class Case:
    """What is sent, and the status that must come. `stays`: the connection may be used on. `passes`: llama-server gets
    one request. `waits`: nothing more is sent, and the front must lose patience."""

    name: str
    data: bytes
    status: int
    stays: bool = False
    passes: bool = False
    waits: bool = False


def _chunked(body: bytes) -> bytes:
    return _POST + b"Transfer-Encoding: chunked\r\n\r\n" + body


def _json(body: bytes, field: bytes = b"") -> bytes:
    return _POST + field + b"Content-Length: %d\r\n\r\n" % len(body) + body


def _with(field: bytes) -> bytes:
    return b"GET /props HTTP/1.1\r\nHost: localhost\r\n" + field + b"\r\n\r\n"


def _two_lengths(one: bytes, other: bytes) -> bytes:
    return _POST + one + b"\r\n" + other + b"\r\n\r\n" + _INNER


SMUGGLING = (
    Case("length and chunked", _two_lengths(b"Content-Length: 4", b"Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
    Case("chunked and length", _two_lengths(b"Transfer-Encoding: chunked", b"Content-Length: 4"), 400),
    Case("two lengths", _two_lengths(b"Content-Length: 0", b"Content-Length: 90"), 400),
    Case("the same length twice", _two_lengths(b"Content-Length: 0", b"Content-Length: 0"), 400),
    Case("a list of lengths", _POST + b"Content-Length: 0, 0\r\n\r\n" + _INNER, 400),
    Case("a signed length", _POST + b"Content-Length: +0\r\n\r\n" + _INNER, 400),
    Case("a negative length", _POST + b"Content-Length: -1\r\n\r\n" + _INNER, 400),
    Case("a hexadecimal length", _POST + b"Content-Length: 0x5a\r\n\r\n" + _INNER, 400),
    Case("an endless length", _POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n", 400),
    Case("xchunked", _POST + b"Transfer-Encoding: xchunked\r\n\r\n" + _INNER, 400),
    Case("chunked twice", _POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    Case("gzip, chunked", _POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    Case("identity", _POST + b"Transfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc", 400),
    Case("chunked in capitals", _POST + b"Transfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n", 400),
    Case("a tab before chunked's colon", _POST + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n", 400),
    Case("chunked on HTTP/1.0", _chunked(b"0\r\n\r\n").replace(b"1.1", b"1.0"), 400),
    Case("a space before the colon", _POST + b"Content-Length : 5\r\n\r\nabcde", 400),
    Case("a folded field", _with(b"X-A: 1\r\n Transfer-Encoding: chunked"), 400),
    Case("a bare line feed", b"GET / HTTP/1.1\nHost: localhost\n\n", 400),
    Case("a bare line feed in a field", _with(b"X-A: 1\nContent-Length: 5"), 400),
    Case("a bare carriage return", _with(b"X-A: 1\rContent-Length: 5"), 400),
    Case("a request within a body", _json(b'{"prompt":"' + _INNER.replace(b"\r\n", b"\\r\\n") + b'"}'), 200, True, True),
    Case("a request behind HTTP/1.0", b"GET /props HTTP/1.0\r\n\r\n" + _INNER, 200, False, True),
)
SPLITTING = (
    Case("a NUL in a field", _with(b"X-A: a\0b"), 400),
    Case("a control in a name", _with(b"X\x01A: b"), 400),
    Case("no colon", _with(b"nonsense"), 400),
    Case("an empty name", _with(b": x"), 400),
    Case("a request id that splits", _with(b"X-Request-Id: a%0d%0aSet-Cookie: x=1"), 200, True, True),
    Case("a NUL in the target", b"GET /a\0b HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    Case("a space in the target", b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    Case("a fragment", b"GET /a#b HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    Case("half an escape", b"GET /%4 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    Case("another host in the target", b"GET http://evil/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    Case("no host", b"GET / HTTP/1.1\r\n\r\n", 400),
    Case("two hosts", _with(b"Host: evil"), 400),
    Case("a host with a path", b"GET / HTTP/1.1\r\nHost: localhost/x\r\n\r\n", 400),
    Case("a foreign host", b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403, True),
    Case("a foreign origin", _with(b"Origin: https://evil.example"), 403, True),
    Case("CONNECT", b"CONNECT evil:443 HTTP/1.1\r\nHost: evil:443\r\n\r\n", 400),
    Case("an asterisk", b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    Case("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    Case("HTTP/0.9", b"GET /\r\n\r\n", 400),
    Case("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 64 + b"\r\n\r\n", 400),
    Case("an upgrade", _with(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA"), 200, True, True),
    Case("another expectation", _json(b"{}", b"Expect: 200-ok\r\n"), 417),
    Case("a slot's state", b"POST /slots/0?action=erase HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 403, True),
    Case("an order", b"GET /%61dmin/status HTTP/1.1\r\nHost: localhost\r\n\r\n", 403, True),
)
OVERSIZE = (
    Case("a long head", _with(b"X-A: " + b"a" * HEAD_BYTES), 431),
    Case("a long target", b"GET /" + b"a" * HEAD_BYTES + b" HTTP/1.1\r\n", 431),
    Case("many fields", _with(b"\r\n".join(b"X-%d: 1" % number for number in range(HEAD_FIELDS + 1))), 431),
    Case("a long body", _POST + b"Content-Length: %d\r\n\r\n" % (BODY_BYTES + 1), 413),
    Case("a long chunked body", _chunked((b"4000\r\n" + b"x" * 0x4000 + b"\r\n") * 5), 413),
    Case("a head without end", _POST + b"X-A: 1\r\n" * 5000, 431),
)
CHUNKS = (
    Case("a size that is none", _chunked(b"zz\r\nabc\r\n"), 400),
    Case("a size with a sign", _chunked(b"-1\r\n"), 400),
    Case("a size with 0x", _chunked(b"0x3\r\nabc\r\n0\r\n\r\n"), 400),
    Case("an endless size", _chunked(b"f" * 17 + b"\r\n"), 400),
    Case("a chunk longer than its size", _chunked(b"3\r\nabcd\r\n0\r\n\r\n"), 400),
    Case("a chunk with bare line feeds", _chunked(b"3\nabc\n0\n\n"), 400),
    Case("an extension with a line feed", _chunked(b"3;a=\nb\r\nabc\r\n0\r\n\r\n"), 400),
    Case("an extension without end", _chunked(b"3;" + b"a" * 5000), 400),
    Case("a trailer that is none", _chunked(b"0\r\nnonsense\r\n\r\n"), 400),
    Case("a trailer without end", _chunked(b"0\r\n" + b"X-A: 1\r\n" * 2000), 400),
    Case("a trailer with a length", _chunked(b"2\r\n{}\r\n0\r\nContent-Length: 99\r\n\r\n"), 200, True, True),
)
CONTENT = (
    Case("broken UTF-8", _json(b'{"prompt":"\xff\xfe"}'), 400, True),
    Case("half a surrogate", _json(b'{"prompt":"\\ud800"}'), 200, True, True),  # for llama-server to judge
    Case("deep JSON", _json(b'{"prompt":' + b"[" * 30_000 + b"]" * 30_000 + b"}"), 400, True),
    Case("deep objects", _json(b'{"a":' * 10_000), 400, True),
    Case("an endless number", _json(b'{"max_tokens":' + b"9" * 20_000 + b"}"), 400, True),
    Case("no JSON", _json(b"prompt=x"), 400, True),
    Case("a list", _json(b"[]"), 400, True),
    Case("nothing", _json(b""), 400, True),
    Case("a slot", _json(b'{"id_slot":3,"\\u0069d_slot":4}'), 200, True, True),
    Case("UTF-16", _json('{"prompt":"x"}'.encode("utf-16")), 200, True, True),  # for llama-server to judge
)
SLOW = (
    Case("a head that stops", b"GET / HTTP/1.1\r\nHost: lo", 408, waits=True),
    Case("a body that stops", _POST + b"Content-Length: 10\r\n\r\n{", 408, waits=True),
    Case("a chunk that stops", _chunked(b"5\r\nab"), 408, waits=True),
)
CASES = SMUGGLING + SPLITTING + OVERSIZE + CHUNKS + CONTENT
