"""What the kernel tells of the other end of a connection."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
import sys

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


def unwritten_bytes(transport: asyncio.Transport, sock: socket.socket) -> int:
    """How many bytes wait for the other end; 0 when all of ours are out. Behind TLS there is a buffer more, which
    nobody can look into: while there is anything in it, the kernel has bytes that are not taken yet."""
    size = transport.get_write_buffer_size()
    if not is_tls(transport) or sock.fileno() < 0:
        return size
    import fcntl  # not for a start
    import termios

    count = bytearray(4)
    fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, count)
    return size + int.from_bytes(count, sys.byteorder)


def is_owner(sock: socket.socket) -> bool:
    """Whether root or our own user is at the other end of this unix socket."""
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in (0, os.geteuid())


def reset_when_closed(sock: socket.socket) -> None:
    """Let this TCP connection end with a reset, not a plain end: that could pass for the end of a body."""
    if sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
