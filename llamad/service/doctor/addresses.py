"""The addresses of models and of the router: free, or in the hands of who should have them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from llamad.config.listen import DEFAULT_LISTEN, Listen, parse_listen
from llamad.config.load import load_host
from llamad.errors import LlamadError
from llamad.service.doctor.finding import Finding, Seen, error, ok, unseen
from llamad.service.doctor.host import Host
from llamad.service.doctor.sockets import Listening, Process, listening, owners, takes
from llamad.service.doctor.systemd import Unit, unit_of

NAME = "addresses"
ROUTER = "llamad.service"


def check(host: Host) -> Iterable[Seen]:
    """Each address that somebody else has, with who it is."""
    sockets = list(listening(host.tree))
    wanted = _wanted(host)
    bad = False
    for unit, about, address in wanted:
        for other in [one for one in sockets if takes(one.address, address)]:
            clash = _clash(host, unit, about, address, other)
            if clash is not None:
                bad = True
                yield clash
                break
    if wanted and not bad:
        yield ok(NAME, f"{len(wanted)} addresses, none taken by others")


def _wanted(host: Host) -> list[tuple[str, str, Listen]]:
    """Unit, what it is about and address of each that is to be served.

    The router's, and that of a model that names none, only where the unit is meant to run.
    """
    found = []
    for loaded in host.usable():
        if loaded.definition.listen is None and not _is_meant_to_run(host.systemd.unit(unit_of(loaded.name))):
            continue
        address = parse_listen(loaded.definition.listen or DEFAULT_LISTEN)
        if address.kind == "tcp":
            found.append((unit_of(loaded.name), loaded.name, address))
    if not host.only and _is_meant_to_run(host.systemd.unit(ROUTER)):
        try:
            address = parse_listen(load_host(host.config).settings.host.listen)
        except LlamadError:
            return found  # the settings' check tells
        if address.kind == "tcp":
            found.append((ROUTER, "router", address))
    return found


def _is_meant_to_run(unit: Unit) -> bool:
    return unit.is_active or unit.is_enabled or unit["ActiveState"] == "failed"


def _clash(host: Host, unit: str, about: str, address: Listen, other: Listening) -> Seen | None:
    holders = owners(host.tree, f"socket:[{other.inode}]")
    if not holders:
        if host.is_root or host.systemd.unit(unit).is_active:
            return None  # of another network or user space; or its own, as far as we can see
        return unseen(NAME, f"who listens on {address}: it needs root", about=about)
    ours = [process for process in holders if process.unit == unit]
    kept = all(process.pid == 1 for process in holders) and host.systemd.unit(unit).number("NFileDescriptorStore") > 0
    if ours or kept or all(process.unit == ROUTER and unit != ROUTER for process in holders):
        return None
    return _taken(about, address, other, next((one for one in holders if one.pid != 1), holders[0]))


def _taken(about: str, address: Listen, other: Listening, holder: Process) -> Finding:
    what = f"{address} is taken by {holder}"
    why = "" if other.address == address else f"it listens on {other.address}"
    cure = f"kill {holder.pid}"
    if holder.pid == 1:
        cure = "systemctl list-sockets --show-types"
    elif holder.unit:
        cure = f"systemctl disable --now {shlex.quote(holder.unit)}"
    return error(NAME, what, about=about, why=why, cure=cure)
