"""One llama-server process: spawned, listened to, signalled, reaped. Decides nothing.

The child leads its own process group, gets a scrubbed environment, and dies with us even when we are
killed outright. Its log pipes are large and drained by callbacks that await nothing, because an unread
pipe wedges llama-server.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import termios
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from llamad.supervision.log_pipe import LogPipe, OnBytes
from llamad.supervision.process import Started, spawn_error, start

PIPES_CLOSE_S = 1.0


class Child(Protocol):
    """A running llama-server."""

    @property
    def pid(self) -> int:
        """Process id, valid until `wait` has returned."""
        ...

    async def wait(self) -> int:
        """The return code (-N for signal N), after the last log byte was handed over."""
        ...

    def send(self, number: signal.Signals) -> None:
        """Signal the child itself; nothing if it is gone."""
        ...

    def kill_group(self) -> None:
        """SIGKILL to the child and whatever it started; nothing if it is gone."""
        ...

    def progress(self) -> tuple[int, ...]:
        """Bytes that grow while the child works on its load: read, read from disk, resident."""
        ...


    def unread_bytes(self) -> int:
        """What it has printed and nobody has read yet: a full pipe stops it."""
        ...


class Spawner(Protocol):
    """Starts children."""

    async def spawn(
        self, argv: Sequence[str], env: Mapping[str, str], on_bytes: OnBytes
    ) -> Child:
        """Start `argv`; `on_bytes` gets its log.

        Raises ChildError where the process cannot be started.
        """
        ...


class ProcessSpawner:
    """The real one. `early` is a process that was started before there was a loop, for the first spawn; `inherit`
    names the descriptors that each child gets besides its pipes.
    """

    def __init__(
        self, early: Started | None = None, inherit: Callable[[], Sequence[int]] = tuple
    ) -> None:
        self._early = early
        self._inherit = inherit

    async def spawn(
        self, argv: Sequence[str], env: Mapping[str, str], on_bytes: OnBytes
    ) -> Child:
        started, self._early = self._early, None
        if started is not None and not started.is_of(argv, env):
            started.abandon()
            started = None
        started = started or start(argv, env, self._inherit())
        try:
            return ProcessChild(started.process, on_bytes)
        except OSError as error:
            started.abandon()
            raise spawn_error(error) from error


class ProcessChild:
    """A child of `ProcessSpawner`; made on the loop that reaps it."""

    def __init__(self, process: subprocess.Popen[bytes], on_bytes: OnBytes) -> None:
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._returncode: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = os.pidfd_open(process.pid)
        assert process.stdout is not None and process.stderr is not None
        self._open_pipes = {
            stream: LogPipe(stream, pipe, on_bytes, self._pipe_ended)
            for stream, pipe in ((1, process.stdout), (2, process.stderr))
        }
        self._loop.add_reader(self._pidfd, self._exited)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        return await asyncio.shield(self._returncode)

    def send(self, number: signal.Signals) -> None:
        if not self._returncode.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill_group(self) -> None:
        if self._process.returncode is None:  # not reaped: the group id cannot be another's yet
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def progress(self) -> tuple[int, ...]:
        try:
            with open(f"/proc/{self.pid}/io", "rb") as file:
                io_text = file.read()
            with open(f"/proc/{self.pid}/statm", "rb") as file:
                resident = int(file.read().split()[1])
        except OSError:
            return ()
        sizes = [
            int(line.split()[1])
            for line in io_text.splitlines()
            if line.startswith((b"rchar", b"read_bytes"))
        ]
        return (*sizes, resident * os.sysconf("SC_PAGE_SIZE"))

    def unread_bytes(self) -> int:
        unread = 0
        for pipe in self._open_pipes.values():
            waiting = array.array("i", [0])
            fcntl.ioctl(pipe.fileno(), termios.FIONREAD, waiting)
            unread += waiting[0]
        return unread

    def _pipe_ended(self, stream: int) -> None:
        del self._open_pipes[stream]
        if not self._open_pipes and self._process.returncode is not None:
            self._finish()

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.kill_group()  # what it left behind holds its pipes, and may hold memory of the device
        self._process.wait()
        for pipe in list(self._open_pipes.values()):
            pipe.hurry()
        # The last words are still in the pipes; a process that escaped the group must not hold us up.
        if self._open_pipes:
            self._loop.call_later(PIPES_CLOSE_S, self._finish)
        else:
            self._finish()

    def _finish(self) -> None:
        if self._returncode.done():
            return
        for pipe in list(self._open_pipes.values()):
            pipe.close()
        self._open_pipes.clear()
        os.close(self._pidfd)
        self._returncode.set_result(self._process.returncode)


STOP_KILL_S = 10.0


async def stop_ladder(child: Child, term_s: float) -> bool:
    """TERM, TERM again, KILL; a llama-server with a request in flight ignores the first TERM.

    Returns whether the child is gone: False where even SIGKILL did not end it within ten seconds.
    """
    for action in (signal.SIGTERM, signal.SIGTERM, None):
        if action is None:
            child.kill_group()
        else:
            child.send(action)
        try:
            await asyncio.wait_for(child.wait(), STOP_KILL_S if action is None else term_s)
        except TimeoutError:
            continue
        return True
    return False
