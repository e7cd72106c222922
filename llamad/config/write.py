"""Writing a new definition, for `llamad add`. The daemon never writes definitions."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path

from llamad.config.listen import Listen, next_port, parse_listen
from llamad.config.load import load_all, validate
from llamad.config.names import DEFAULT_ROOT, check_name
from llamad.errors import AccessError, ConfigError, LlamadError, Where
from llamad.store import sync_folder

_TEXT = """\
# {name}: served by `systemctl enable --now llamad@{name}`. See llamad.toml(5); `llamad show {name}` has every value.
model = {model}
{aliases}listen = {listen}

[placement]
context = "auto"        # as much as fits, up to what the model was trained for; or a number of tokens
# context_min = 4096    # never less than this
# parallel = "auto"     # requests at the same time
# kv_cache = "f16"      # "q8_0" takes half the memory, "auto" only where that is needed
# gpus = "auto"         # or for example [0, 1]
{allow_cpu}
"""
_MODE = 0o644


def definition_text(
    name: str, model: str, listen: str, *, allow_cpu: bool = False, aliases: Sequence[str] = ()
) -> str:
    """The text of a new definition. The model's path must be absolute."""
    alias_line = f"aliases = {_toml(list(aliases))}\n" if aliases else ""
    cpu_line = (
        "allow_cpu = true" if allow_cpu else "# allow_cpu = true    # may run on the CPU, many times slower"
    )
    return _TEXT.format(
        name=name, model=_toml(model), listen=_toml(listen), aliases=alias_line, allow_cpu=cpu_line
    )


def free_listen(root: Path = DEFAULT_ROOT) -> str:
    """`127.0.0.1:PORT` with the lowest port from 8081 that no definition of the folder listens on."""
    texts = [loaded.definition.listen for loaded in load_all(root)]
    return str(Listen("tcp", "127.0.0.1", next_port(parse_listen(text) for text in texts if text)))


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


def _write_new(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(fd, _MODE)  # whatever the umask: `llamad list` reads it without root
        os.fsync(fd)


def _cannot_write(file: Path, error: OSError) -> LlamadError:
    where = Where(str(file))
    if isinstance(error, FileExistsError):
        return ConfigError("is there already", where=where, fix="edit it, or choose another name")
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


def _toml(value: object) -> str:
    """A text or list as TOML: JSON's escapes are TOML's too, but for DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
