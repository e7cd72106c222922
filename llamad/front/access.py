"""Who may ask what: Host and Origin against DNS rebinding, and the paths that are not for clients. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address

from llamad.front.head import RequestHead

_ORIGIN = re.compile(rb"https?://(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(?::[0-9]{1,5})?", re.IGNORECASE)
_READING = frozenset((b"GET", b"HEAD", b"OPTIONS"))
_ORDER_PATH = re.compile(rb"/admin(?:/|\Z)")
_ADMIN_PATH = re.compile(rb"/+(?:slots|props|lora-adapters)(?:/|\Z)")


class HostCheck:
    """Accepts loopback addresses, `localhost`, and the names that the admin allowed."""

    __slots__ = ("_allowed", "_known_good")

    def __init__(self, allowed_hosts: Iterable[str] = ()) -> None:
        self._allowed = frozenset(host.strip("[]").lower() for host in allowed_hosts)
        self._known_good: bytes | None = None  # the last Host that passed: nearly always the next one too

    def problem(self, head: RequestHead) -> str | None:
        """Why this request is refused, or None. HTTP/1.0 without a Host passes: no browser sends that."""
        if head.host != self._known_good and (head.host or head.minor):
            if not self._accepts(_without_port(head.host)):
                return f"the Host {head.host.decode('ascii', 'replace')!r} is not in allowed_hosts"
            self._known_good = head.host
        origin = head.origin
        if origin is None:
            return None
        match = _ORIGIN.fullmatch(origin)
        if match is None or not self._accepts(match[1]):
            return "the Origin is not in allowed_hosts"
        return None

    def _accepts(self, host: bytes) -> bool:
        name = host.strip(b"[]").decode("ascii", "replace").lower()
        if name == "localhost" or name in self._allowed:
            return True
        try:
            return ip_address(name).is_loopback
        except ValueError:
            return False


def is_for_admin(head: RequestHead) -> bool:
    """Whether the request is an order to llamad, or would change llama-server for everybody: its slots, properties
    or adapters."""
    if head.path.startswith(b"/admin"):
        return _ORDER_PATH.match(head.path) is not None
    return head.method not in _READING and _ADMIN_PATH.match(head.path) is not None


def _without_port(host: bytes) -> bytes:
    if host.startswith(b"["):
        return host.partition(b"]")[0] + b"]"
    return host.partition(b":")[0]
