"""Which lines of a block of the log may tell anything, found without a look at each. Pure."""

from __future__ import annotations

from typing import NamedTuple

_RECORD = b'{"type":"log"'
_TELLING = (
    *(b'"level":"warn', b'"level":"error', b"buffer size", b"sched_reserve: reserving"),
    # what the signs of progress have in common
    *(b"prompt processing", b"memory_seq_rm [", b" slice", b"image batch"),
)
SEARCHED_BYTES = 28 << 10
"""CPython searches a text of up to 30,000 bytes about twice as fast as a longer one."""


class Telling(NamedTuple):
    """What a block of records holds for who watches a child that serves."""

    lines: int
    places: list[int]
    """Where those lines begin that may mean something."""


def telling_lines(block: bytes) -> Telling | None:
    """Which lines of `block`, which is whole lines, may mean something. None where they must all be looked at,
    because not each is a record.

    A busy llama-server prints some fifty lines a request: here they cost a few searches together, not a parse each.
    """
    lines = block.count(b"\n")
    if not block.startswith(_RECORD) or block.count(b"\n" + _RECORD) + 1 != lines:
        return None
    found: set[int] = set()
    for needle in _TELLING:
        at = block.find(needle)
        while at >= 0:
            found.add(block.rfind(b"\n", 0, at) + 1)
            at = block.find(needle, block.find(b"\n", at))
    return Telling(lines, sorted(found))
