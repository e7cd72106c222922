"""A supervisor with 32 file descriptors, all of them taken when its llama-server is killed. Prints what came of it.

    python3 -m tests.support.few_descriptors FOLDER
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from pathlib import Path

from llamad.supervision.child import ProcessSpawner
from llamad.supervision.launch import Seams
from llamad.supervision.supervisor import Supervisor
from tests.support.fakes import FakeEngine, FakeFront, FakePlanner, FakeReporter, ScaledClock, loaded_of

DESCRIPTORS = 32


def take_all() -> list[int]:
    taken = []
    while True:
        try:
            taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            return taken


def count() -> int:
    return sum(os.path.exists(f"/proc/self/fd/{fd}") for fd in range(DESCRIPTORS))


async def go(folder: Path) -> None:
    reporter, planner = FakeReporter(), FakePlanner(folder)
    seams = Seams(planner, FakeEngine(), FakeFront(), reporter)
    supervisor = Supervisor(loaded_of(restarts=100), seams, ProcessSpawner(), ScaledClock(20.0), jitter=lambda: 0.0)
    run = asyncio.create_task(supervisor.run())
    await reporter.until(lambda: "ready" in reporter.names())
    before = count()
    taken = take_all()
    os.kill(supervisor.child_pid, signal.SIGKILL)
    await reporter.until(lambda: reporter.names().count("restarting") >= 4)
    said = [fields["CAUSE"] for name, _, fields in reporter.events if name == "restarting"]
    for fd in taken:
        os.close(fd)
    await reporter.until(lambda: reporter.names().count("ready") >= 2)
    print(before, count(), sum("Too many open files" in cause for cause in said) >= 2)
    supervisor.stop()
    print(int(await run))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    asyncio.run(go(Path(sys.argv[1])))
