"""The addresses a model is served on: bound here, or taken back from systemd's file descriptor store.

A listening socket outlives a restart of the unit in the store, with the connections that wait in its queue,
so that a restart refuses nobody.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path

from llamad.config.listen import Listen
from llamad.errors import AccessError, BusyError, ConfigError, os_error
from llamad.service.notify import Notifier

BACKLOG = 4096
ROUTER_SOCKET = "router.sock"
"""In a model's runtime directory, for the router's requests: they ask for keys as all others do."""
ROUTER_STORE = "router"
LISTEN_FDS_START = 3
SOCKET_FILE = "api.sock"
"""Of an address of kind `unix`, in the runtime directory; its public name leads to it."""
_IP_FREEBIND = 15  # linux/in.h; also valid at level IPPROTO_IPV6 as IPV6_FREEBIND = 78
_IPV6_FREEBIND = 78


@dataclass
class Listening:
    """The sockets of one model."""

    sockets: list[socket.socket]
    """Of its address."""
    unix_path: Path | None = None
    """The public name of a unix socket, to be removed where no runtime directory does it."""
    inner: list[socket.socket] = field(default_factory=list)
    """What the router passes requests on by. It stays when the address moves."""


def stored_sockets(environ: dict[str, str]) -> dict[str, socket.socket]:
    """The sockets that systemd kept, by name; clears LISTEN_* so that no child takes them for its own."""
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    count = environ.pop("LISTEN_FDS", "0")
    if environ.pop("LISTEN_PID", "") != str(os.getpid()) or not count.isdigit():
        return {}
    found: dict[str, socket.socket] = {}
    for offset in range(int(count)):
        fd = LISTEN_FDS_START + offset
        os.set_inheritable(fd, False)
        name = names[offset] if offset < len(names) else ""
        if name and name not in found and stat.S_ISSOCK(os.fstat(fd).st_mode):
            found[name] = socket.socket(fileno=fd)
        else:
            os.close(fd)
    return found


def store_name(listen: Listen) -> str:
    """The name of an address in the store: printable ASCII without a colon."""
    return "listen-" + "".join(c if c.isalnum() or c in "._-" else "_" for c in str(listen))


def listen_on(
    listen: Listen,
    mode: int,
    stored: dict[str, socket.socket],
    notifier: Notifier,
    runtime: Path,
    public: Path,
) -> Listening:
    """A listening socket on the address: the stored one where there is one, else a new one, then stored.

    Stored sockets of other addresses (the definition changed) are closed and dropped. `runtime` is the
    unit's runtime directory, `public` the folder in which the socket's name is shown.
    Raises BusyError (address in use), AccessError, ConfigError (no such address).
    """
    wanted = store_name(listen)
    _forget(stored, notifier, but=wanted)
    sock = stored.pop(wanted, None)
    if sock is not None and listen.kind == "unix" and not (runtime / SOCKET_FILE).exists():
        sock.close()
        notifier.drop(wanted)
        sock = None
    if sock is None:
        sock = bind_unix(runtime / SOCKET_FILE, mode) if listen.kind == "unix" else bind_tcp(listen)
        notifier.store(wanted, [sock.fileno()])
    sock.setblocking(False)
    shown = show(runtime / SOCKET_FILE, public / listen.path) if listen.kind == "unix" else None
    return Listening([sock], shown)


def listen_nowhere(stored: dict[str, socket.socket], notifier: Notifier) -> Listening:
    """No address: another process owns it. Sockets that are stored are closed and dropped."""
    _forget(stored, notifier)
    return Listening([], None)


def _forget(stored: dict[str, socket.socket], notifier: Notifier, but: str = "") -> None:
    for name in [name for name in stored if name != but]:
        stored.pop(name).close()
        notifier.drop(name)


def listen_for_router(
    stored: dict[str, socket.socket], notifier: Notifier, runtime: Path
) -> socket.socket:
    """The socket by which the router passes requests on; taken out of `stored`, or new and then stored.

    Only this user can connect to it. Raises AccessError, BusyError.
    """
    sock = stored.pop(ROUTER_STORE, None)
    if sock is not None and not (runtime / ROUTER_SOCKET).exists():
        sock.close()
        sock = None
    if sock is None:
        sock = bind_unix(runtime / ROUTER_SOCKET, 0o600)
        notifier.drop(ROUTER_STORE)
        notifier.store(ROUTER_STORE, [sock.fileno()])
    sock.setblocking(False)
    return sock


def bind_tcp(listen: Listen, *, share_port: bool = False) -> socket.socket:
    """A listening socket of an address. `share_port`: beside one of this user that shares it too. Raises as
    `listen_on`.
    """
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, share_port)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        sock.bind((listen.host, listen.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _bind_error(str(listen), error) from error
    return sock


def bind_unix(path: Path, mode: int) -> socket.socket:
    """A listening socket at a path, whatever is there. Raises as `listen_on`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        sock.bind(str(path))
        os.chmod(path, mode)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _bind_error(str(path), error) from error
    return sock


def _bind_error(address: str, error: OSError) -> BusyError | AccessError | ConfigError:
    if error.errno == errno.EADDRINUSE:
        fix = "see who with `ss -ltnp`, or choose another `listen`"
        return BusyError(f"cannot listen on {address}", why="another process does", fix=fix)
    refused = os_error(f"cannot listen on {address}", error, "choose a port from 1024 up")
    if isinstance(error, PermissionError) or isinstance(refused, BusyError):
        return refused
    return ConfigError(f"cannot listen on {address}", why=str(error), fix="correct `listen`")


def show(target: Path, name: Path) -> Path:
    """Make `name` a link to the socket; the socket goes with the runtime directory, so the link dangles then."""
    temporary = name.with_name(f".{name.name}.{os.getpid()}")
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        temporary.symlink_to(os.path.relpath(target, name.parent))
        temporary.replace(name)
    except OSError as error:
        raise os_error(f"cannot make {name}", error, "check /run/llamad/api") from error
    return name
