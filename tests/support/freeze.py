"""Freezes the threads of a process that compute, and no others: its HTTP threads go on answering.

    python3 -m tests.support.freeze PID COUNT

takes the COUNT threads that used most CPU time in a third of a second, stops them by ptrace, prints `frozen TID ...`
and stays until they are gone. SIGSTOP would stop the HTTP threads as well, which is the easy case.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
WALL = 0x40000000
SAMPLE_S = 0.33


def cpu_ticks(pid: int) -> dict[int, int]:
    """CPU time by thread."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        found[int(task.name)] = int(fields[11]) + int(fields[12])
    return found


def busiest(pid: int, count: int) -> list[int]:
    """The threads that work most now."""
    before = cpu_ticks(pid)
    time.sleep(SAMPLE_S)  # what is measured is time itself
    used = {tid: ticks - before.get(tid, 0) for tid, ticks in cpu_ticks(pid).items()}
    return sorted(used, key=lambda tid: -used[tid])[:count]


def freeze(tids: list[int]) -> None:
    """Stop each of these threads. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    for tid in tids:
        for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
            if libc.ptrace(request, tid, None, None) != 0:
                raise OSError(ctypes.get_errno(), f"ptrace of {tid}")


def main() -> None:
    tids = busiest(int(sys.argv[1]), int(sys.argv[2]))
    freeze(tids)
    print("frozen", *tids, flush=True)
    while True:
        try:
            os.waitpid(-1, WALL)  # whoever traces a thread must take note of its death, or its parent never hears
        except ChildProcessError:
            return


if __name__ == "__main__":
    main()
