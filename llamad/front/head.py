"""Request and response heads: strict parsing, and building new ones from the parsed fields. Pure.

A head that is accepted here has one meaning only: CRLF line ends, HTTP/1.0 or 1.1, no folding, no space
before the colon, one length. Heads are rebuilt from the fields, never forwarded as they came, so what the
other side reads is what was checked. Bodies are `llamad.front.body`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from llamad.errors import LlamadError

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb"{1,32}) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")
_FIELD = re.compile(rb"(" + _TOKEN + rb"+):([\t\x20-\x7e\x80-\xff]*)")
_IS_TOKEN = re.compile(_TOKEN + rb"+")
_LENGTH = re.compile(rb"[0-9]{1,15}")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]*)(?::[0-9]{1,5})?")
BARE = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")  # a line end that is not CRLF
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)(.*)", re.IGNORECASE)
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_MEMO_BYTES = 256
_NOTHING: frozenset[bytes] = frozenset()

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_FRAMING = frozenset((b"connection", b"content-length", b"transfer-encoding", b"host", b"expect"))
_SECRETS = frozenset((b"authorization", b"x-api-key", b"api-key"))
_NOTED = _FRAMING | {b"origin", b"x-request-id", b"content-type"}
_NOT_UPSTREAM = HOP_BY_HOP | _FRAMING | _SECRETS | {b"x-request-id"}
_NOT_DOWNSTREAM = HOP_BY_HOP | {b"content-length", b"x-request-id"}


class HeadError(LlamadError):
    """A message that must not be acted on. `status` is the answer to the client (502 for a bad response)."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


class Field(NamedTuple):
    """One header field: the name in lower case, the name as sent, the value without outer blanks."""

    key: bytes
    name: bytes
    value: bytes


class Framing(IntEnum):
    """Where a body ends."""

    NONE = 0
    LENGTH = 1
    CHUNKED = 2
    UNTIL_CLOSE = 3


@dataclass(slots=True)
class RequestHead:
    """A checked request head. Shared between requests whose heads are the same: never changed.

    target: in origin form, or `*`.  path: its path with the escapes decoded, as llama-server will see it
    length: -1 where the head names none.  expects: an `Expect: 100-continue` was there
    credentials: the fields that may carry a key.  fields: all of them, the Content-Length not always
    forwarded: the beginning of the head that goes upstream
    """

    method: bytes
    target: bytes
    path: bytes
    minor: int
    host: bytes
    framing: Framing
    length: int
    keep_alive: bool
    expects: bool
    origin: bytes | None
    request_id: bytes | None
    credentials: tuple[Field, ...]
    forwarded: bytes
    fields: tuple[Field, ...] = field(compare=False)

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for `100 Continue` before it sends its body."""
        return self.expects and self.minor == 1 and self.framing is not Framing.NONE

    @property
    def raw_path(self) -> bytes:
        """The path as it was sent: printable ASCII, without the query."""
        return self.target.partition(b"?")[0]


@dataclass(slots=True)
class ResponseHead:
    """A checked response head. Shared between answers whose heads are the same: never changed.

    length: -1 where the head names none.  fields: all of them, the Content-Length not always
    forwarded: the beginning of the head that goes to the client
    """

    status: int
    framing: Framing
    length: int
    keep_alive: bool
    content_type: bytes
    forwarded: bytes
    fields: tuple[Field, ...] = field(compare=False)


_Noted = dict[bytes, list[bytes]]  # the values of the fields of `_NOTED`, by key


def find_end(data: bytes | bytearray, start: int, limit_bytes: int) -> int:
    """The index behind the empty line that ends a head in `data`, or -1 where it has not come yet.

    `start` is how many bytes an earlier call has seen. Raises HeadError 431 where the head is longer than
    `limit_bytes`, 400 where an unfinished head has a line that does not end with CRLF.
    """
    end = data.find(b"\r\n\r\n", max(0, start - 3), limit_bytes + 4)
    if end >= 0 and end + 4 <= limit_bytes:
        return end + 4
    if len(data) >= limit_bytes:
        raise HeadError(431, f"the head is longer than {limit_bytes} bytes")
    if BARE.search(data, max(0, start - 1)):
        raise HeadError(400, "a line does not end with CRLF")
    return -1


def parse_request(head: bytes, max_fields: int = 256) -> RequestHead:
    """The request head in `head`, which ends with its empty line. Raises HeadError."""
    lines = head[:-4].split(b"\r\n")
    parse_first = _request_line if len(lines[0]) <= _MEMO_BYTES else _parse_request_line
    method, target, minor = parse_first(lines[0])
    fields, noted = _parse_fields(lines, max_fields)
    host = _host(noted.get(b"host"), minor)
    if target[0] != 0x2F or b"%" in target or b"#" in target:
        target = _target(method, target, host)
    framing, length = _request_framing(noted, minor)
    keep_alive, dropped = _connection(noted.get(b"connection"), minor)
    forwarded = [method, b" ", target, b" HTTP/1.1\r\nHost: ", host or b"localhost", b"\r\n"]
    _add_fields(forwarded, fields, _NOT_UPSTREAM, dropped)
    origins, ids = noted.get(b"origin"), noted.get(b"x-request-id")
    return RequestHead(
        method,
        target,
        _path(target),
        minor,
        host,
        framing,
        length,
        keep_alive,
        _expects(noted.get(b"expect")),
        b", ".join(origins) if origins else None,
        ids[0] if ids and len(ids) == 1 else None,
        tuple(one for one in fields if one.key in _SECRETS),
        b"".join(forwarded),
        tuple(fields),
    )


def parse_response(head: bytes, method: bytes, max_fields: int = 256) -> ResponseHead:
    """The response head in `head`, the answer to a request with `method`. Raises HeadError 502."""
    lines = head[:-4].split(b"\r\n")
    try:
        parse_first = _status_line if len(lines[0]) <= _MEMO_BYTES else _parse_status_line
        status, reason, minor = parse_first(lines[0])
        fields, noted = _parse_fields(lines, max_fields)
        framing, length = _response_framing(noted, minor, status, method)
        keep_alive, dropped = _connection(noted.get(b"connection"), minor)
    except HeadError as error:
        raise HeadError(502, error.what) from None
    forwarded = [b"HTTP/1.1 %d " % status, reason, b"\r\n"]
    _add_fields(forwarded, fields, _NOT_DOWNSTREAM, dropped)
    kinds = noted.get(b"content-type")
    return ResponseHead(
        status, framing, length, keep_alive, kinds[0] if kinds else b"", b"".join(forwarded), tuple(fields)
    )


def build_request(
    head: RequestHead, request_id: bytes, length: int | None, *, chunked: bool = False, with_keys: bool = False
) -> bytes:
    """The head that goes upstream for `head`: no hop-by-hop field, no key (unless `with_keys`), one length.

    `length` None and `chunked` false means a request without a body.
    """
    if with_keys and head.credentials:
        keys = b"".join(b"%b: %b\r\n" % (one.name, one.value) for one in head.credentials)
        return build_request(
            replace(head, forwarded=head.forwarded + keys), request_id, length, chunked=chunked
        )
    if chunked:
        return b"%bTransfer-Encoding: chunked\r\nX-Request-Id: %b\r\n\r\n" % (head.forwarded, request_id)
    if length is None:
        return b"%bX-Request-Id: %b\r\n\r\n" % (head.forwarded, request_id)
    return b"%bContent-Length: %d\r\nX-Request-Id: %b\r\n\r\n" % (head.forwarded, length, request_id)


def with_target(head: RequestHead, target: bytes) -> RequestHead:
    """The same request for another target, in origin form."""
    rest = head.forwarded.partition(b"\r\n")[2]
    forwarded = b"%b %b HTTP/1.1\r\n%b" % (head.method, target, rest)
    return replace(head, target=target, path=_path(target), forwarded=forwarded)


def is_token(text: bytes) -> bool:
    """Whether `text` may stand as a field name or a method."""
    return _IS_TOKEN.fullmatch(text) is not None


def parse_trailers(block: bytes, max_fields: int) -> None:
    """Check trailer fields; `block` ends with the empty line. They are dropped. Raises HeadError 400."""
    try:
        _parse_fields([b"", *block[:-4].split(b"\r\n")], max_fields)
    except HeadError as error:
        raise HeadError(400, f"in the trailer: {error.what}") from None


def _add_fields(
    parts: list[bytes], fields: Iterable[Field], not_these: frozenset[bytes], nor_these: frozenset[bytes]
) -> None:
    for key, name, value in fields:
        if key not in not_these and key not in nor_these:
            parts += (name, b": ", value, b"\r\n")


def _parse_fields(lines: list[bytes], max_fields: int) -> tuple[list[Field], _Noted]:
    """The fields of `lines` behind the first line, and the values of those that mean something here."""
    if len(lines) - 1 > max_fields:
        raise HeadError(431, f"more than {max_fields} header fields")
    fields: list[Field] = []
    noted: _Noted = {}
    add = fields.append
    for line in lines[1:]:
        field = _field(line) if len(line) <= _MEMO_BYTES else _parse_field(line)
        add(field)
        if field[0] in _NOTED:
            noted.setdefault(field[0], []).append(field[2])
    return fields, noted


def _parse_field(line: bytes) -> Field:
    match = _FIELD.fullmatch(line)
    if match is None:
        raise HeadError(400, _what_is_wrong(line))
    name, value = match.groups()
    return Field(name.lower(), name, value.strip(b" \t"))


def _parse_request_line(line: bytes) -> tuple[bytes, bytes, int]:
    """Method, target and minor version."""
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise HeadError(400, "not an HTTP/1.1 request line")
    method, target, major, minor = match.groups()
    if major != b"1" or minor not in (b"0", b"1"):
        raise HeadError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    return method, target, int(minor)


def _parse_status_line(line: bytes) -> tuple[int, bytes, int]:
    """Status, reason and minor version."""
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise HeadError(502, "not an HTTP/1.1 status line")
    return int(match[2]), match[3] or b"", int(match[1])


# The lines of a busy server repeat. The memory of these is bounded by _MEMO_BYTES and the counts.
_field = lru_cache(maxsize=512)(_parse_field)
_request_line = lru_cache(maxsize=128)(_parse_request_line)
_status_line = lru_cache(maxsize=64)(_parse_status_line)


def _what_is_wrong(line: bytes) -> str:
    if line[:1] in (b" ", b"\t"):
        return "a folded header field"
    name, colon, _ = line.partition(b":")
    if not colon:
        return "a header field without a colon"
    if not is_token(name):
        return "a header field with a bad name (or a space before its colon)"
    return "a control byte in a header field"


def _unescape(match: re.Match[bytes]) -> bytes:
    return bytes((int(match[1], 16),))


def _host(hosts: list[bytes] | None, minor: int) -> bytes:
    if hosts is None or len(hosts) != 1:
        if hosts is None and minor == 0:
            return b""
        raise HeadError(400, "not exactly one Host field")
    if _HOST.fullmatch(hosts[0]) is None:
        raise HeadError(400, "a bad Host field")
    return hosts[0]


def _target(method: bytes, target: bytes, host: bytes) -> bytes:
    """`target` in origin form. An absolute one must name the same host as the Host field."""
    if b"#" in target:
        raise HeadError(400, "a fragment in the request target")
    if target == b"*":
        if method != b"OPTIONS":
            raise HeadError(400, "* is a target of OPTIONS only")
        return target
    if not target.startswith(b"/"):
        match = _ABSOLUTE.fullmatch(target)
        if match is None:
            raise HeadError(400, "the request target is not a path")
        if match[1].lower() != host.lower():
            raise HeadError(400, "the request target and the Host field name different hosts")
        target = match[2]
        if not target.startswith(b"/"):
            target = b"/" + target
    if _BAD_ESCAPE.search(target.partition(b"?")[0]):
        raise HeadError(400, "a bad percent escape in the path")
    return target


def _length(values: list[bytes]) -> int:
    if len(values) > 1:
        raise HeadError(400, "more than one Content-Length")
    if _LENGTH.fullmatch(values[0]) is None:
        raise HeadError(400, "Content-Length is not a plain number")
    return int(values[0])


def _check_encoding(noted: _Noted, minor: int) -> None:
    """Raise unless the one Transfer-Encoding is exactly `chunked`, on HTTP/1.1, without a Content-Length."""
    if minor == 0:
        raise HeadError(400, "Transfer-Encoding on HTTP/1.0")
    if b"content-length" in noted:
        raise HeadError(400, "both Content-Length and Transfer-Encoding")
    if noted[b"transfer-encoding"] != [b"chunked"]:
        raise HeadError(400, "a Transfer-Encoding other than chunked")


def _request_framing(noted: _Noted, minor: int) -> tuple[Framing, int]:
    if b"transfer-encoding" in noted:
        _check_encoding(noted, minor)
        return Framing.CHUNKED, -1
    lengths = noted.get(b"content-length")
    return (Framing.LENGTH, _length(lengths)) if lengths else (Framing.NONE, -1)


def _response_framing(noted: _Noted, minor: int, status: int, method: bytes) -> tuple[Framing, int]:
    chunked = b"transfer-encoding" in noted
    if chunked:
        _check_encoding(noted, minor)
    lengths = noted.get(b"content-length")
    length = _length(lengths) if lengths else -1
    if status < 200 or status in (204, 304) or method == b"HEAD":
        return Framing.NONE, length
    if chunked:
        return Framing.CHUNKED, -1
    return (Framing.LENGTH if lengths else Framing.UNTIL_CLOSE), length


def _connection(values: list[bytes] | None, minor: int) -> tuple[bool, frozenset[bytes]]:
    """Whether the connection stays open, and the fields that the Connection field names."""
    if values is None:
        return minor == 1, _NOTHING
    tokens: set[bytes] = set()
    for value in values:
        for part in value.split(b","):
            token = part.strip(b" \t").lower()
            if token and not is_token(token):
                raise HeadError(400, "a bad Connection field")
            tokens.add(token)
    keep_alive = b"close" not in tokens and (minor == 1 or b"keep-alive" in tokens)
    return keep_alive, frozenset(tokens) if tokens - {b"keep-alive", b"close"} else _NOTHING


def _expects(values: list[bytes] | None) -> bool:
    if values is None:
        return False
    if [value.lower() for value in values] != [b"100-continue"]:
        raise HeadError(417, "the only expectation met here is 100-continue")
    return True


def _path(target: bytes) -> bytes:
    raw = target.partition(b"?")[0]
    return _ESCAPE.sub(_unescape, raw) if b"%" in raw else raw
