"""What a TLS address shows its clients: a certificate with its key, loaded and ready for handshakes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from llamad.errors import AccessError, ConfigError, Where
from llamad.store import read_regular

if TYPE_CHECKING:
    from ssl import SSLContext

_MOST_BYTES = 1 << 20


class Certificate:
    """Two are equal when their files had the same contents. Never shown: it holds a private key."""

    __slots__ = ("_digest", "context")

    def __init__(self, context: SSLContext, digest: bytes) -> None:
        self.context = context
        self._digest = digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Certificate) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        return "Certificate()"


def load_certificate(certificate: Path, key: Path | None, where: Where | None) -> Certificate:
    """A PEM file with the certificate and those that vouch for it, and one with its private key (None: in the same
    file). TLS 1.2 and 1.3, HTTP/1.1. `where` is named in errors.

    Raises AccessError where a file cannot be read, ConfigError where they are no certificate with its key. Blocking.
    """
    import ssl  # 15 ms that an address without TLS need not pay

    digest = hashlib.sha256()
    for path in (certificate, key):
        if path is not None:
            digest.update(_contents(path) + b"\0")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except _Locked:
        what, fix = f"the key in {key or certificate} has a password", "openssl pkey -in KEY -out KEY.plain, mode 0600"
        raise ConfigError(f"tls_key: {what}", where=where, why="a service cannot ask for one", fix=fix) from None
    except (ssl.SSLError, ValueError) as error:
        raise _unusable(certificate, key, getattr(error, "reason", None), where) from None
    except OSError as error:
        raise AccessError(f"cannot read {certificate} or {key}", why=error.strerror or "") from error
    return Certificate(context, digest.digest())


def _contents(path: Path) -> bytes:
    try:
        return read_regular(path, _MOST_BYTES, follow=True)
    except OSError as error:
        fix = "put a PEM file there"
        if isinstance(error, PermissionError):
            fix = f"let _llamad read it: chgrp _llamad {path}; chmod 0640 {path}; or give the key as a credential"
        raise AccessError(f"cannot read {path}", why=error.strerror or "", fix=fix) from error


def _unusable(certificate: Path, key: Path | None, reason: str | None, where: Where | None) -> ConfigError:
    if reason == "KEY_VALUES_MISMATCH":
        what = f"{key or certificate} is not the key of the certificate in {certificate}"
    else:
        what = f"{certificate} and {key or 'itself'} are no certificate with its private key"
    fix = "both as PEM; behind the certificate, in the same file, those that vouch for it"
    return ConfigError(f"tls_cert: {what}", where=where, why=(reason or "").lower().replace("_", " "), fix=fix)


class _Locked(Exception):
    pass


def _no_password() -> str:
    raise _Locked
