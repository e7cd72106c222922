"""Work that hangs (a dead file server) is left behind: it takes no thread from other work, and holds up no exit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

from llamad.threads import MOST_AT_ONCE, in_thread

ROOT = Path(__file__).parents[2]


class Mount:
    """A file system that may answer, or not."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.at_once = self.most_at_once = 0
        self.asked: list[int] = []
        self._lock = threading.Lock()

    def look(self, number: int = 0) -> int:
        with self._lock:
            self.asked.append(number)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.answers.wait(30)
        with self._lock:
            self.at_once -= 1
        return number


async def begun(mount: Mount, count: int) -> None:
    async with asyncio.timeout(10):
        while len(mount.asked) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def test_the_process_ends_although_a_thread_hangs() -> None:
    script = """
import asyncio, threading
from llamad.threads import in_thread
def hangs():
    threading.Event().wait()
async def go():
    try:
        async with asyncio.timeout(0.1):
            await in_thread(hangs)
    except TimeoutError:
        print("left behind")
asyncio.run(go())
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "left behind\n"), done.stderr


def test_a_dead_mount_takes_no_thread_from_others() -> None:
    async def go() -> None:
        dead, alive = Mount(), Mount()
        alive.answers.set()
        stuck = [asyncio.create_task(in_thread(dead.look, number)) for number in range(100)]
        await begun(dead, MOST_AT_ONCE)
        async with asyncio.timeout(10):
            assert await in_thread(alive.look, 7) == 7
            assert await in_thread(int, "8") == 8
        assert len(dead.asked) == MOST_AT_ONCE
        dead.answers.set()
        assert await asyncio.gather(*stuck) == list(range(100))
        assert dead.most_at_once == MOST_AT_ONCE and dead.asked[MOST_AT_ONCE:] == sorted(dead.asked[MOST_AT_ONCE:])

    asyncio.run(go())


def test_who_gives_up_waiting_never_looks_and_leaves_the_place_to_the_next() -> None:
    async def go() -> None:
        mount = Mount()
        working = [asyncio.create_task(in_thread(mount.look, number)) for number in range(MOST_AT_ONCE)]
        await begun(mount, MOST_AT_ONCE)
        waiting = [asyncio.create_task(in_thread(mount.look, 100 + number)) for number in range(20)]
        await asyncio.sleep(0)
        for task in waiting[:19]:
            task.cancel()
        assert sum(isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(*waiting[:19], return_exceptions=True)) == 19
        for task in working:  # their callers go, and their threads work on
            task.cancel()
        mount.answers.set()
        async with asyncio.timeout(10):
            assert await waiting[19] == 119
            assert await asyncio.gather(*(in_thread(mount.look, number) for number in range(50))) == list(range(50))
        assert not {*range(100, 119)} & set(mount.asked)

    asyncio.run(go())


def test_a_caller_that_goes_in_the_moment_of_its_turn_leaves_its_place() -> None:
    async def go() -> None:
        for _ in range(50):
            mount = Mount()
            tasks = [asyncio.create_task(in_thread(mount.look)) for _ in range(MOST_AT_ONCE + 1)]
            await begun(mount, MOST_AT_ONCE)
            mount.answers.set()
            tasks[-1].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            async with asyncio.timeout(10):
                await asyncio.gather(*(in_thread(mount.look) for _ in range(MOST_AT_ONCE * 2)))

    asyncio.run(go())


def test_what_no_future_takes_is_told_all_the_same() -> None:
    async def go() -> str:
        try:
            await in_thread(next, iter(()))
        except RuntimeError as error:
            return str(error)
        return ""

    assert "StopIteration" in asyncio.run(go())
