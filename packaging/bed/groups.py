"""Control groups of beds: one of our own making, or a scope of the host's systemd where there is one."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from bed.report import BedError

_REMOVE_S = 20.0


def make(name: str) -> str | None:
    """A new control group for the bed `name`; None where systemd runs the host and has to be asked for one."""
    if Path("/run/systemd/system").is_dir():
        return None
    own = next(
        (line[4:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::"), ""
    )
    group = _mount() / own.lstrip("/") / f"llamad-testbed-{name}"
    group.mkdir(exist_ok=True)
    return str(group)


def enter(name: str, group: str | None) -> list[str]:
    """What to put before a command so that it runs in the group of `make`. (Our own one the keeper enters itself.)"""
    if group:
        return []
    words = "systemd-run --quiet --scope --collect --property=Delegate=yes"
    return [*words.split(), f"--unit={_scope(name)}", "--"]


def remove(name: str, group: str | None) -> None:
    """Remove the emptied control group of a bed. Raises BedError if it does not empty."""
    if group is None:
        # It goes by itself, but for one whose process was killed before systemd had looked at it.
        subprocess.run(["systemctl", "stop", "--quiet", _scope(name)], capture_output=True, check=False)
        return
    # With the old control groups systemd-nspawn makes a second one, of the same name, in systemd's own hierarchy.
    twin = Path("/sys/fs/cgroup/systemd") / Path(group).relative_to(_mount())
    deadline = time.monotonic() + _REMOVE_S
    for top in (Path(group), twin):
        for folder, _, _ in os.walk(top, topdown=False):
            _remove_emptied(Path(folder), deadline)


def for_visitors(init: int) -> str:
    """A control group within the bed's own for what is run from outside: there it sees itself where it really is.

    `init` is the host's number of the bed's systemd.
    """
    inits = next(
        line[4:] for line in Path(f"/proc/{init}/cgroup").read_text().splitlines() if line[:3] == "0::"
    )
    group = (_mount() / inits.lstrip("/") / "../exec").resolve()
    group.mkdir(exist_ok=True)
    return str(group)


def _mount() -> Path:
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    place = next((words[4] for words in mounts if words[words.index("-") + 1] == "cgroup2"), None)
    if place is None:
        msg = "no cgroup2 is mounted here, which systemd in the bed needs: mount -t cgroup2 none /sys/fs/cgroup"
        raise BedError(msg, exit_status=69)
    return Path(place)


def _scope(name: str) -> str:
    return f"llamad-testbed-{name}.scope"


def _remove_emptied(folder: Path, deadline: float) -> None:
    while True:
        try:
            folder.rmdir()
            return
        except OSError as error:
            # Processes that were killed a moment ago may not have left yet.
            if time.monotonic() > deadline:
                msg = f"cannot remove the control group {folder}: {error.strerror}"
                raise BedError(msg) from error
        time.sleep(0.02)
