"""What systemd is told: readiness, one line of status, progress, and the sockets it keeps for us.

Text goes out by sdnotify, reduced to printable ASCII (it drops other text in silence). File descriptors go
out by our own few lines, which sdnotify cannot do. Without systemd every call is a no-op.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Protocol

SEND_S = 0.2
"""A service manager that reads nothing any more (a crashed PID 1) must not stop us; a busy one gets this much time."""


class Notifier(Protocol):
    """The service manager's ear."""

    def send(self, **fields: str | int) -> None:
        """Send `KEY=value` lines in one message."""
        ...

    def store(self, name: str, fds: list[int]) -> None:
        """Have the service manager keep these descriptors for the next start of the unit."""
        ...

    def drop(self, name: str) -> None:
        """Have it close what it keeps under this name."""
        ...


def ascii_line(text: str) -> str:
    """One printable ASCII line, at most 500 characters."""
    flat = " ".join(text.split())
    return flat.encode("ascii", "replace").decode("ascii")[:500]


class NoNotifier:
    """Nobody listens: not under systemd."""

    def send(self, **fields: str | int) -> None:
        """Nothing to do."""

    def store(self, name: str, fds: list[int]) -> None:
        """Nothing to do."""

    def drop(self, name: str) -> None:
        """Nothing to do."""


class SystemdNotifier:
    """The protocol of sd_notify(3)."""

    def __init__(self, address: str) -> None:
        from sdnotify import SystemdNotifier as Sender

        self._sender = Sender()
        if self._sender.socket is not None:
            self._sender.socket.settimeout(SEND_S)
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def send(self, **fields: str | int) -> None:
        lines = [f"{key}={ascii_line(str(value))}" for key, value in fields.items()]
        self._sender.notify("\n".join(lines))

    def store(self, name: str, fds: list[int]) -> None:
        self._send_fds(f"FDSTORE=1\nFDNAME={name}\n", fds)

    def drop(self, name: str) -> None:
        self._send_fds(f"FDSTOREREMOVE=1\nFDNAME={name}\n", [])

    def _send_fds(self, text: str, fds: list[int]) -> None:
        # A lost message costs a restart that refuses connections for a moment, never the service.
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        with sock, contextlib.suppress(OSError):
            sock.settimeout(SEND_S)
            sock.connect(self._address)
            socket.send_fds(sock, [text.encode("ascii")], fds)


def make_notifier(environ: dict[str, str]) -> Notifier:
    """The right notifier for this environment."""
    address = environ.get("NOTIFY_SOCKET", "")
    return SystemdNotifier(address) if address else NoNotifier()


def watchdog_interval_s(environ: dict[str, str]) -> float | None:
    """How often to send WATCHDOG=1: half of what systemd allows; None where it does not watch us."""
    usec = environ.get("WATCHDOG_USEC", "")
    for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(usec) / 2e6 if usec.isdigit() and int(usec) > 0 and for_us else None


def monotonic_usec() -> int:
    """The time stamp that RELOADING=1 must carry (CLOCK_MONOTONIC)."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
