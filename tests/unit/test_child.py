"""Real children: they die with us, their pipes never block them, and nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from llamad.errors import ChildError
from llamad.supervision.child import ProcessSpawner, stop_ladder


def spawn_and_wait(script: str) -> tuple[int, bytes, bytes]:
    out: dict[int, list[bytes]] = {1: [], 2: []}

    async def go() -> int:
        child = await ProcessSpawner().spawn(["sh", "-c", script], {"PATH": os.environ["PATH"]}, lambda s, d: out[s].append(d))
        return await asyncio.wait_for(child.wait(), 30)

    code = asyncio.run(go())
    assert out[1][-1] == b"" and out[2][-1] == b"", "both ends are told"
    return code, b"".join(out[1]), b"".join(out[2])


def ends_soon(pid: int) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], 5)[0])
    finally:
        os.close(pidfd)


def test_output_and_status_arrive_whole() -> None:
    assert spawn_and_wait("echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")


def test_the_last_words_of_a_crash_arrive() -> None:
    code, _, err = spawn_and_wait("head -c 900000 /dev/zero >&2; kill -SEGV $$")
    assert code == -signal.SIGSEGV and len(err) == 900_000


def test_a_grandchild_that_holds_the_pipe_is_killed_with_the_group() -> None:
    started = time.monotonic()
    code, out, _ = spawn_and_wait("sleep 60 & echo $!; exit 0")
    assert code == 0 and time.monotonic() - started < 5
    assert ends_soon(int(out))


def test_the_child_gets_only_its_environment_and_leads_its_group() -> None:
    code, out, _ = spawn_and_wait("env; ps -o pgid= -p $$; echo $$")
    lines = out.decode().split()
    assert code == 0 and lines[-1] == lines[-2]
    assert not any(line.startswith(("HOME=", "NOTIFY_SOCKET=", "PYTHON")) for line in lines)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_dies_with_us(blow: signal.Signals, tmp_path: Path) -> None:
    parent = tmp_path / "parent.py"
    parent.write_text(
        textwrap.dedent("""
        import asyncio, sys
        from llamad.supervision.child import ProcessSpawner
        async def go():
            child = await ProcessSpawner().spawn(["sleep", "600"], {"PATH": "/usr/bin:/bin"}, lambda s, d: None)
            print(child.pid, flush=True)
            await child.wait()
        asyncio.run(go())
        """)
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, str(parent)], stdout=subprocess.PIPE, env=env)
    assert process.stdout
    pid = int(process.stdout.readline())
    process.send_signal(blow)
    process.wait(10)
    process.stdout.close()
    assert ends_soon(pid), "the child outlived us"


def test_the_ladder_ends_in_a_kill() -> None:
    async def go() -> tuple[bool, int]:
        seen = asyncio.Event()
        script = "trap '' TERM; echo ready; while :; do sleep 1; done"
        child = await ProcessSpawner().spawn(["sh", "-c", script], {"PATH": os.environ["PATH"]}, lambda s, d: seen.set())
        await asyncio.wait_for(seen.wait(), 10)
        return await stop_ladder(child, 0.2), await child.wait()

    assert asyncio.run(go()) == (True, -signal.SIGKILL)


def test_no_descriptor_is_lost_and_a_failed_start_is_typed() -> None:
    async def many() -> int:
        spawner = ProcessSpawner()
        for _ in range(30):
            await (await spawner.spawn(["true"], {"PATH": os.environ["PATH"]}, lambda s, d: None)).wait()
        return len(os.listdir("/proc/self/fd"))

    async def starved() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 1, hard))
        try:
            with pytest.raises(ChildError):
                await ProcessSpawner().spawn(["true"], {"PATH": os.environ["PATH"]}, lambda s, d: None)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    first = asyncio.run(many())
    assert asyncio.run(many()) == first
    asyncio.run(starved())
