"""The files of a definition: which there are, and their content, read without trusting what they are."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from llamad.config.names import HOST_FILE, is_definition_file
from llamad.errors import AccessError, ConfigError, Where

SIZE_LIMIT_BYTES = 1 << 20


def read_definition(file: Path, root: Path) -> dict[Path, bytes]:
    """All that makes a definition, later over earlier: the host settings of `root`, `file`, its drop-ins.

    What does not exist is left out. Raises as `read_file`.
    """
    return read_all([root / HOST_FILE, file, *dropin_files(file)])


def read_all(files: Iterable[Path]) -> dict[Path, bytes]:
    """The contents of those that exist. Raises as `read_file`."""
    contents = {file: read_file(file) for file in files}
    return {file: content for file, content in contents.items() if content is not None}


def digest_of(contents: Mapping[Path, bytes]) -> str:
    """The sha256 of names and contents, in hexadecimal."""
    digest = hashlib.sha256()
    for file, content in contents.items():
        digest.update(f"{file}\0{len(content)}\0".encode("utf-8", "surrogateescape") + content)
    return digest.hexdigest()


def dropin_files(file: Path) -> list[Path]:
    """`NAME.toml.d/*.toml` in the order of their names, without what editors and dpkg leave lying about."""
    folder = file.with_name(f"{file.name}.d")
    try:
        found = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _cannot_read(folder, error) from error
    files = [path for path in found if is_definition_file(path.name)]
    for path in files:
        try:
            leads_nowhere = path.is_symlink() and not path.exists()
        except OSError as error:  # a loop, or a folder that may be listed and not entered
            raise _cannot_read(path, error) from error
        if leads_nowhere:
            fix = "restore what it leads to, or remove the link"
            raise ConfigError("it is a link that leads nowhere", where=Where(str(path), 1, 1), fix=fix)
    return files


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
        import shlex  # only for what is refused: a start has no time for it

        fix = f"`chmod a+rX {shlex.quote(str(path))}`, or run it as a user that may read it"
        return AccessError("cannot read it", where=where, why="permission denied", fix=fix)
    fix = "check the disk or the mount that it lies on"
    return ConfigError("cannot read it", where=where, why=error.strerror or "", fix=fix)
