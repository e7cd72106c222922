"""A lease: the bytes that a model was promised, where, and how far it has got with taking them. Pure.

It is kept as a small JSON file that several versions of llamad may read and write, and that the models' user could
have written itself: whatever is not exactly a lease is refused.
"""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

HOST = "host"
"""The key of host memory; other places are devices by UUID, or by name where they have none."""
MOST_BYTES = 1 << 50
MOST_PLACES = 64
_NOTHING: Mapping[str, int] = {}
_NAMELESS: Mapping[str, str] = {}


class Phase(StrEnum):
    """What the bytes of a lease are doing."""

    WAITING = "waiting"
    """Nothing is promised; it is in the queue."""
    PROMISED = "promised"
    """Planned on, and not taken yet."""
    LOADING = "loading"
    """Being taken."""
    SETTLED = "settled"
    """Taken: the drivers' own free figures lack them."""
    RETURNING = "returning"
    """The llama-server that had them has ended, its successor will take them again."""


class Lease(NamedTuple):
    """What one model has in the ledger. (A tuple: a start waits for the making of its classes.)"""

    name: str
    phase: Phase
    id: str = ""
    """Another one for each promise: what was seen of an earlier promise says nothing about a later one."""
    promised: Mapping[str, int] = _NOTHING
    visible: Mapping[str, int] = _NOTHING
    """How much of it the drivers' free figures lack for certain."""
    free: Mapping[str, int] = _NOTHING
    """What was free when the promise was made."""
    wants: Mapping[str, int] = _NOTHING
    """While waiting: what it needs, on any one of these places; empty where it waits for its turn to load."""
    why: str = ""
    """While waiting: for what, in words."""
    ticket: int = 0
    """Its place in the order of arrival; 0 for who has not had to wait."""
    passed: int = 0
    """How many models that came later were let go first."""
    until_s: float = 0.0
    """On the clock that all processes share (CLOCK_MONOTONIC): when it gives up waiting."""
    source: str = ""
    """The file system that it loads from."""
    names: Mapping[str, str] = _NAMELESS
    """llama-server's names of the places, for people."""
    pids: tuple[int, ...] = ()
    """llamad and llama-server, for people and for the driver's list of processes. Never a sign of life."""
    lacks: Mapping[str, int] = _NOTHING
    """While waiting for memory: what is missing by place, of which any one will do. The router makes room by it."""


def to_json(lease: Lease) -> str:
    """The lease as one line."""
    return json.dumps(lease._asdict(), separators=(",", ":"), sort_keys=True)


def from_json(text: str | bytes, name: str) -> Lease:
    """The lease that a model's file holds. Raises ValueError for anything else."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(content, dict) or content.get("name") != name:
        raise ValueError(f"no lease of {name}")
    return Lease(
        name=name,
        phase=Phase(_text(content, "phase")),
        id=_text(content, "id"),
        promised=_sizes(content, "promised"),
        visible=_sizes(content, "visible"),
        free=_sizes(content, "free"),
        wants=_sizes(content, "wants"),
        why=_text(content, "why"),
        ticket=_count(content.get("ticket", 0)),
        passed=_count(content.get("passed", 0)),
        until_s=float(_count(int(_number(content.get("until_s", 0.0))))),
        source=_text(content, "source"),
        names=_names(content),
        pids=tuple(map(_count, _pids(content))),
        lacks=_sizes(content, "lacks"),
    )


def _text(content: Mapping[str, object], key: str) -> str:
    value = content.get(key, "")
    if not isinstance(value, str) or len(value) > 1000:
        raise ValueError(f"{key} is no text")
    return value


def _sizes(content: Mapping[str, object], key: str) -> Mapping[str, int]:
    value = content.get(key, _NOTHING)
    if not isinstance(value, dict) or len(value) > MOST_PLACES:
        raise ValueError(f"{key} is no table of sizes")
    return {place: _count(size) for place, size in value.items()}


def _names(content: Mapping[str, object]) -> Mapping[str, str]:
    value = content.get("names", {})
    if not isinstance(value, dict) or len(value) > MOST_PLACES:
        raise ValueError("names is no table")
    return {place: _text(value, place) for place in value}


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_BYTES:
        raise ValueError("a number is out of range")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1 << 50:
        raise ValueError("a number is out of range")
    return value


def _pids(content: Mapping[str, object]) -> list[object]:
    value = content.get("pids", [])
    if not isinstance(value, list) or len(value) > MOST_PLACES:
        raise ValueError("pids is no list")
    return value
