"""One llama-server process: spawned, listened to, signalled, reaped. Decides nothing.

The child leads its own process group, gets a scrubbed environment, and dies with us even when we are
killed outright. Its log pipes are large and drained by callbacks that await nothing, because an unread
pipe wedges llama-server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from llamad.supervision.process import Started, spawn_error, start

READ_BYTES = 64 << 10
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
        """Figures that change while the child works on its load: bytes read, resident pages."""
        ...


class Spawner(Protocol):
    """Starts children."""

    async def spawn(
        self, argv: Sequence[str], env: Mapping[str, str], on_bytes: Callable[[int, bytes], None]
    ) -> Child:
        """Start `argv`; `on_bytes(stream, data)` gets stdout (1) and stderr (2) as they come; b"" ends it.

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
        self, argv: Sequence[str], env: Mapping[str, str], on_bytes: Callable[[int, bytes], None]
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

    def __init__(self, process: subprocess.Popen[bytes], on_bytes: Callable[[int, bytes], None]) -> None:
        self._process = process
        self._on_bytes = on_bytes
        self._loop = asyncio.get_running_loop()
        self._returncode: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = os.pidfd_open(process.pid)
        self._open_pipes: dict[int, int] = {}
        assert process.stdout is not None and process.stderr is not None
        for stream, pipe in ((1, process.stdout), (2, process.stderr)):
            self._watch_pipe(stream, pipe.fileno())
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
        return (*sizes, resident)

    def _watch_pipe(self, stream: int, fd: int) -> None:
        os.set_blocking(fd, False)
        self._open_pipes[stream] = fd
        self._loop.add_reader(fd, self._read, stream, fd)

    def _read(self, stream: int, fd: int) -> None:
        try:
            data = os.read(fd, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        if data:
            self._on_bytes(stream, data)
            return
        self._close_pipe(stream, fd)
        if not self._open_pipes and self._process.returncode is not None:
            self._finish()

    def _close_pipe(self, stream: int, fd: int) -> None:
        self._loop.remove_reader(fd)
        del self._open_pipes[stream]
        pipe = self._process.stdout if stream == 1 else self._process.stderr
        assert pipe is not None
        pipe.close()
        self._on_bytes(stream, b"")

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.kill_group()  # what it left behind holds its pipes, and may hold memory of the device
        self._process.wait()
        # The last words are still in the pipes; a process that escaped the group must not hold us up.
        if self._open_pipes:
            self._loop.call_later(PIPES_CLOSE_S, self._finish)
        else:
            self._finish()

    def _finish(self) -> None:
        if self._returncode.done():
            return
        for stream, fd in list(self._open_pipes.items()):
            self._close_pipe(stream, fd)
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
