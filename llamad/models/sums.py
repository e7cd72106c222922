"""SHA-256 sums beside model files: `FILE.sha256` and `SHA256SUMS`, as sha256sum writes and reads them."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from llamad.errors import os_error

SUMS = "SHA256SUMS"
_LIMIT_BYTES = 4 << 20
_LINE = re.compile(r"\\?([0-9a-fA-F]{64})(?: [ *](.+))?")
_MODE = 0o644


def sidecar_of(path: Path) -> Path:
    """Where the sum of one file is."""
    return path.with_name(path.name + ".sha256")


def written_sum(path: Path) -> tuple[str, Path] | None:
    """The sum that is written beside a file, and where; None for none. What is no list of sums counts as none."""
    sidecar = sidecar_of(path)
    lines = _lines(sidecar)
    for digest, name in lines:
        if name in ("", path.name) or len(lines) == 1:
            return digest, sidecar
    folder = path.with_name(SUMS)
    for digest, name in _lines(folder):
        if name.removeprefix("./") == path.name:
            return digest, folder
    return None


def write_sum(path: Path, digest: str) -> None:
    """Write `FILE.sha256` beside a file, whole or not at all. Raises AccessError, BusyError."""
    sidecar = sidecar_of(path)
    scratch = sidecar.with_name(f".{sidecar.name}.{os.urandom(4).hex()}")
    try:
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
        with os.fdopen(fd, "w") as file:
            file.write(f"{digest}  {path.name}\n")
            file.flush()
            os.fchmod(fd, _MODE)
            os.fsync(fd)
        os.replace(scratch, sidecar)
    except OSError as error:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise os_error(f"cannot write {sidecar}", error, "run it as root") from error


def _lines(path: Path) -> list[tuple[str, str]]:
    """Sums with the names that they are of."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return []
            text = file.read(_LIMIT_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    found = [match for line in text.splitlines() if (match := _LINE.fullmatch(line.rstrip()))]
    return [(match[1].lower(), match[2] or "") for match in found]
