"""Where llama-server is, and why it could not be run."""

from __future__ import annotations

import errno
import os

from llamad.errors import AccessError, BusyError, ConfigError, LlamadError


def find_server(server: str, search_path: str) -> str:
    """The file that `[host] server` names: a path, or a name looked up in `search_path` (as PATH is written).

    Raises ConfigError if there is none, AccessError if it is there and may not be executed.
    """
    if "/" in server:
        candidates = [server]
    else:
        candidates = [os.path.join(folder, server) for folder in search_path.split(":") if folder]
    found = [path for path in candidates if os.path.isfile(path)]
    for path in found:
        if os.access(path, os.X_OK):
            return os.path.abspath(path)
    if found:
        raise AccessError(
            f"cannot execute {found[0]}",
            why="the file is not executable for this user",
            fix=f"chmod a+rx {found[0]}, or set [host] server in /etc/llamad/llamad.toml",
        )
    raise _not_there(server)


def _not_there(server: str) -> ConfigError:
    return ConfigError(
        f"cannot find {server}",
        why="it is not installed" if "/" not in server else "no such file",
        fix="apt install llama.cpp-tools, or set [host] server in /etc/llamad/llamad.toml",
    )


def launch_error(server: str, error: OSError) -> LlamadError:
    """The error to show when the kernel refuses to start `server`."""
    reason = os.strerror(error.errno or 0)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return _not_there(server)
    if error.errno in (errno.EACCES, errno.EPERM):
        return AccessError(
            f"cannot execute {server}", why=reason, fix="check its mode and the mount options"
        )
    if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return BusyError(f"cannot start {server}", why=reason, fix="free memory or raise the process limits")
    return ConfigError(
        f"cannot run {server}",
        why=reason,
        fix="install llama.cpp for this machine, or set [host] server in /etc/llamad/llamad.toml",
    )
