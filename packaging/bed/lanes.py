"""Work in several beds side by side: each bed takes the next job as soon as it is free.

A job's output is kept until it ends, so that the reports of two jobs do not mix.
"""

from __future__ import annotations

import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import IO

from bed.container import Bed
from bed.report import BedError, elapsed_s, say


@dataclass(frozen=True)
class Job:
    """One command's worth of work; `work` writes to the file, or to the terminal where there is none."""

    name: str
    work: Callable[[Bed, IO[bytes] | None], int]


@dataclass(frozen=True)
class Ended:
    """How a job ended, and how long it took."""

    name: str
    took_s: float
    status: int
    said: str = ""
    """What it printed, if that was kept."""


def carry_out(beds: Sequence[Bed], jobs: Sequence[Job]) -> list[Ended]:
    """Do all jobs, in this order where there is one bed; how they ended, in the order of their ends."""
    if len(beds) == 1 or len(jobs) == 1:
        return [done(job.name, partial(job.work, beds[0], None)) for job in jobs]
    left, ended, talk = deque(jobs), list[Ended](), threading.Lock()

    def lane(bed: Bed) -> None:
        while True:
            try:
                job = left.popleft()
            except IndexError:  # nothing is left
                return
            with tempfile.TemporaryFile() as said:
                one = done(job.name, partial(job.work, bed, said))
                said.seek(0)
                text = said.read().decode(errors="replace")
                with talk:
                    ended.append(replace(one, said=text))
                    print(f"\n=== {job.name} ===\n{text}", flush=True)

    # Daemons: whoever interrupts us ends the beds, and what runs in them, without waiting for the jobs.
    threads = [threading.Thread(target=lane, args=(bed,), daemon=True) for bed in beds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lost = {job.name for job in jobs} - {one.name for one in ended}  # their lane has died, and said why
    return ended + [Ended(name, 0.0, 1) for name in sorted(lost)]


def done(name: str, action: Callable[[], int]) -> Ended:
    """Carry out one piece of work that needs no bed. A BedError is told and counts as its exit status."""
    say(f"--- {name}")
    began_s = elapsed_s()
    try:
        status = action()
    except BedError as error:
        say(f"{name}: {error}")
        status = error.exit_status
    return Ended(name, elapsed_s() - began_s, status)
