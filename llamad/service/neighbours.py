"""What the other models of this host will want of its devices: for plans that leave them room."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from llamad.config.names import name_of_file
from llamad.ledger.booking import Booking
from llamad.ledger.lease import Lease, Phase
from llamad.store import load_cache, store_cache

LAST_PLAN = "last-plan.json"
ENABLED_UNITS = Path("/etc/systemd/system/llamad.target.wants")


class Other(NamedTuple):
    """Another model that is served, or that is enabled and was once."""

    name: str
    running: bool
    """Whether it has a lease: what it was promised is gone from the free figures, or counted as promised."""
    promised: Mapping[str, int]
    """Bytes by place (a device's UUID or name, or `host`), of its lease or of its last good plan."""


def others(booking: Booking, state_root: Path, enabled_units: Path = ENABLED_UNITS) -> list[Other]:
    """Every other model that runs now or is enabled, as far as its bytes are known. Blocking, some milliseconds.

    `state_root` is the folder of all models' states. Raises BusyError where the ledger cannot be had.
    """
    leases = {lease.name: lease for lease in booking.others()}
    names = {*leases, *enabled_names(enabled_units)} - {booking.ledger.name}
    found = [_other(name, leases.get(name), state_root) for name in sorted(names)]
    return [other for other in found if other is not None]


def _other(name: str, lease: Lease | None, state_root: Path) -> Other | None:
    if lease is not None and lease.phase is not Phase.WAITING:
        return Other(name, running=True, promised=lease.promised)
    promised = last_plan(state_root / name)
    return Other(name, running=False, promised=promised) if promised else None


def enabled_names(units: Path = ENABLED_UNITS) -> list[str]:
    """The models whose units are enabled, by the links that `systemctl enable` makes."""
    try:
        files = os.listdir(units)
    except OSError:
        return []
    words = [file.removeprefix("llamad@") for file in files if file.startswith("llamad@")]
    return sorted(filter(None, (name_of_file(f"{word.removesuffix('.service')}.toml") for word in words)))


def keep_plan(state: Path, promised: Mapping[str, int]) -> None:
    """Keep what a plan was promised that has come to serve. One that cannot be kept is missing later, no more."""
    store_cache(state / LAST_PLAN, {"promised": dict(promised)})


def last_plan(state: Path) -> Mapping[str, int]:
    """What the model's last good plan was promised; {} if none is known."""
    content = load_cache(state / LAST_PLAN)
    promised = content.get("promised") if isinstance(content, dict) else None
    if not isinstance(promised, dict):
        return {}
    sane = all(type(size) is int and 0 <= size < 1 << 50 for size in promised.values())
    return promised if sane else {}
