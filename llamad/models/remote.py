"""A file on a server: its size, what tells its content from another, and pieces of it."""

from __future__ import annotations

import re
from contextlib import suppress
from email.message import Message
from email.utils import parsedate_to_datetime

from llamad.errors import BusyError, LlamadError
from llamad.frozen import dataclass
from llamad.gguf.foreign import FIRST_BYTES
from llamad.models.web import Answer, Interrupted, Web, host_of, refusal

_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_DATE_IS_SURE_S = 60
"""A date tells two contents apart only if the file was not touched shortly before (RFC 9110, 8.8.2.2)."""
_SIZE_FIX = "fetch it with another program, and run `llamad verify` on it"


@dataclass(frozen=True)
class Remote:
    """`validator`: an ETag or a date for If-Range; empty where the server tells nothing of the kind. `first`: how the
    file begins.
    """

    size_bytes: int
    validator: str
    ranges: bool
    first: bytes


class Changed(Exception):
    """What is there now is not what was begun with."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)


def probe(web: Web, url: str, *, with_token: bool) -> Remote:
    """Look at a file by its first bytes. Raises Interrupted, AccessError, ModelMissingError, BusyError."""
    answer = web.get(url, {"Range": f"bytes=0-{FIRST_BYTES - 1}"})
    try:
        _check(answer, url, with_token=with_token)
        if answer.status == 416:
            raise BusyError(f"the file of {host_of(url)} is empty", fix="correct the address")
        ranges = answer.status == 206
        size_bytes = _range_of(answer, url, 0)[1] if ranges else _length(answer)
        if size_bytes is None or size_bytes <= 0:
            why = "it could not be told whether all of it came"
            raise BusyError(f"{host_of(url)} does not tell the size of the file", why=why, fix=_SIZE_FIX)
        first = b""
        while len(first) < min(FIRST_BYTES, size_bytes) and (data := answer.read(FIRST_BYTES - len(first))):
            first += data
        if len(first) < min(FIRST_BYTES, size_bytes):
            raise Interrupted(f"{host_of(url)}: the connection ended early")
        return Remote(size_bytes, validator_of(answer.headers), ranges, first)
    finally:
        answer.close()


def ask(
    web: Web, url: str, remote: Remote, start: int, end: int, *, with_token: bool, same: bool
) -> tuple[Answer, int]:
    """An answer with the bytes from `start`, and how many of it are before them (a server without ranges).

    `same`: its content cannot change, or will be found out by its hash. Raises Changed, Interrupted, LlamadError.
    """
    fields = {"Range": f"bytes={start}-{end - 1}"}
    if remote.validator and not same:
        fields["If-Range"] = remote.validator
    answer = web.get(url, fields)
    try:
        _check(answer, url, with_token=with_token)
        if answer.status == 416:
            raise Changed(f"{host_of(url)} has no such bytes any more")
        size_bytes = _length(answer)
        if answer.status == 206:
            size_bytes = _range_of(answer, url, start)[1]
        if size_bytes is not None and size_bytes != remote.size_bytes:
            raise Changed(f"the size at {host_of(url)} was {remote.size_bytes} bytes and is {size_bytes}")
        found = validator_of(answer.headers)
        if not same and found != remote.validator:
            raise Changed(f"the file at {host_of(url)} changed")
        return answer, start if answer.status != 206 else 0
    except BaseException:
        answer.close()
        raise


def validator_of(headers: Message) -> str:
    """A strong ETag, else a date that is sure; empty for neither."""
    etag = headers.get("ETag", "").strip()
    if (
        etag.startswith('"')
        and etag.endswith('"')
        and 2 < len(etag) <= 200
        and etag.isascii()
        and etag.isprintable()
    ):
        return etag
    text = headers.get("Last-Modified", "").strip()
    with suppress(ValueError, TypeError, OverflowError):
        age = parsedate_to_datetime(headers.get("Date", "")) - parsedate_to_datetime(text)
        if age.total_seconds() >= _DATE_IS_SURE_S and text.isascii() and text.isprintable():
            return text
    return ""


def _check(answer: Answer, url: str, *, with_token: bool) -> None:
    problem: LlamadError | Interrupted | None = refusal(answer, url, with_token=with_token)
    if problem is not None:
        raise problem
    if answer.status not in (200, 206, 416):
        raise BusyError(f"{host_of(url)} answers with status {answer.status}")
    if answer.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        why = "it was asked for the file as it is"
        raise BusyError(f"{host_of(url)} sends the file compressed", why=why, fix=_SIZE_FIX)


def _range_of(answer: Answer, url: str, start: int) -> tuple[int, int | None]:
    """First byte and whole size that a partial answer tells. Raises Changed where the bytes are others than asked."""
    match = _RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    if match is None or int(match[1]) != start or int(match[2]) < start:
        raise Interrupted(f"{host_of(url)} sends other bytes than it was asked for")
    return start, None if match[3] == "*" else int(match[3])


def _length(answer: Answer) -> int | None:
    text = answer.headers.get("Content-Length", "").strip()
    return int(text) if text.isdecimal() and len(text) <= 18 else None
