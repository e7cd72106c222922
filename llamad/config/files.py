"""The files of a definition: which there are, and their content, read without trusting what they are."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from llamad.config.text import SIZE_LIMIT_BYTES
from llamad.errors import AccessError, ConfigError, Where


def dropin_files(file: Path) -> list[Path]:
    """`NAME.toml.d/*.toml` in the order of their names, without what editors and dpkg leave lying about."""
    folder = file.with_name(f"{file.name}.d")
    try:
        found = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _cannot_read(folder, error) from error
    return [path for path in found if is_definition_file(path.name)]


def is_definition_file(name: str) -> bool:
    """Whether a file of this name counts: `*.toml`, and no hidden, backup or package manager's file."""
    return name.endswith(".toml") and not name.startswith((".", "#")) and ".dpkg-" not in name


def read_file(path: Path) -> bytes | None:
    """The content of a regular file, up to one byte more than the parser accepts; None where there is no file.

    Raises ConfigError, or AccessError. Does not block on a FIFO.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _cannot_read(path, error) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError("it is no file", where=Where(str(path), 1, 1), fix="put a TOML file there")
        return _read_to_limit(fd)
    except OSError as error:
        raise _cannot_read(path, error) from error
    finally:
        os.close(fd)


def _read_to_limit(fd: int) -> bytes:
    content = b""
    while len(content) <= SIZE_LIMIT_BYTES:
        more = os.read(fd, SIZE_LIMIT_BYTES + 1 - len(content))
        if not more:
            break
        content += more
    return content


def _cannot_read(path: Path, error: OSError) -> AccessError | ConfigError:
    where = Where(str(path), 1, 1)
    if isinstance(error, PermissionError):
        fix = f"`chmod a+rX {path}`, or run it as a user that may read it"
        return AccessError("cannot read it", where=where, why="permission denied", fix=fix)
    fix = "check the disk or the mount that it lies on"
    return ConfigError("cannot read it", where=where, why=error.strerror or "", fix=fix)
