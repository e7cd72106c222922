"""One pipe of a child's log, read by callbacks that await nothing: an unread pipe wedges llama-server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import IO

from llamad.engine.telling import SEARCHED_BYTES

READ_BYTES = SEARCHED_BYTES
READS_AT_ONCE = 4
"""Then others have their turn, before it goes on: a child may print faster than it can be read."""

OnBytes = Callable[[int, bytes], float]
"""Takes stdout (1) or stderr (2) as it comes, b"" at its end; says for how many seconds the next bytes may wait."""


class LogPipe:
    """Watched while it is silent. While it talks it is looked at now and then, as `on_bytes` says: a look for each line
    would cost a busy llamad more than the lines. Made on the loop that reads it; `ended` is called when the
    child has closed its side.
    """

    def __init__(self, stream: int, pipe: IO[bytes], on_bytes: OnBytes, ended: Callable[[int], None]) -> None:
        self._stream = stream
        self._pipe = pipe
        self._fd = pipe.fileno()
        self._on_bytes = on_bytes
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._rest: asyncio.TimerHandle | None = None
        os.set_blocking(self._fd, False)
        self._watch()

    def fileno(self) -> int:
        """Its descriptor, while it is open."""
        return self._fd

    def hurry(self) -> None:
        """What is in it is wanted now."""
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
            self._watch()

    def close(self) -> None:
        """End the stream, whatever is still in the pipe. `ended` is not called."""
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        self._loop.remove_reader(self._fd)
        self._pipe.close()
        self._on_bytes(self._stream, b"")

    def _watch(self) -> None:
        self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        pause_s = self._read()
        if pause_s and not self._pipe.closed:
            self._loop.remove_reader(self._fd)
            self._rest = self._loop.call_later(pause_s, self._look_again)

    def _look_again(self) -> None:
        self._rest = None
        pause_s = 0.0
        try:
            pause_s = self._read()
        finally:  # also where who listens has failed
            if not self._pipe.closed:
                if pause_s:
                    self._rest = self._loop.call_later(pause_s, self._look_again)
                else:
                    self._watch()

    def _read(self) -> float:
        """Hand over what has come, within bounds: for how long the rest may wait; 0 where there was nothing, or where
        there is more than that.
        """
        pause_s = 0.0
        for _ in range(READS_AT_ONCE):
            try:
                data = os.read(self._fd, READ_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            if not data:
                pause_s = 0.0
                self.close()
                self._ended(self._stream)
                break
            pause_s = self._on_bytes(self._stream, data)
            if len(data) < READ_BYTES:
                break
        else:
            return 0.0
        return pause_s
