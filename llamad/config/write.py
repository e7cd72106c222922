"""Writing definitions, for `llamad add` and `llamad edit`. The daemon never writes them."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

from llamad.config.listen import Listen, next_port, parse_listen
from llamad.config.load import load_all, validate
from llamad.config.names import DEFAULT_ROOT, check_name
from llamad.errors import AccessError, ConfigError, LlamadError, Where
from llamad.store import sync_folder

_MODE = 0o644
_CLOSED = 0o600


def free_listen(root: Path = DEFAULT_ROOT, in_use: Callable[[int], bool] = lambda _port: False) -> str:
    """`127.0.0.1:PORT` with the lowest port from 8081 that no definition of the folder listens on, and that `in_use`
    does not say is another program's.
    """
    texts = [loaded.definition.listen for loaded in load_all(root)]
    taken = [parse_listen(text) for text in texts if text]
    while in_use(port := next_port(taken)):
        taken.append(Listen("tcp", "127.0.0.1", port))
    return str(Listen("tcp", "127.0.0.1", port))


def port_in_use(port: int) -> bool:
    """Whether a program of this host listens on a port of 127.0.0.1."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def require_free_name(name: str, root: Path) -> None:
    """Raises ConfigError where there is a definition of this name: sooner than `write_definition` finds it."""
    file = root / f"{name}.toml"
    if os.path.lexists(file):
        raise _cannot_write(file, FileExistsError())


def write_definition(name: str, text: str, root: Path = DEFAULT_ROOT) -> Path:
    """Write NAME.toml, whole or not at all, and never over one that is there; its path.

    Raises ConfigError (bad name, bad text, exists already, no such folder) and AccessError.
    """
    check_name(name, root)
    file = root / f"{name}.toml"
    validate(text.encode(), file)
    temporary = root / f".{name}.toml.{os.urandom(4).hex()}"
    try:
        try:
            _write_new(temporary, text.encode())
            os.link(temporary, file)  # unlike a rename, it fails where the name is taken
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(root)
    except OSError as error:
        raise _cannot_write(file, error) from error
    return file


def replace_definition(file: Path, content: bytes, before: bytes | None) -> None:
    """Put new content in the place of a file in one step; owner, mode and attributes (ACLs) stay as they were.

    A link stays a link: what it leads to is replaced. `before` is what the file was when it was read, None where
    there was none. Raises ConfigError where it is not that any more, else as `write_definition`.
    """
    target = Path(os.path.realpath(file))
    temporary = target.with_name(f".{target.name}.{os.urandom(4).hex()}")
    try:
        try:
            if before is None:
                _write_new(temporary, content)
                os.link(temporary, target)
            else:
                _write_new(temporary, content, _CLOSED)  # it may hold what others must not read
                _as_before(target, temporary)
                if target.read_bytes() != before:
                    what = "was changed by somebody else meanwhile"
                    fix = "nothing was written; look at it and edit again"
                    raise ConfigError(what, where=Where(str(file)), fix=fix)
                temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(target.parent)
    except OSError as error:
        raise _cannot_write(file, error) from error


def _as_before(target: Path, temporary: Path) -> None:
    """Give the new file owner, mode and extended attributes of the old one."""
    status = os.stat(target)
    if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
        os.chown(temporary, status.st_uid, status.st_gid)
    os.chmod(temporary, status.st_mode & 0o7777)
    for name in os.listxattr(target):
        try:
            os.setxattr(temporary, name, os.getxattr(target, name))
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.ENODATA):  # security.* is the system's own
                raise


def replace_file(path: Path, content: bytes) -> None:
    """Write a drop-in whole or not at all, its folder too where it is missing. Raises as `write_definition`."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        make_folder(path.parent)
        try:
            _write_new(temporary, content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error


def make_folder(folder: Path) -> None:
    """A folder of drop-ins, where it is missing. Raises OSError."""
    if not folder.is_dir():
        folder.mkdir()
        folder.chmod(0o755)  # whatever the umask: the service reads it


def _write_new(path: Path, content: bytes, mode: int = _MODE) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(fd, mode)  # whatever the umask: `llamad list` reads it without root
        os.fsync(fd)


def _cannot_write(file: Path, error: OSError) -> LlamadError:
    where = Where(str(file))
    if isinstance(error, FileExistsError):
        return ConfigError("is there already", where=where, fix=f"`llamad edit {file.stem}`, or choose another name")
    if isinstance(error, PermissionError):
        return AccessError("cannot be written", where=where, why="permission denied", fix="run it as root")
    if error.errno == errno.EROFS:
        return AccessError(
            "cannot be written", where=where, why="the file system is read-only", fix="remount it"
        )
    if isinstance(error, FileNotFoundError):
        return ConfigError(
            "cannot be written", where=where, why="there is no such folder", fix=f"mkdir {file.parent}"
        )
    return ConfigError("cannot be written", where=where, why=error.strerror or "", fix="check the disk")
