"""The host's memory, as far as this process may use it: /proc/meminfo, and the limits of its cgroups."""

from __future__ import annotations

from pathlib import Path

from llamad.errors import DeviceError
from llamad.hardware.device import HostMemory

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def host_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> HostMemory:
    """Total and available bytes; where a cgroup v2 above us has a limit, no more than it leaves. About 0.1 ms.

    Page cache that a cgroup holds counts as available, as MemAvailable counts it for the host. Raises DeviceError
    if /proc/meminfo cannot be read.
    """
    total_bytes, available_bytes = _meminfo(proc / "meminfo")
    for folder in _own_cgroups(proc / "self" / "cgroup", cgroups):
        limit_bytes = min(_limit(folder / "memory.max"), _limit(folder / "memory.high"))
        if limit_bytes < _UNLIMITED:
            left_bytes = limit_bytes - _used(folder)
            total_bytes = min(total_bytes, limit_bytes)
            available_bytes = min(available_bytes, max(0, left_bytes))
    return HostMemory(total_bytes, available_bytes)


def process_bytes(pid: int, proc: Path = _PROC) -> int:
    """What a process has for itself alone: resident memory that is no page of a file. 0 where it cannot be told."""
    lines = _text(proc / str(pid) / "status").splitlines()
    fields = dict(line.split(":", 1) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
    sizes = [text.split()[0] for text in fields.values() if text.split()]
    return sum(int(size) for size in sizes if size.isdecimal()) * 1024


_UNLIMITED = 1 << 62


def _meminfo(path: Path) -> tuple[int, int]:
    try:
        fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        total, available = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, LookupError, ValueError) as error:
        raise DeviceError(
            "cannot read the host's memory", why=f"{path}: {error}", fix="mount /proc for this service"
        ) from error
    return total, available


def _own_cgroups(membership: Path, root: Path) -> list[Path]:
    """Our cgroup v2 and those above it, up to but without the root, which has no limit."""
    own = next((line[3:] for line in _text(membership).splitlines() if line.startswith("0::")), "/")
    parts = [part for part in own.split("/") if part and part != ".."]
    return [root.joinpath(*parts[:count]) for count in range(len(parts), 0, -1)]


def _limit(path: Path) -> int:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else _UNLIMITED


def _used(folder: Path) -> int:
    """Bytes that cannot be reclaimed without harm: all but the page cache that is not in active use."""
    current = _text(folder / "memory.current").strip()
    stat = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
    inactive = stat.get("inactive_file", "0").strip()
    if not current.isdecimal() or not inactive.isdecimal():
        return 0
    return max(0, int(current) - int(inactive))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")  # a cgroup may have any bytes for a name
    except OSError:  # no cgroup v2, no controller, or the root of a container: no limit is known then
        return ""
