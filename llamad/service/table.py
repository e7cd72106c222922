"""The table of models that `llamad status` and `top` show: a line a model. Pure but for the date that it is given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from llamad.frozen import dataclass
from llamad.service.overview import Overview
from llamad.text import printable
from llamad.units import MIB, format_bytes

HEADINGS = ("NAME", "STATE", "SINCE", "CONTEXT", "MEMORY", "BUSY", "WAITING", "TOKENS/S", "RESTARTS", "NOTE")
STATE_COLUMN = HEADINGS.index("STATE")
_RIGHT = frozenset({"SINCE", "CONTEXT", "BUSY", "WAITING", "TOKENS/S", "RESTARTS"})
_UNKNOWN = "-"
_PLAN_WORDS = re.compile(r"\d+ slots?\b(?:; )?")
_LONGEST_NOTE = 300


@dataclass(frozen=True)
class Row:
    """One model; the numbers are for sorting, 0 where they are not known."""

    name: str
    state: str
    cells: tuple[str, ...]
    memory_bytes: int = 0
    tokens_per_s: float = 0.0
    active: int = 0
    waiting: int = 0


def row_of(model: Overview, now_s: float) -> Row:
    """The line of a model. Its text is escaped: a daemon's user wrote it."""
    content = model.content
    activity = _table(content.get("activity"))
    memory = memory_of(content)
    active, waiting = _count(activity.get("active_requests")), _count(activity.get("waiting_requests"))
    slots, context = _count(content.get("slots")), _count(content.get("context_tokens"))
    rate = _number(activity.get("tokens_per_s"))
    restarts = content.get("restarts")
    serves = bool(context)
    cells = (
        printable(model.name),
        printable(model.state),
        age(now_s - model.since) if model.since else "",
        str(context) if serves else _UNKNOWN,
        ", ".join(f"{name} {format_bytes(size)}" for name, size in memory) or _UNKNOWN,
        f"{active}/{slots}" if activity and serves else _UNKNOWN,
        str(waiting) if activity else _UNKNOWN,
        f"{rate:.1f}" if activity and serves else _UNKNOWN,
        str(_count(restarts)) if restarts is not None else _UNKNOWN,
        note_of(model, now_s),
    )
    return Row(model.name, model.state, cells, sum(size for _, size in memory), rate, active, waiting)


def memory_of(content: Mapping[str, object]) -> list[tuple[str, int]]:
    """What a model takes by device, without its margin; of the host where it uses no device."""
    found = []
    for device in rows_of(content.get("devices")):
        size = _number(device.get("planned_mib")) - _number(device.get("margin_mib"))
        found.append((printable(device.get("name") or "?"), int(max(0.0, size) * MIB)))
    host = _number(_table(content.get("host")).get("buffers_mib"))
    return found or ([("host", int(host * MIB))] if host else [])


def note_of(model: Overview, now_s: float) -> str:
    """What is beside the figures: why it does not serve, what changed under it, what it died of last."""
    ready = model.state == "ready"
    text = _PLAN_WORDS.split(model.text, maxsplit=1)[-1] if ready and _PLAN_WORDS.search(model.text) else model.text
    text = text.removeprefix(f"{model.state}: ")
    words = [printable(text)] if text and text != model.state else []
    death = _table(model.content.get("last_death"))
    if death.get("cause"):
        at_s = _number(death.get("at"))
        when = f" {age(now_s - at_s)} ago" if at_s else ""
        words.append(f"last: {printable(death['cause'])}{when}")
    return "; ".join(words)[:_LONGEST_NOTE]


def table_lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The cells of the heading and of each row, padded to their columns; the last one is not."""
    table = [HEADINGS, *(row.cells for row in rows)]
    widths = [max(len(cells[n]) for cells in table) for n in range(len(HEADINGS))]
    return [
        tuple(
            cell if heading == HEADINGS[-1] else f"{cell:>{width}}" if heading in _RIGHT else f"{cell:<{width}}"
            for cell, width, heading in zip(cells, widths, HEADINGS, strict=True)
        )
        for cells in table
    ]


def age(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h`, `5 d`."""
    for limit, unit, factor in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{max(0, seconds) / factor:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def rows_of(value: object) -> list[Mapping[str, object]]:
    """The tables of a list; what is none is left out."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _table(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float:
    sane = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1 << 50
    return float(value) if sane and isinstance(value, int | float) else 0.0


def _count(value: object) -> int:
    return int(_number(value))
