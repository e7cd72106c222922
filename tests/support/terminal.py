"""A program on a terminal of its own, and what its screen shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_HOME = b"\x1b[H"
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """See `on_terminal`."""

    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self.output = b""
        self._fd = fd
        self._code: int | None = None

    def resize(self, columns: int, lines: int) -> None:
        """As a window is resized: the kernel tells the program."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def read(self, timeout_s: float = 0.05) -> None:
        """Take in what has been written; the end of the program is no error."""
        while select.select([self._fd], [], [], timeout_s)[0]:
            try:
                piece = os.read(self._fd, 65536)
            except OSError:
                return
            if not piece:
                return
            self.output += piece
            timeout_s = 0

    @property
    def picture(self) -> list[str]:
        """The lines of the last whole picture, without attributes."""
        frames = self.output.split(_HOME)
        whole = next((frame for frame in reversed(frames) if b"\x1b[J" in frame), b"")
        text = whole.partition(b"\x1b[J")[0].decode()
        return [_CONTROLS.sub("", line) for line in text.split("\r\n")]

    def until(self, condition: Callable[[str], object], what: str, timeout_s: float = 30.0) -> str:
        """Wait for a picture of which this is true; it."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.read()
            text = "\n".join(self.picture)
            if condition(text):
                return text
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_s} s: {what}\n{text}\n{self.output[-2000:]!r}")

    def wait(self, timeout_s: float = 20.0) -> int:
        """The exit status; the output is read meanwhile."""
        deadline = time.monotonic() + timeout_s
        while self._code is None:
            self.read(0.02)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                raise AssertionError(f"it does not end\n{self.output[-2000:]!r}")
        self.read(0.02)
        return self._code

    def close(self) -> None:
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)


@contextmanager
def on_terminal(argv: list[str], columns: int = 140, lines: int = 30, **environ: str) -> Iterator[Terminal]:
    """Run a program on a terminal of this size. An environment of its own: PATH, TERM and what is given."""
    env = {"PATH": os.environ["PATH"], "TERM": "xterm", "LC_ALL": "C.UTF-8", **environ}
    pid, fd = pty.fork()
    if pid == 0:
        try:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
            os.execvpe(argv[0], argv, env)
        finally:
            os._exit(127)
    terminal = Terminal(pid, fd)
    try:
        yield terminal
    finally:
        terminal.close()
