"""A stranger gets the process id of a child that has ended, in a pid namespace where ids can be chosen.

    unshare --user --map-root-user --pid --fork --mount-proc python3 -m tests.support.pid_reuse

prints `held` where nothing that llamad does to its child touches the stranger, at the moment when the child is reaped
but its pipe is still open, and after its end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from llamad.supervision.child import Child, ProcessSpawner, stop_ladder

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
# What escapes the group holds the pipe open, so that the child is reaped a second before its end is told.
# It must have its own session by then: an id is not free while it is that of a group.
SCRIPT = "setsid sleep 5 & until test \"$(cut -d' ' -f6 /proc/$!/stat)\" = $!; do :; done; exit 0"


def stranger_with(pid: int) -> subprocess.Popen[bytes]:
    """A process with this id, in a group of its own."""
    for _ in range(200):
        LAST_PID.write_text(str(pid - 1))
        process = subprocess.Popen(["sleep", "60"], process_group=0)
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
    raise SystemExit(f"no stranger got the id {pid}")


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def blow(child: Child) -> None:
    """Everything that is ever done to a child."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        child.send(number)
    child.kill_group()
    child.progress()


async def go() -> None:
    words = {"PATH": os.environ["PATH"]}
    child = await ProcessSpawner().spawn(["sh", "-c", SCRIPT], words, lambda _stream, _data: None)
    end_s = time.monotonic() + 10
    while not gone(child.pid) and time.monotonic() < end_s:  # noqa: ASYNC110  # of its reaping there is no event
        await asyncio.sleep(0.001)
    stranger = stranger_with(child.pid)
    await blow(child)
    assert await child.wait() == 0
    await blow(child)
    assert await stop_ladder(child, 1.0)
    assert stranger.poll() is None, "a stranger was signalled"
    stranger.kill()
    stranger.wait()
    print("held")


if __name__ == "__main__":
    asyncio.run(go())
    sys.exit(0)
