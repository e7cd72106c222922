"""What the kernel did to our control group."""

from __future__ import annotations

import resource
from pathlib import Path


def oom_kills(root: Path = Path("/")) -> int:
    """How many processes of our cgroup (v2) the out-of-memory killer has taken; 0 where that is not told."""
    try:
        own = (root / "proc/self/cgroup").read_text().rpartition("0::")[2].splitlines()[0]
        events = (root / "sys/fs/cgroup" / own.lstrip("/") / "memory.events").read_text()
    except (OSError, IndexError):
        return 0
    for line in events.splitlines():
        key, _, value = line.partition(" ")
        if key == "oom_kill" and value.isdigit():
            return int(value)
    return 0


def address_space_limited() -> bool:
    """Whether our processes' address space is limited (LimitAS=, ulimit -v)."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
