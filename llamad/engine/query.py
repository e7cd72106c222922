"""Asking llama-server something: a short run with a deadline and a bound on its output. Blocking.

Every run is a session of its own that ends with us: killed as a group past the deadline, when enough was read,
and (by setpriv, where it is installed) when llamad itself is killed.
"""

from __future__ import annotations

import os
import pwd
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from llamad.engine.find import find_server, launch_error
from llamad.errors import AccessError
from llamad.frozen import dataclass

OUTPUT_LIMIT_BYTES = 4 << 20
_CHUNK_BYTES = 1 << 16
_PIPE_BYTES = 1 << 16
"""What a pipe holds that nobody made larger."""
_SETPRIV = "/usr/bin/setpriv"
_USERS = ("_llamad", "nobody")


@dataclass(frozen=True)
class QueryResult:
    """What a run wrote (the first 4 MiB of each stream) and how it ended."""

    stdout: str
    stderr: str
    returncode: int
    """Exit status, or the negative number of the signal that ended it."""
    timed_out: bool = False
    stopped: bool = False
    """Ended by us because the wanted line had been read."""

    @property
    def first_error(self) -> str:
        """The first line that it wrote to stderr, for a message; "" if it wrote none."""
        return next((line.strip() for line in self.stderr.splitlines() if line.strip()), "")


def run_query(argv: Sequence[str], env: Mapping[str, str], deadline_s: float) -> QueryResult:
    """Run `argv` to its end, or until `deadline_s` has passed.

    Raises ConfigError if the program is not there or no program, AccessError if it may not be executed, BusyError
    if the host has no room for another process now.
    """
    return run_until(argv, env, deadline_s, None)


def run_until(
    argv: Sequence[str],
    env: Mapping[str, str],
    deadline_s: float,
    wanted: Callable[[bytes], bool] | None,
) -> QueryResult:
    """As `run_query`, but kill the run at once when `wanted` says True to a line of either stream."""
    process = _start(argv, env)
    with process:
        try:
            return _Reading(process, wanted).until(time.monotonic() + deadline_s)
        finally:
            if (
                process.returncode is None
            ):  # an exception came first; once reaped, the number may be another's
                _kill_group(process.pid)


def dies_with_us(argv: Sequence[str]) -> list[str]:
    """`argv` run so that the kernel kills it when the thread that started it ends, however that comes.

    As root it is run as another user: no engine binary ever runs as root. Raises AccessError where that cannot be.
    """
    if os.access(_SETPRIV, os.X_OK):
        return [_SETPRIV, *_another_user(), "--pdeathsig", "KILL", "--", *argv]
    if os.geteuid() == 0:
        raise AccessError(
            "llama-server is not run as root", why=f"there is no {_SETPRIV}", fix="install util-linux"
        )
    return list(argv)


def _another_user() -> list[str]:
    if os.geteuid() != 0:
        return []
    for name in _USERS:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    raise AccessError(
        "llama-server is not run as root", why=f"there is none of the users {', '.join(_USERS)}"
    )


def _start(argv: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    server = find_server(argv[0], env.get("PATH", os.defpath))
    try:
        return subprocess.Popen(
            dies_with_us([server, *argv[1:]]),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise launch_error(server, error) from error


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # never got as far as its own session, or nothing is left of it


class _Reading:
    """Reads both pipes of one run until its process ends, the wanted line comes, or time is up."""

    def __init__(self, process: subprocess.Popen[bytes], wanted: Callable[[bytes], bool] | None) -> None:
        self._process = process
        self._wanted = wanted
        assert process.stdout is not None
        assert process.stderr is not None
        self._pipes = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
        from llamad.engine.log import LineSplitter  # its patterns are compiled only for a run that is read

        self._splitters = {fd: LineSplitter() for fd in self._pipes}
        self._out, self._err = self._pipes.values()
        self._stopped = False

    def until(self, end_s: float) -> QueryResult:
        """Read; then kill what is still there, reap it and return the result."""
        pidfd = os.pidfd_open(self._process.pid)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(pidfd, selectors.EVENT_READ)
                for fd in self._pipes:
                    os.set_blocking(fd, False)
                    selector.register(fd, selectors.EVENT_READ)
                timed_out = not self._read(selector, pidfd, end_s)
        finally:
            os.close(pidfd)
        # Not reaped yet, so the group's number is still ours: what a run that ended left behind goes too.
        _kill_group(self._process.pid)
        returncode = self._process.wait()
        texts = [bytes(buffer).decode("utf-8", "replace") for buffer in (self._out, self._err)]
        return QueryResult(texts[0], texts[1], returncode, timed_out, self._stopped)

    def _read(self, selector: selectors.BaseSelector, pidfd: int, end_s: float) -> bool:
        """True when the process has ended or enough was read, False when time was up first."""
        while not self._stopped:
            left_s = end_s - time.monotonic()
            ready = [key.fd for key, _ in selector.select(left_s)] if left_s > 0 else []
            if not ready:
                return False
            for fd in ready:
                if fd != pidfd and self._take(fd) == 0:
                    selector.unregister(fd)
            if pidfd in ready:
                self._drain()
                return True
        return True

    def _drain(self) -> None:
        """Take what the pipes still hold, and no more: another process may go on writing into them."""
        for fd in self._pipes:
            left_bytes = _PIPE_BYTES
            while left_bytes > 0 and (taken := self._take(fd)):
                left_bytes -= taken

    def _take(self, fd: int) -> int:
        """Read one chunk; how many bytes it had, 0 at the end of the pipe or where it holds nothing now."""
        try:
            chunk = os.read(fd, _CHUNK_BYTES)
        except BlockingIOError:
            return 0
        buffer = self._pipes[fd]
        buffer += chunk[: OUTPUT_LIMIT_BYTES - len(buffer)]
        if self._wanted is not None and not self._stopped:
            splitter = self._splitters[fd]
            lines = splitter.feed(chunk) if chunk else splitter.flush()
            self._stopped = any(self._wanted(line) for line in lines)
        return len(chunk)
