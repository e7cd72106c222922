"""What there is to be seen of models and memory at one moment, gathered without asking a daemon anything. Blocking.

Models and their activity are small files, so is the ledger; systemd is asked now and then, the drivers when wanted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from llamad.config.names import definition_names
from llamad.errors import LlamadError
from llamad.frozen import dataclass
from llamad.hardware.device import Device
from llamad.ledger.lease import HOST, Lease
from llamad.service.overview import Overview, ask_systemd, leases, overview_with
from llamad.service.table import rows_of
from llamad.text import printable
from llamad.units import MIB

UNITS_S = 5.0
PARTS = ("weights", "context", "compute")


@dataclass(frozen=True)
class DeviceView:
    """One device: what models have of it by part, what others have, and what is free, in bytes."""

    name: str
    total_bytes: int
    parts: Mapping[str, int]
    """`weights`, `context` and `compute`, which is all else of ours: buffers, the driver's context, projectors."""
    others_bytes: int
    free_bytes: int
    is_live: bool
    """Whether the driver says so now. Else what others take is not known, and what they took before the load is not
    free."""


@dataclass(frozen=True)
class Scene:
    """Everything at one moment."""

    at_s: float
    models: Sequence[Overview]
    held: Sequence[Lease]
    devices: Sequence[DeviceView] = ()
    notes: Sequence[str] = ()


class Drivers(Protocol):
    """Who knows what is free now."""

    def devices(self) -> list[Device]:
        """Raises LlamadError where a driver does not answer."""
        ...


class Looker:
    """Looks again and again. `units_s`: how old what systemd said may be."""

    def __init__(
        self,
        root: Path,
        names: Sequence[str] = (),
        drivers: Sequence[Drivers] = (),
        *,
        units_s: float = UNITS_S,
        now: Callable[[], float] = time.monotonic,
        ask: Callable[[list[str]], dict[str, dict[str, str]]] = ask_systemd,
    ) -> None:
        self._root = root
        self._names = names
        self._drivers = drivers
        self._units_s = units_s
        self._now = now
        self._ask = ask
        self._units: dict[str, dict[str, str]] = {}
        self._asked: tuple[float, list[str]] = (float("-inf"), [])

    def look(self) -> Scene:
        """What there is now."""
        names = list(self._names) or definition_names(self._root)
        asked_s, before = self._asked
        if names != before or self._now() - asked_s >= self._units_s:
            self._units = self._ask(names)
            self._asked = (self._now(), names)
        models = overview_with(names, self._units)
        found, notes = self._driver_figures()
        return Scene(time.time(), models, leases(), device_views(models, found), notes)

    def forget_units(self) -> None:
        """Ask systemd the next time: something was ordered."""
        self._asked = (float("-inf"), [])

    def _driver_figures(self) -> tuple[list[Device], list[str]]:
        found: list[Device] = []
        notes: list[str] = []
        for drivers in self._drivers:
            try:
                found += drivers.devices()
            except LlamadError as error:
                notes.append(printable(error.what))
        return found, notes


def device_views(models: Iterable[Overview], driven: Iterable[Device]) -> list[DeviceView]:
    """The devices that models use or drivers know, with what each kind of use takes. Pure."""
    ours: dict[str, dict[str, int]] = {}
    names: dict[str, str] = {}
    totals: dict[str, int] = {}
    free: dict[str, int] = {}
    for model in models:
        for row in rows_of(model.content.get("devices")):
            place = str(row.get("uuid") or row.get("name"))
            names.setdefault(place, printable(row.get("name") or "?"))
            totals[place] = max(totals.get(place, 0), _bytes(row.get("total_mib")))
            free[place] = max(free.get(place, 0), _bytes(row.get("free_at_start_mib")))
            parts = ours.setdefault(place, dict.fromkeys(PARTS, 0))
            for part in PARTS[:-1]:
                parts[part] += _bytes(row.get(f"{part}_mib"))
            taken = _bytes(row.get("planned_mib")) - _bytes(row.get("margin_mib"))
            parts["compute"] += max(0, taken - sum(_bytes(row.get(f"{part}_mib")) for part in PARTS[:-1]))
    live = {device.uuid or device.name: device for device in driven}
    return [
        _view(names.get(place) or live[place].name, ours.get(place, {}), totals.get(place, 0), free.get(place, 0),
              live.get(place))
        for place in dict.fromkeys((*live, *ours))
        if place != HOST
    ]  # fmt: skip


def _view(name: str, parts: Mapping[str, int], total: int, free_at_start: int, live: Device | None) -> DeviceView:
    taken = sum(parts.values())
    if live is not None:
        used = max(0, live.total_bytes - live.free_bytes)
        return DeviceView(name, live.total_bytes, parts, max(0, used - taken), live.free_bytes, True)
    others = max(0, total - max(free_at_start, taken))
    return DeviceView(name, total, parts, others, max(0, total - others - taken), False)


def _bytes(value: object) -> int:
    sane = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1 << 40
    return int(value * MIB) if sane and isinstance(value, int | float) else 0
