"""Records for journald by its native protocol: one datagram of fields, no library, never blocking.

Outside systemd the same records are lines on stderr. A record that cannot be delivered at once is counted
and dropped: the journal may be stopped, and llamad must not stand still for it.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import Protocol, TextIO

JOURNAL_SOCKET = "/run/systemd/journal/socket"
MESSAGE_LIMIT = 32_000
FIELD_LIMIT = 8_000
"""Characters. A datagram that the socket's buffer (208 KiB) cannot hold is lost as a whole."""

PRIORITIES = {"crit": 2, "err": 3, "warning": 4, "notice": 5, "info": 6, "debug": 7}


class Journal(Protocol):
    """Where records go."""

    def record(self, message: str, priority: str, identifier: str, **fields: str) -> None:
        """Write one record; never raises, never blocks."""
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
        try:
            self._socket.sendto(data, self._path)
        except OSError:
            self.dropped += 1


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


def make_journal(environ: dict[str, str]) -> Journal:
    """journald where systemd started us, else stderr."""
    under_systemd = "JOURNAL_STREAM" in environ or "NOTIFY_SOCKET" in environ
    if under_systemd and os.path.exists(JOURNAL_SOCKET):
        return NativeJournal()
    return StreamJournal(sys.stderr)
