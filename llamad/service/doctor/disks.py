"""The file systems that state, caches and run-time files are on: room, and whether they can be written."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable

from llamad.service.doctor.finding import Finding, Seen, error, ok
from llamad.service.doctor.folders import CACHE, STATE
from llamad.service.doctor.host import Host
from llamad.service.doctor.systemd import unit_of
from llamad.units import MIB, format_bytes

NAME = "disks"
FULL_BYTES = 16 * MIB
_PLACES = (STATE, CACHE, "/run/llamad")
_MOST_FILES = 5000


def check(host: Host) -> Iterable[Seen]:
    """Each place once for its file system."""
    lines, bad = [], False
    for place in _PLACES:
        space = host.tree.space(place)
        if space is None:
            continue  # missing: the folders' check tells
        if space.read_only:
            bad = True
            point = (mount.point if (mount := host.tree.mount_of(place)) else "/") or "/"
            cure = f"mount -o remount,rw {shlex.quote(point)}"
            yield error(NAME, "it is read-only", about=place, why="nothing can be learned or locked there", cure=cure)
        elif space.free_bytes < FULL_BYTES or space.free_inodes == 0:
            bad = True
            yield _full(host, place, space.free_bytes)
        lines.append(f"{place} {format_bytes(space.free_bytes)}")
    for place in (STATE, CACHE):
        mount = host.tree.mount_of(place)
        if mount is not None and mount.is_network:
            yield ok(NAME, f"it is on {mount.kind} ({mount.source})", about=place, why="a dead server stops models")
    if lines and not bad:
        yield ok(NAME, f"free: {', '.join(lines)}")


def _full(host: Host, place: str, free_bytes: int) -> Finding:
    what = f"the disk is full: {format_bytes(free_bytes)} free"
    if free_bytes >= FULL_BYTES:
        what = "the disk is full: no inode is free"
    why = "models run on, and nothing is learned or cached"
    return error(NAME, what, about=place, why=why, cure=_make_room(host, place))


def _make_room(host: Host, place: str) -> str:
    """What of ours helps most: a model's cache can always go, then old journals, else somebody must look."""
    mount = host.tree.mount_of(place)
    sizes = {
        name: _size(host, f"{CACHE}/{name}")
        for name in host.tree.names(CACHE)
        if not name.startswith(".") and host.tree.mount_of(f"{CACHE}/{name}") == mount
    }
    largest = max(sizes, key=lambda name: sizes[name], default="")
    if largest and sizes[largest] >= MIB:
        unit = shlex.quote(unit_of(largest))
        clean = f"systemctl clean --what=cache {unit}"
        runs = host.systemd.unit(unit_of(largest)).is_active
        return f"systemctl stop {unit} && {clean} && systemctl start {unit}" if runs else clean
    journal = "/var/log/journal"
    if host.tree.is_folder(journal) and host.tree.mount_of(journal) == mount:
        return "journalctl --rotate --vacuum-size=64M"
    point = mount.point if mount else "/"
    return f"du -xh --max-depth=3 {shlex.quote(point)} | sort -h | tail -n 20"


def _size(host: Host, folder: str) -> int:
    total_bytes = seen = 0
    for inside, _, names in os.walk(host.tree.path(folder)):
        for name in names:
            seen += 1
            if seen > _MOST_FILES:
                return total_bytes
            try:
                total_bytes += os.lstat(os.path.join(inside, name)).st_blocks * 512
            except OSError:
                continue  # gone since
    return total_bytes
