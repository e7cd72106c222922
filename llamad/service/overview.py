"""What is known of every model from outside its daemon: its public status file, and what systemd says."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import TypeGuard

from llamad.frozen import dataclass
from llamad.ledger.lease import HOST, Lease, Phase
from llamad.ledger.public import read_public
from llamad.service.gauges import read_activity
from llamad.service.paths import PUBLIC_LEDGER, ROUTER, RUNTIME_ROOT, STATE_ROOT, SYSTEM_RUN, user_run
from llamad.service.status import read_status
from llamad.text import printable
from llamad.units import format_bytes

_KEYS = ("Id", "ActiveState", "SubState", "StatusText", "UnitFileState", "ExecMainStatus", "Result")
_ASK_S = 5.0


@dataclass(frozen=True)
class Overview:
    """One model. `content` is what `--json` prints of it."""

    name: str
    state: str
    text: str
    since: int = 0
    content: dict[str, object] = field(default_factory=dict)


def overview(names: list[str], root: Path = RUNTIME_ROOT) -> list[Overview]:
    """The models, in the order given: those of units, of the router, and that this user serves in the foreground.

    Needs no root; a systemd that does not answer is left out.
    """
    return overview_with(names, ask_systemd(names), root)


def overview_with(
    names: list[str], units: Mapping[str, Mapping[str, str]], root: Path = RUNTIME_ROOT
) -> list[Overview]:
    """The same with what systemd said before: nothing but small files is read."""
    own = user_run(os.environ)
    folders = (root, own / "model", root.parent / ROUTER, own / ROUTER)
    return [_one(name, _status_of(name, folders), units.get(name, {})) for name in names]


def _status_of(name: str, folders: Iterable[Path]) -> dict[str, object] | None:
    """The first status that a process which is there has written: a unit's goes before the router's."""
    for folder in folders:
        status = read_status(name, folder)
        if status is not None and _runs(status.get("pid")):
            activity = read_activity(folder / name)
            return {
                **status,
                "served_by": "router" if folder.name == ROUTER else "unit",
                "activity": None if activity is None else activity._asdict(),
                "last_death": status.get("last_death") or _last_death(name, folder.name == ROUTER),
            }
    return None


def _last_death(name: str, by_router: bool) -> dict[str, object] | None:
    """Of an earlier run: root and the service's user can read it."""
    from llamad.service.deaths import read_deaths  # with asyncio, which `llamad plan` does without

    try:
        deaths = read_deaths((STATE_ROOT.parent / ROUTER if by_router else STATE_ROOT) / name)
    except OSError:
        return None
    return {"at": deaths[-1].at_s, "cause": deaths[-1].cause, "text": deaths[-1].text} if deaths else None


def leases(root: Path = SYSTEM_RUN) -> list[Lease]:
    """What models hold or wait for: on the system, and of those that this user serves in the foreground."""
    own = user_run(os.environ)
    return read_public(root / PUBLIC_LEDGER) + (read_public(own / PUBLIC_LEDGER) if own != root else [])


def memory_table(held: Iterable[Lease]) -> list[tuple[str, str]]:
    """By place, who was promised how much of it: `CUDA0`, `phi4 8.1 GiB, qwen 3.5 GiB (loading)`."""
    places: dict[str, list[Lease]] = {}
    for lease in held:
        for place in lease.promised:
            places.setdefault(place, []).append(lease)
    return [(_place_name(place, found), ", ".join(_holding(place, lease) for lease in found))
            for place, found in sorted(places.items(), key=lambda row: row[0] == HOST)]  # fmt: skip


def _place_name(place: str, found: Iterable[Lease]) -> str:
    names = {lease.names.get(place, place) for lease in found} - {place}
    return printable("/".join(sorted(names)) or place)


def _holding(place: str, lease: Lease) -> str:
    note = "" if lease.phase is Phase.SETTLED else f" ({lease.phase})"
    return f"{lease.name} {format_bytes(lease.promised[place])}{note}"


def _one(name: str, status: dict[str, object] | None, unit: Mapping[str, str]) -> Overview:
    enabled = unit.get("UnitFileState", "") == "enabled"
    if status is not None:
        state, text = printable(status.get("state", "unknown")), printable(status.get("text", ""))
        since = status.get("since")
        content = {**status, "enabled": enabled}
        return Overview(name, state, text, since if is_number(since) else 0, content)
    state = _state_of_unit(unit)
    text = printable(unit.get("StatusText", "")) if state != "stopped" else ""
    return Overview(name, state, text, 0, {"name": name, "state": state, "text": text, "enabled": enabled})


def _runs(pid: object) -> bool:
    return is_number(pid) and os.path.isdir(f"/proc/{pid}")


def is_number(value: object) -> TypeGuard[int]:
    """Whether a value of a status file is a process id or a time; a file of another user can hold anything."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 40


def _state_of_unit(unit: Mapping[str, str]) -> str:
    active, sub = unit.get("ActiveState", ""), unit.get("SubState", "")
    if active == "failed":
        return "failed"
    if sub.startswith("auto-restart"):
        return "retrying"
    if active in ("activating", "active", "reloading", "deactivating"):
        return active
    return "stopped"


def ask_systemd(names: list[str]) -> dict[str, dict[str, str]]:
    """What systemd knows of the models' units; {} where there is no systemd or no answer within 5 s."""
    if not names or shutil.which("systemctl") is None or not os.path.isdir("/run/systemd/system"):
        return {}
    units = [f"llamad@{name}.service" for name in names]
    try:
        shown = subprocess.run(
            ["systemctl", "show", f"--property={','.join(_KEYS)}", *units],
            capture_output=True, text=True, check=False, timeout=_ASK_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found: dict[str, dict[str, str]] = {}
    for block in shown.stdout.split("\n\n"):
        unit = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if "Id" in unit:
            found[unit["Id"].removeprefix("llamad@").removesuffix(".service")] = unit
    return found
