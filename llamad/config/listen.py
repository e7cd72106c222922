"""Addresses to listen on: `127.0.0.1:8081`, `[::1]:8081` or `unix:NAME.sock`. Pure.

Only numbers, no host names: an address must mean the same before the network and its name servers are up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal

from llamad.frozen import dataclass

_SOCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}\.sock")
_HOST_PORT = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<v4>[^:\[\]]*)):(?P<port>[^:]*)")
_INTERFACE = re.compile(r"[A-Za-z0-9._-]{1,15}")
DEFAULT_LISTEN = "127.0.0.1:8080"
"""Where a model is served whose definition does not say."""
_EXAMPLE = 'for example "127.0.0.1:8081", "[::1]:8081" or "unix:NAME.sock"'


@dataclass(frozen=True)
class Listen:
    """One address. `host` (no brackets) and `port` of kind `tcp`; `path`, a name without folder, of kind `unix`."""

    kind: Literal["tcp", "unix"]
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        """The address as it is written in a definition."""
        if self.kind == "unix":
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @cached_property
    def _address(self) -> IPv4Address | IPv6Address | None:
        return ip_address(self.host) if self.kind == "tcp" else None

    @property
    def is_local(self) -> bool:
        """Whether only this host can reach it: a loopback address or a unix socket."""
        return self._address is None or self._address.is_loopback

    def collides(self, other: Listen) -> bool:
        """Whether both cannot be listened on at once; a wildcard takes the port of every address of its family."""
        if self.kind != other.kind or self._address is None or other._address is None:
            return self == other
        if self.port != other.port or self._address.version != other._address.version:
            return False
        wildcard = self._address.is_unspecified or other._address.is_unspecified
        return wildcard or self._address == other._address


def parse_listen(text: str) -> Listen:
    """The address of a `listen` value. Raises ValueError with the fault and a right value in words."""
    if text.startswith("unix:"):
        return Listen("unix", path=_socket_name(text.removeprefix("unix:")))
    if text.isdecimal():
        raise ValueError(f'"{text}" is a port alone; write "127.0.0.1:{text}"')
    match = _HOST_PORT.fullmatch(text)
    if not match:
        raise ValueError(f'not an address: "{text}"; write {_EXAMPLE}')
    port = match["port"]
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError(f'not a port: "{port}"; write a number from 1 to 65535')
    return Listen("tcp", host=_host(match["v6"], match["v4"], int(port)), port=int(port))


def next_port(used: Iterable[Listen], *, first: int = 8081) -> int:
    """The lowest port of 127.0.0.1 from `first` up that collides with no address in use. Raises ValueError."""
    taken = list(used)
    for port in range(first, 65536):
        if not any(Listen("tcp", "127.0.0.1", port).collides(other) for other in taken):
            return port
    raise ValueError(f"no free port from {first} up")


def _host(v6: str | None, v4: str | None, port: int) -> str:
    if v4 == "localhost":
        return "127.0.0.1"
    if v4 in ("", "*"):
        raise ValueError(
            f'no address before the port; write "127.0.0.1:{port}", or "0.0.0.0:{port}" for all'
        )
    text = v4 if v6 is None else v6
    try:
        address = ip_address(text or "")
    except ValueError:
        raise ValueError(f'not an IP address: "{text}"; write {_EXAMPLE}') from None
    if "%" in str(address) and not _INTERFACE.fullmatch(str(address).partition("%")[2]):
        raise ValueError(f"no interface has the name that is written after the %; write {_EXAMPLE}")
    if v6 is not None and address.version == 4:
        raise ValueError(f'"{v6}" is an IPv4 address in brackets; write "{v6}:{port}"')
    return str(address)


def _socket_name(name: str) -> str:
    if "/" in name:
        fix = f'write "unix:{name.rpartition("/")[2]}"'
        raise ValueError(f'"{name}" has a folder; sockets are made in /run/llamad/api; {fix}')
    if not _SOCKET_NAME.fullmatch(name):
        raise ValueError(f'not a socket name: "{name}"; write for example "unix:phi4.sock"')
    return name
