"""What the kernel tells of the other end of a connection."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct

_RESET = struct.pack("ii", 1, 0)


def has_unread(sock: socket.socket) -> bool:
    """Whether bytes (or the end) lie in the kernel, unread. False for a socket that is closed."""
    if sock.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def is_tls(transport: asyncio.BaseTransport) -> bool:
    """Whether what goes through it is encrypted."""
    return transport.get_extra_info("sslcontext") is not None


def is_owner(sock: socket.socket) -> bool:
    """Whether root or our own user is at the other end of this unix socket."""
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in (0, os.geteuid())


def reset_when_closed(sock: socket.socket) -> None:
    """Let this TCP connection end with a reset, not a plain end: that could pass for the end of a body."""
    if sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
