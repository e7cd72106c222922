"""The secrets of an address. API keys: loaded from text, checked in constant time, never shown. Pure."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import TYPE_CHECKING

from llamad.errors import ConfigError, Where

if TYPE_CHECKING:
    from llamad.front.certificate import Certificate
    from llamad.front.head import Field

_HEADERS = frozenset((b"x-api-key", b"api-key"))


class KeySet:
    """The keys that open an address. An empty set asks for none. `admin`: those that open `/admin/` too; where it
    is empty nobody gets there by a key. `certificate`: what TLS clients are shown; None where there is no TLS."""

    __slots__ = ("_keys", "admin", "certificate")

    def __init__(self, keys: Iterable[str] = (), admin: KeySet | None = None) -> None:
        self._keys = tuple(key.encode() for key in keys)
        self.admin: KeySet | None = admin or None
        self.certificate: Certificate | None = None

    @classmethod
    def from_text(cls, text: str, path: str = "") -> KeySet:
        """The keys in `text`: a line a key; blank lines and lines that begin with # are left out.

        Raises ConfigError, which names the line and never the key, for a key that no HTTP field can carry.
        """
        keys: list[str] = []
        for number, line in enumerate(text.splitlines(), start=1):
            key = line.strip()
            if not key or key.startswith("#"):
                continue
            if not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError(
                    "not an API key",
                    where=Where(path or "keys", number, 1),
                    why="a blank, a control or a non-ASCII character in it",
                    fix="write one key on each line",
                )
            keys.append(key)
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KeySet):
            return NotImplemented
        return (self._keys, self.admin, self.certificate) == (other._keys, other.admin, other.certificate)

    def __hash__(self) -> int:
        return hash(self._keys)

    def __repr__(self) -> str:
        return f"KeySet({len(self._keys)} keys)"

    def with_admin(self, admin: KeySet) -> KeySet:
        """The same keys, and these for the admin."""
        keys = KeySet((), admin)
        keys._keys = self._keys
        keys.certificate = self.certificate
        return keys

    def with_certificate(self, certificate: Certificate | None) -> KeySet:
        """The same keys, behind TLS."""
        keys = self.with_admin(self.admin or KeySet())
        keys.certificate = certificate
        return keys

    def in_clear(self) -> list[str]:
        """The keys themselves, for the one who must ask for them in our place."""
        return [key.decode() for key in self._keys]

    def allows_admin(self, fields: Iterable[Field]) -> bool:
        """Whether these header fields carry a key of the admin."""
        return self.admin is not None and self.admin.allows(fields)

    def allows(self, fields: Iterable[Field]) -> bool:
        """Whether a request with these header fields may pass: by `Authorization: Bearer KEY`, `X-Api-Key: KEY`
        or `Api-Key: KEY`. The time taken does not depend on the keys, only on how many there are.
        """
        if not self._keys:
            return True
        allowed = False
        for key, _, value in fields:
            if key == b"authorization":
                scheme, _, given = value.partition(b" ")
                if scheme.lower() == b"bearer":
                    allowed |= self._holds(given.strip(b" "))
            elif key in _HEADERS:
                allowed |= self._holds(value)
        return allowed

    def _holds(self, given: bytes) -> bool:
        found = False
        for key in self._keys:
            found |= hmac.compare_digest(key, given)
        return found
