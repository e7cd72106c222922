"""Records for journald by its native protocol: one datagram of fields, no library, never blocking.

Outside systemd the same records are lines on stderr. journald may be stopped, or busy with what llama-server prints,
and llamad must not stand still for it: a line of llama-server that cannot be delivered at once is counted and dropped,
a record of llamad itself is delivered later, by a thread that waits for room.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
from collections import deque
from typing import Protocol, TextIO

JOURNAL_SOCKET = "/run/systemd/journal/socket"
MESSAGE_LIMIT = 32_000
FIELD_LIMIT = 8_000
"""Characters. A datagram that the socket's buffer (208 KiB) cannot hold is lost as a whole."""
OWN = "llamad"
"""The identifier of llamad's own records; all others are llama-server's."""
LATE_RECORDS = 500
PATIENCE_S = 60.0
"""How long journald may leave no room for one record, before it is taken for gone."""

PRIORITIES = {"crit": 2, "err": 3, "warning": 4, "notice": 5, "info": 6, "debug": 7}


class Journal(Protocol):
    """Where records go."""

    def record(self, message: str, priority: str, identifier: str, **fields: str) -> None:
        """Write one record; never raises, never blocks."""
        ...

    def flush(self, deadline_s: float) -> None:
        """Return when nothing of ours waits for room any more, or after the deadline: for who is about to end."""
        ...


def encode(fields: dict[str, str]) -> bytes:
    """The native form: `KEY=value` lines, the length-prefixed form where the value has a newline."""
    parts: list[bytes] = []
    for key, value in fields.items():
        data = value.encode("utf-8", "replace")
        if b"\n" in data:
            parts.append(key.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(key.encode() + b"=" + data + b"\n")
    return b"".join(parts)


class NativeJournal:
    """journald's own socket."""

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        self._path = path
        self._late: deque[bytes] = deque()
        self._lock = threading.Lock()
        self._courier: threading.Thread | None = None
        self.dropped = 0

    def record(self, message: str, priority: str, identifier: str, **fields: str) -> None:
        data = encode(
            {
                "MESSAGE": message[:MESSAGE_LIMIT].replace("\0", "?"),
                "PRIORITY": str(PRIORITIES[priority]),
                "SYSLOG_IDENTIFIER": identifier,
                **{key: value[:FIELD_LIMIT] for key, value in fields.items()},
            }
        )
        own = identifier == OWN
        with self._lock:
            if own and self._late:
                self._deliver_later(data)  # in their order
                return
            try:
                self._socket.sendto(data, self._path)
            except BlockingIOError:
                if own:
                    self._deliver_later(data)
                else:
                    self.dropped += 1
            except OSError:
                self.dropped += 1

    def flush(self, deadline_s: float) -> None:
        courier = self._courier
        if courier is not None:
            courier.join(deadline_s)

    def _deliver_later(self, data: bytes) -> None:
        if len(self._late) >= LATE_RECORDS:
            self.dropped += 1
            return
        self._late.append(data)
        if self._courier is None:
            courier = threading.Thread(target=self._carry, name="journal", daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread to be had: the next record tries again
                courier.start()
                self._courier = courier

    def _carry(self) -> None:
        """Hand over what is late, each as soon as there is room; ends when nothing is."""
        patient = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        with patient:
            patient.settimeout(PATIENCE_S)
            while True:
                with self._lock:
                    if not self._late:
                        self._courier = None
                        return
                    data = self._late[0]
                try:
                    patient.sendto(data, self._path)
                    lost = 0
                except OSError:
                    lost = 1
                with self._lock:
                    self._late.popleft()
                    self.dropped += lost


class StreamJournal:
    """Lines for a person at a terminal, or for a container's log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def record(self, message: str, priority: str, identifier: str, **fields: str) -> None:
        mark = "" if priority in ("notice", "info", "debug") else f"{priority}: "
        words = fields.get("LLAMAD_FIX", "-")
        fix = f"; {words}" if words != "-" and words not in message else ""
        try:
            self._stream.write(f"{identifier}: {mark}{message}{fix}\n")
            self._stream.flush()
        except (OSError, ValueError):
            return  # the terminal is gone: there is nobody to tell

    def flush(self, deadline_s: float) -> None:
        """Nothing waits: each line was written."""


def make_journal(environ: dict[str, str]) -> Journal:
    """journald where systemd started us, else stderr."""
    under_systemd = "JOURNAL_STREAM" in environ or "NOTIFY_SOCKET" in environ
    if under_systemd and os.path.exists(JOURNAL_SOCKET):
        return NativeJournal()
    return StreamJournal(sys.stderr)
