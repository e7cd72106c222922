"""A `listen` that changes while the model is served: the new address is bound first, the old one ended last.

Connections outlive the socket that they came in by, so no request is touched. Until the new definition is in force
its clients wait in the new socket's queue.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from llamad.config.definition import Definition, Host
from llamad.config.listen import DEFAULT_LISTEN, Listen, parse_listen
from llamad.errors import LlamadError
from llamad.front.keys import KeySet
from llamad.service.notify import Notifier
from llamad.service.sockets import SOCKET_FILE, Listening, bind_tcp, bind_unix, show, store_name


class Relay(Protocol):
    """What accepts on the sockets."""

    async def move(self, listening: list[socket.socket]) -> None:
        """Accept on these from now on; the ones before are closed when their queues are empty."""
        ...


class Place(NamedTuple):
    """An address, and the mode of its socket where that is a file."""

    listen: Listen
    mode: int


def place_of(settings: Definition | Host) -> Place:
    """Where a definition is served, or the router."""
    return Place(parse_listen(settings.listen or DEFAULT_LISTEN), int(settings.listen_mode, 8))


class Move:
    """From one address to another. To be ended by `carry_out` or `give_up`."""

    def __init__(
        self, listening: Listening, old: Place, new: Place, notifier: Notifier, runtime: Path, public: Path
    ) -> None:
        """Bind what must be bound. Raises BusyError, AccessError, ConfigError; nothing has changed then."""
        self._listening = listening
        self._notifier = notifier
        self._path = runtime / SOCKET_FILE
        self._public = public
        (self._old, self._former_mode), (self._new, self._mode) = old, new
        self._shares_port = False
        self._sock = self._bind() if self._needs_socket else None
        self._former_name = listening.unix_path
        self._name = self._show()

    @property
    def _needs_socket(self) -> bool:
        return self._old != self._new and not self._old.kind == self._new.kind == "unix"

    def _bind(self) -> socket.socket:
        if self._new.kind == "unix":
            return bind_unix(self._path, self._mode)
        if not self._old.collides(self._new):
            return bind_tcp(self._new)
        # The same port: the old socket must allow another one beside it, for as long as there are two.
        self._share(True)
        try:
            return bind_tcp(self._new, share_port=True)
        except LlamadError:
            self._share(False)
            raise

    def _share(self, yes: bool) -> None:
        self._shares_port = yes
        for sock in self._listening.sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, yes)

    def _show(self) -> Path | None:
        """Give the new address its public name. Raises AccessError, BusyError."""
        if self._new.kind != "unix":
            return None
        try:
            return show(self._path, self._public / self._new.path)
        except LlamadError:
            self._name = None
            self.give_up()
            raise

    def give_up(self) -> None:
        """The old address stays."""
        if self._name is not None and self._name != self._former_name:
            self._name.unlink(missing_ok=True)
        if self._sock is not None:
            self._sock.close()
            if self._new.kind == "unix":
                self._path.unlink(missing_ok=True)
        if self._shares_port:
            self._share(False)

    async def carry_out(self, relay: Relay) -> None:
        """The new address is in force, and the old one is no more."""
        if self._sock is not None:
            sockets = [self._sock]
            self._notifier.store(store_name(self._new), [self._sock.fileno()])
            self._sock.setblocking(False)
            await relay.move([*sockets, *self._listening.inner])
            self._notifier.drop(store_name(self._old))
            self._listening.sockets = sockets
            if self._shares_port:
                self._share(False)
            if self._old.kind == "unix":
                self._path.unlink(missing_ok=True)
        elif self._new.kind == "unix":
            if self._mode != self._former_mode:
                self._path.chmod(self._mode)
            if self._old != self._new:  # the same socket by another name; systemd keeps one only once
                self._notifier.drop(store_name(self._old))
                self._notifier.store(store_name(self._new), [one.fileno() for one in self._listening.sockets])
        self._listening.unix_path = self._name
        if self._former_name is not None and self._former_name != self._name:
            with contextlib.suppress(OSError):
                self._former_name.unlink()


async def carry_over(
    move: Move, relay: Relay, apply: Callable[[KeySet], None], keys: KeySet, former: KeySet
) -> None:
    """Carry a move out. `apply` has the relay ask for keys: these at the new address, the `former` ones at the old.

    What is meant for the new address must not open the old one: an address that all can reach is not served without
    the keys it had, nor a new one without its own.
    """
    apply((keys or former).with_certificate(keys.certificate))
    await move.carry_out(relay)
    apply(keys)
