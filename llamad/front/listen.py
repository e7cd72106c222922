"""Accepting from sockets that somebody else owns (systemd keeps them over restarts): read from, never shut down."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING

from llamad.clock import Clock

if TYPE_CHECKING:
    from ssl import SSLContext

_log = logging.getLogger(__name__)
_AT_ONCE = 64
_RETRY_S = 0.5
_HANDSHAKE_S = 10.0
_LAST_HANDSHAKES_S = 1.0
_GOODBYE_S = 3600.0
"""What asyncio gives a connection for the last bytes, however fast they go. Who takes none the sweep breaks off."""
_NO_ROOM = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))


class Listener:
    """Accepts on one listening socket. Connections that wait in the kernel's queue when it stops stay there, for
    whoever reads the socket next. `tls`: what to speak TLS with from the next connection on, where it is a TCP
    socket; None is plain HTTP."""

    def __init__(
        self,
        sock: socket.socket,
        make: Callable[[bool], asyncio.BaseProtocol],
        clock: Clock,
        tls: Callable[[], SSLContext | None] = lambda: None,
    ) -> None:
        self.sock = sock
        self._is_unix = sock.family == socket.AF_UNIX
        self._make = make
        self._clock = clock
        self._tls = tls
        self._starting: set[asyncio.Task[None]] = set()
        self._listening = False

    def start(self) -> None:
        """Begin to accept."""
        self.sock.setblocking(False)
        self._listening = True
        asyncio.get_running_loop().add_reader(self.sock.fileno(), self._accept)

    async def stop(self) -> None:
        """Accept no more; returns when every accepted connection has its protocol."""
        self._listening = False
        asyncio.get_running_loop().remove_reader(self.sock.fileno())
        await self._all_started()

    async def retire(self) -> None:
        """End the address for good: whoever is in the kernel's queue is served, who comes later is refused."""
        self._listening = False
        asyncio.get_running_loop().remove_reader(self.sock.fileno())
        while self._accept():
            pass
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)  # also for others that have this socket
        self.sock.close()
        await self._all_started()

    def _accept(self) -> bool:
        """Accept some of those that wait; whether there may be more."""
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self.sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return False
            except OSError as error:
                self._failed(error)
                return False
            self._spawn(self._adopt(connection))
        return True

    def _failed(self, error: OSError) -> None:
        """No room for another connection passes; any other error of accept is for an admin to see."""
        if not self._listening:
            return
        asyncio.get_running_loop().remove_reader(self.sock.fileno())
        if error.errno in _NO_ROOM:
            _log.warning("cannot accept: %s; trying again in %s s", error.strerror, _RETRY_S)
        else:
            _log.error("cannot accept: %s; trying again in %s s", error.strerror, _RETRY_S)
        self._spawn(self._retry())

    async def _retry(self) -> None:
        await self._clock.sleep(_RETRY_S)
        if self._listening:
            asyncio.get_running_loop().add_reader(self.sock.fileno(), self._accept)

    async def _adopt(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            if not self._is_unix:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in _KEEPALIVE:
                    connection.setsockopt(socket.IPPROTO_TCP, option, value)
            await self._shake_hands(connection)
        except OSError as error:  # what is wrong in a TLS handshake, too
            connection.close()
            _log.info("a connection broke while it was accepted: %s", error.strerror or error)

    async def _shake_hands(self, connection: socket.socket) -> None:
        context = None if self._is_unix else self._tls()
        limits = {} if context is None else {"ssl_handshake_timeout": _HANDSHAKE_S, "ssl_shutdown_timeout": _GOODBYE_S}
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: self._make(not self._is_unix), connection, ssl=context, **limits
        )

    async def _all_started(self) -> None:
        """A client that is slow to shake hands has not asked for anything yet: the end does not wait for it."""
        if not self._starting:
            return
        _, late = await asyncio.wait(self._starting, timeout=_LAST_HANDSHAKES_S)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
