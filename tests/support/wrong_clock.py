"""A supervisor with the real clocks, whose wall clock jumps while it waits to start llama-server again.

    LD_PRELOAD=clock_shim.so CLOCK_SHIM=FILE python3 -m tests.support.wrong_clock FOLDER

prints how far the wall clock seemed to go, and the seconds between a death and the next start, for each jump.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from llamad.clock import SystemClock
from llamad.supervision.child import ProcessSpawner
from llamad.supervision.launch import Seams
from llamad.supervision.supervisor import Supervisor
from tests.support.fakes import FakeEngine, FakeFront, FakePlanner, FakeReporter, loaded_of

JUMPS_S = (86_400, -86_400)


async def go(folder: Path) -> None:
    clock, reporter, planner = Path(os.environ["CLOCK_SHIM"]), FakeReporter(), FakePlanner(folder)
    seams = Seams(planner, FakeEngine(), FakeFront(), reporter)
    supervisor = Supervisor(loaded_of(restarts=100), seams, ProcessSpawner(), SystemClock(), jitter=lambda: 0.0)
    run = asyncio.create_task(supervisor.run())
    for number, jump_s in enumerate(JUMPS_S):
        await reporter.until(lambda number=number: reporter.names().count("ready") > number)  # type: ignore[misc]
        before_s, began_s = time.time(), time.monotonic()
        os.kill(supervisor.child_pid, signal.SIGKILL)
        await reporter.until(lambda: reporter.states[-1] == "backoff")
        clock.write_text(str(jump_s))
        await reporter.until(lambda number=number: len(planner.spawns) > number + 1)  # type: ignore[misc]
        print(round((time.time() - before_s) / 3600), f"{time.monotonic() - began_s:.3f}")
        clock.write_text("0")
    supervisor.stop()
    print(int(await run))


if __name__ == "__main__":
    asyncio.run(go(Path(sys.argv[1])))
