"""Heads that repeat: a client, and llama-server, send the same head again and again but for its Content-Length.

What is remembered is the outcome of the strict parser for the head without that line; the line itself is read
here, in its plainest form only. Whatever is not that plain goes to the strict parser whole. Pure.
"""

from __future__ import annotations

import re
from functools import lru_cache

from llamad.front.head import Framing, RequestHead, ResponseHead, parse_request, parse_response

_LENGTH_LINE = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([0-9]{1,15})(?=\r\n)")
_HEAD_BYTES = 2048  # with the counts below: at most 512 KiB are remembered

_request = lru_cache(maxsize=128)(parse_request)
_response = lru_cache(maxsize=64)(parse_response)


def read_request(head: bytes, max_fields: int) -> RequestHead:
    """The same as `parse_request`."""
    if len(head) > _HEAD_BYTES:
        return parse_request(head, max_fields)
    found = _LENGTH_LINE.search(head)
    if found is None:
        return _request(head, max_fields)
    plain = _request(head[: found.start()] + head[found.end() :], max_fields - 1)
    if plain.framing is not Framing.NONE:
        return parse_request(head, max_fields)
    return RequestHead(
        plain.method,
        plain.target,
        plain.path,
        plain.minor,
        plain.host,
        Framing.LENGTH,
        int(found[1]),
        plain.keep_alive,
        plain.expects,
        plain.origin,
        plain.request_id,
        plain.credentials,
        plain.forwarded,
        plain.fields,
    )


def read_response(head: bytes, method: bytes) -> ResponseHead:
    """The same as `parse_response`."""
    if len(head) > _HEAD_BYTES:
        return parse_response(head, method)
    to = b"HEAD" if method == b"HEAD" else b"GET"  # no other method changes what an answer means
    found = _LENGTH_LINE.search(head)
    if found is None:
        return _response(head, to)
    plain = _response(head[: found.start()] + head[found.end() :], to)
    if plain.framing is not Framing.UNTIL_CLOSE:
        return parse_response(head, method)
    return ResponseHead(
        plain.status,
        Framing.LENGTH,
        int(found[1]),
        plain.keep_alive,
        plain.content_type,
        plain.forwarded,
        plain.fields,
    )
