"""A pipe that talks is looked at now and then; nothing in it is late for long, lost or left lying."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from typing import Any

from llamad.supervision.child import ProcessSpawner
from llamad.supervision.log_pipe import READ_BYTES, READS_AT_ONCE, LogPipe


class Rig:
    """A pipe, and who listens to it: each call is kept, and answered with `pause_s`."""

    def __init__(self, pause_s: float) -> None:
        self.pause_s = pause_s
        self.fails = False
        self.heard: list[bytes] = []
        self.ended: list[int] = []
        read_fd, self.write_fd = os.pipe()
        self.pipe = LogPipe(1, os.fdopen(read_fd, "rb"), self.hear, self.ended.append)

    def hear(self, stream: int, data: bytes) -> float:
        self.heard.append(data)
        if self.fails:
            raise ValueError("a bug in who listens")
        return self.pause_s

    def say(self, text: bytes) -> None:
        os.write(self.write_fd, text)

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(10):
            while b"".join(self.heard) != text:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


def on_a_loop(work: Callable[[], Any]) -> list[BaseException]:
    problems: list[BaseException] = []

    async def go() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context["exception"]))
        await work()

    asyncio.run(go())
    return problems


def test_lines_that_come_one_by_one_are_taken_together() -> None:
    async def go() -> None:
        rig = Rig(pause_s=0.1)
        rig.say(b"first\n")
        await rig.until(b"first\n")
        for _ in range(50):
            rig.say(b"line\n")
            await asyncio.sleep(0)
        await rig.until(b"first\n" + b"line\n" * 50)
        assert len(rig.heard) == 2
        await asyncio.sleep(0.15)  # nothing more came: it is watched again
        rig.say(b"late\n")
        for _ in range(3):
            await asyncio.sleep(0)
        assert rig.heard[-1] == b"late\n"
        os.close(rig.write_fd)
        await rig.until(b"first\n" + b"line\n" * 50 + b"late\n")
        async with asyncio.timeout(10):
            while not rig.ended:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert rig.heard[-1] == b"" and rig.ended == [1]

    assert on_a_loop(go) == []


def test_a_listener_that_fails_once_hears_what_comes_next() -> None:
    async def go() -> None:
        rig = Rig(pause_s=0.01)
        for number in (1, 2, 3):
            rig.fails = number == 2
            rig.say(b"%d" % number)
            await rig.until(b"123"[:number])
        rig.pipe.close()
        os.close(rig.write_fd)
        assert rig.heard == [b"1", b"2", b"3", b""] and rig.ended == []

    assert [str(one) for one in on_a_loop(go)] == ["a bug in who listens"]


def test_what_is_wanted_now_comes_now() -> None:
    async def go() -> None:
        rig = Rig(pause_s=600.0)
        rig.say(b"a")
        await rig.until(b"a")
        rig.say(b"b")
        rig.pipe.hurry()
        await rig.until(b"ab")
        rig.pipe.close()
        os.close(rig.write_fd)

    assert on_a_loop(go) == []


def test_a_child_that_ends_while_its_pipes_rest_is_heard_to_the_end() -> None:
    heard: list[bytes] = []

    def hear(stream: int, data: bytes) -> float:
        heard.append(data)
        return 600.0

    async def go() -> int:
        script = "echo a; sleep 0.2; echo b; exit 3"
        child = await ProcessSpawner().spawn(["sh", "-c", script], {"PATH": os.environ["PATH"]}, hear)
        async with asyncio.timeout(10):
            return await child.wait()

    assert asyncio.run(go()) == 3
    assert b"".join(heard) == b"a\nb\n"


def test_a_flood_leaves_the_others_their_turn() -> None:
    async def go() -> None:
        rig = Rig(pause_s=0.0)
        fcntl.fcntl(rig.write_fd, fcntl.F_SETPIPE_SZ, 1 << 20)
        flood = b"x" * (READ_BYTES * (READS_AT_ONCE + 2))
        rig.say(flood)
        while not rig.heard:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert list(map(len, rig.heard)) == [READ_BYTES] * READS_AT_ONCE
        await rig.until(flood)
        rig.pipe.close()
        os.close(rig.write_fd)

    assert on_a_loop(go) == []
