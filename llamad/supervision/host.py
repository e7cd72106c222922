"""What the kernel did to our control group."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path


def oom_kills(root: Path = Path("/")) -> int:
    """How many processes of our cgroup the out-of-memory killer has taken; 0 where that is not told.

    With control groups of the first kind (a container on an old host) the memory group of its own is asked.
    """
    for file in _told_in(root):
        try:
            lines = file.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            key, _, value = line.partition(" ")
            if key == "oom_kill" and value.isdigit():
                return int(value)
    return 0


def _told_in(root: Path) -> Iterator[Path]:
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    top = root / "sys/fs/cgroup"
    for group in groups:
        _, _, rest = group.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            yield top / path.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            yield top / "memory" / path.lstrip("/") / "memory.oom_control"


def address_space_limited() -> bool:
    """Whether our processes' address space is limited (LimitAS=, ulimit -v)."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
