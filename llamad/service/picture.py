"""The picture of `llamad top`: from a scene and what the admin has chosen to lines of styled text. Pure.

Plain ASCII only: names and texts come from files that others may have written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llamad.frozen import dataclass
from llamad.planning.explain import plain
from llamad.service.scene import PARTS, DeviceView, Scene
from llamad.service.table import STATE_COLUMN, Row, row_of, table_lines
from llamad.units import format_bytes

SIGNS = {"weights": "#", "context": "=", "compute": "-", "others": "x", "free": "."}
LEAST_WIDTH, LEAST_HEIGHT = 40, 6
_BAR_LEAST, _BAR_MOST = 10, 60


class Span(NamedTuple):
    """A piece of a line. `style`: "", bold, dim, reverse, or the name of a model's state or of a part of memory."""

    text: str
    style: str = ""


Line = tuple[Span, ...]

ORDERS: dict[str, tuple[str, Callable[[Row], object]]] = {
    "n": ("name", lambda row: row.name),
    "s": ("state", lambda row: (row.state != "ready", row.state, row.name)),
    "m": ("memory", lambda row: (-row.memory_bytes, row.name)),
    "t": ("tokens/s", lambda row: (-row.tokens_per_s, row.name)),
    "w": ("waiting", lambda row: (-row.waiting, -row.active, row.name)),
}
"""By key: what models are sorted by."""
KEYS = "q quit   l load   u unload   up/down choose   n s m t w sort"


@dataclass(frozen=True)
class View:
    """What the admin has chosen."""

    order: str = "n"
    chosen: str = ""
    """The name of a model; empty for the first one."""
    message: str = ""
    """Of the last order."""
    question: str = ""
    """To be answered with y or n."""


def sorted_rows(scene: Scene, order: str) -> list[Row]:
    """The models in this order."""
    rows = [row_of(model, scene.at_s) for model in scene.models]
    key = ORDERS[order][1]
    return sorted(rows, key=lambda row: key(row))  # type: ignore[arg-type, return-value]


def moved(rows: Sequence[Row], chosen: str, step: int) -> str:
    """The name that is chosen after so many steps; empty where there is none."""
    names = [row.name for row in rows]
    if not names:
        return ""
    at = names.index(chosen) if chosen in names else 0
    return names[max(0, min(len(names) - 1, at + step))]


def picture(scene: Scene, view: View, width: int, height: int) -> list[Line]:
    """Exactly `height` lines, none longer than `width`; of what does not fit the end is left out, never the keys."""
    if width < LEAST_WIDTH or height < LEAST_HEIGHT:
        return _cut([(Span(f"llamad top needs {LEAST_WIDTH} x {LEAST_HEIGHT} characters"),)], width, height)
    rows = sorted_rows(scene, view.order)
    head = [_head(scene, rows), *_bars(scene.devices, width), (Span(""),)]
    foot = [*((Span(plain(note), "bold"),) for note in scene.notes), _foot(view)]
    room = height - len(foot)
    body = _models(rows, view, max(1, room - len(head) - 1))
    lines = [*head, *body][:room]
    return _cut([*lines, *[(Span(""),)] * (room - len(lines)), *foot], width, height)


def _head(scene: Scene, rows: Sequence[Row]) -> Line:
    clock = time.strftime("%H:%M:%S", time.localtime(scene.at_s))
    ready = sum(row.state == "ready" for row in rows)
    rate = sum(row.tokens_per_s for row in rows)
    at_work, waiting = sum(row.active for row in rows), sum(row.waiting for row in rows)
    text = f" {clock}  {ready} of {len(rows)} models ready  {at_work} requests  {waiting} waiting  {rate:.1f} tokens/s"
    return Span("llamad top", "bold"), Span(text)


def _bars(devices: Sequence[DeviceView], width: int) -> list[Line]:
    if not devices:
        return [(Span("no device is known: no model is on one, and no driver tells", "dim"),)]
    name_width = max(len(plain(device.name)) for device in devices)
    words = [_words(device) for device in devices]
    cells = max(_BAR_LEAST, min(_BAR_MOST, width - name_width - max(map(len, words)) - 5))
    bars = [
        (Span(f"{plain(device.name):<{name_width}} ["), *_bar(device, cells), Span(f"] {text}"))
        for device, text in zip(devices, words, strict=True)
    ]
    legend = "   ".join(f"{SIGNS[part]} {part}" for part in SIGNS)
    return [*bars, (Span(f"{'':<{name_width}}  {legend}", "dim"),)]


def _words(device: DeviceView) -> str:
    used = device.total_bytes - device.free_bytes
    text = f"{format_bytes(used)} of {format_bytes(device.total_bytes)}"
    return text if device.is_live else f"{text} (others as at the load)"


def _bar(device: DeviceView, cells: int) -> list[Span]:
    """Each share ends where the sum up to it ends, so rounding does not add up."""
    shares = [(part, device.parts.get(part, 0)) for part in PARTS] + [("others", device.others_bytes)]
    spans, drawn, end = [], 0, 0
    for part, size in shares:
        end += max(0, size)
        upto = min(cells, round(end * cells / max(1, device.total_bytes)))
        spans.append(Span(SIGNS[part] * (upto - drawn), part))
        drawn = upto
    return [*(span for span in spans if span.text), Span(SIGNS["free"] * (cells - drawn), "dim")]


def _models(rows: Sequence[Row], view: View, room: int) -> list[Line]:
    """The heading and as many models as there is room for, the chosen one among them."""
    if not rows:
        return [(Span("no definitions; `llamad add NAME FILE.gguf` writes one"),)]
    heading, *lines = table_lines(rows)
    chosen = next((at for at, row in enumerate(rows) if row.name == view.chosen), 0)
    first = max(0, chosen - room + 1)
    found: list[Line] = [(Span("  " + "  ".join(heading), "bold"),)]
    for at in range(first, min(len(rows), first + room)):
        mark = "> " if at == chosen else "  "
        spans = [Span(mark, "reverse" if at == chosen else "")]
        for column, cell in enumerate(lines[at]):
            spans.append(Span(plain(cell), rows[at].state if column == STATE_COLUMN else ""))
            spans.append(Span("  "))
        found.append(tuple(spans))
    return found


def _foot(view: View) -> Line:
    if view.question:
        return (Span(f"{plain(view.question)} (y/n)", "reverse"),)
    if view.message:
        return (Span(plain(view.message), "bold"),)
    return (Span(f"{KEYS}   (by {ORDERS[view.order][0]})", "dim"),)


def _cut(lines: Sequence[Line], width: int, height: int) -> list[Line]:
    return [_cut_line(line, width) for line in lines[-height:] if height > 0]


def _cut_line(line: Line, width: int) -> Line:
    found, left = [], width
    for span in line:
        text = span.text[:left]
        left -= len(text)
        if text:
            found.append(Span(text, span.style))
    return tuple(found)


def as_text(lines: Sequence[Line]) -> str:
    """Without styles, for what is no terminal."""
    return "\n".join("".join(span.text for span in line).rstrip() for line in lines) + "\n"
