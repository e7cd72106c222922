"""Runs the checks beside each other, each with an end to the waiting.

A check that hangs (a dead network file system, a driver) is left behind in its thread, which ends with the process: its
findings so far count, and one more says that it hangs.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from llamad.service.doctor.finding import Finding, Seen, error, unseen
from llamad.service.doctor.host import Host

DEADLINE_S = 6.0
AT_ONCE = 6
Check = Callable[[Host], Iterable[Seen]]


def _hangs(check: str, about: str, after_s: float) -> Finding:
    return error(
        check, f"no answer within {after_s:g} s", about=about, why="a file system or a driver hangs",
        cure="dmesg --ctime | tail -n 50",
    )  # fmt: skip


@dataclass(eq=False)
class Job:
    """One check, of the host or of one definition. `late` says what it means if it does not end."""

    name: str
    work: Callable[[], Iterable[Seen]]
    about: str = ""
    deadline_s: float = DEADLINE_S
    late: Callable[[], Finding] | None = None
    found: list[Seen] = field(default_factory=list)
    """What it has yielded so far."""
    began_s: float = 0.0

    def run(self) -> None:
        """Do it. A bug of a check costs that check alone, and is told."""
        try:
            for one in self.work():
                self.found.append(one)
        except Exception as problem:  # whatever it is, the other checks are still wanted at 3 a.m.
            what = f"the check itself failed: {type(problem).__name__}: {problem}"
            self.found.append(unseen(self.name, f"{what} (a bug of llamad)", about=self.about))

    def given_up(self) -> list[Seen]:
        """What it yielded until now, and that it hangs."""
        return [*self.found, self.late() if self.late else _hangs(self.name, self.about, self.deadline_s)]


def run_jobs(jobs: Sequence[Job], at_once: int = AT_ONCE) -> list[Seen]:
    """All that the jobs yield, in the order of the jobs. Takes no longer than their deadlines allow.

    `at_once` of them run at a time; one that hangs makes room for another.
    """
    waiting, running = deque(jobs), list[Job]()
    ended: queue.SimpleQueue[Job] = queue.SimpleQueue()
    given_up: dict[int, list[Seen]] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(_started(waiting.popleft(), ended))
        left_s = min(job.began_s + job.deadline_s for job in running) - time.monotonic()
        try:
            job = ended.get(timeout=max(0.0, left_s))
            if job in running:
                running.remove(job)
        except queue.Empty:
            now_s = time.monotonic()
            for job in [one for one in running if one.began_s + one.deadline_s <= now_s]:
                running.remove(job)
                given_up[id(job)] = job.given_up()
    return [one for job in jobs for one in given_up.get(id(job), job.found)]


def _started(job: Job, ended: queue.SimpleQueue[Job]) -> Job:
    def work() -> None:
        job.run()
        ended.put(job)

    job.began_s = time.monotonic()
    threading.Thread(target=work, name=f"llamad-doctor-{job.name}", daemon=True).start()
    return job
