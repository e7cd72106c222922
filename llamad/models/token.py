"""The token that opens private and gated repositories: from a file alone, never shown, never sent elsewhere."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from llamad.errors import AccessError, UsageError, Where
from llamad.frozen import dataclass

CREDENTIAL = "llamad.hub-token"
_MOST_BYTES = 4096


@dataclass(frozen=True)
class Token:
    """A token and where it was read. Its text is in no `repr` and no error."""

    path: str
    text: str

    def __repr__(self) -> str:
        return f"Token({self.path!r})"


def find_token(given: str | None, environ: Mapping[str, str], *, for_mirror: bool = False) -> Token | None:
    """The token of the file that was named, else of systemd's credentials, else of the hub's own tools; None for none.

    That of the hub's own tools is for the hub: `for_mirror` leaves it out.
    Raises UsageError, AccessError for a file that was named and cannot be used; the others may be missing.
    """
    if given is not None:
        return _read(Path(given))
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if folder and (credential := Path(folder, CREDENTIAL)).exists():
        return _read(credential)
    cached = None if for_mirror else _cached(environ)
    return _read(cached) if cached is not None and os.access(cached, os.R_OK) else None


def _cached(environ: Mapping[str, str]) -> Path | None:
    """Where the hub's own tools keep it."""
    if path := environ.get("HF_TOKEN_PATH"):
        return Path(path)
    if home := environ.get("HF_HOME"):
        return Path(home, "token")
    base = environ.get("XDG_CACHE_HOME") or (
        os.path.join(environ["HOME"], ".cache") if environ.get("HOME") else ""
    )
    return Path(base, "huggingface", "token") if base else None


def _read(path: Path) -> Token:
    where = Where(str(path))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(
                    "this is no file with a token", where=where, fix="name a file with the token alone"
                )
            raw = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise AccessError(
            "cannot read the token",
            where=where,
            why=error.strerror or "",
            fix="correct the path, or make it readable",
        ) from error
    if status.st_mode & stat.S_IROTH:
        fix = f"chmod 600 {path}; and make a new token, for others have seen this one"
        raise AccessError("everybody may read this token", where=where, fix=fix)
    text = raw.decode("latin-1").strip()
    if not text or len(raw) > _MOST_BYTES or not text.isascii() or not text.isprintable() or " " in text:
        raise UsageError(
            "there is no token in this file", where=where, fix="write the token into it, and nothing else"
        )
    return Token(str(path), text)
