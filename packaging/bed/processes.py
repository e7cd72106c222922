"""What /proc says about processes, and how they are started so that none is left over.

Numbers are of the host's pid namespace.
"""

from __future__ import annotations

import os
from pathlib import Path

# Before a command: it is killed when the process that starts it ends, however that ends ...
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
# ... and takes all that it started and mounted along.
OWN_NAMESPACES = (
    *("unshare", "--mount", "--pid", "--fork", "--kill-child=KILL"),
    *("--mount-proc", "--propagation", "private", "--"),
)


def parent_pid(pid: int) -> int | None:
    """The parent of `pid`, or None when there is no such process."""
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def start_ticks(pid: int) -> int | None:
    """When `pid` began, in clock ticks since boot: with the number it names a process for good. None if it is gone."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may hold spaces and brackets; empty if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(") ")[2].split()


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, parents before children."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (parent := parent_pid(int(name))) is not None:
            children.setdefault(parent, []).append(int(name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(0), [])
        found += below
        todo += below
    return found


def namespace_pids(pid: int) -> list[int]:
    """The numbers of a process in each nested pid namespace, the host's first; empty if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return []
    numbers = next((line for line in lines if line.startswith("NSpid:")), "NSpid:")
    return [int(word) for word in numbers.split()[1:]]


def name(pid: int) -> str:
    """The short name (comm) of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
