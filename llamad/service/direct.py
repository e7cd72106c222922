"""A llama-server that owns the address of its clients: where it is, and the keys that it asks them for.

It cannot be given keys in any way but a file. One more than the clients' is in it: llamad's own, which changes with
each start.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from llamad.config.definition import Definition
from llamad.config.listen import DEFAULT_LISTEN, parse_listen
from llamad.engine.endpoint import TcpEndpoint
from llamad.errors import AccessError
from llamad.front.keys import KeySet

_KEY_FILE = "direct.keys"


def write_keys(definition: Definition, keys: KeySet, engine: Path, *, runs: bool = False) -> None:
    """Put the keys where `endpoint_of` finds them, in the private folder `engine`. `runs`: there is a llama-server that
    knows llamad by its present key, which stays. Raises AccessError.

    Whole or not at all: a llama-server that starts meanwhile must never find no key.
    """
    path = engine / _KEY_FILE
    try:
        if not (definition.is_direct and keys):
            path.unlink(missing_ok=True)
            return
        import secrets  # not for those that need none

        own = path.read_text().partition("\n")[0] if runs and path.exists() else ""
        scratch = path.with_name(f".{_KEY_FILE}")
        scratch.unlink(missing_ok=True)
        scratch.touch(mode=0o600, exist_ok=False)
        scratch.write_text("\n".join([own or secrets.token_urlsafe(32), *keys.in_clear(), ""]))
        scratch.replace(path)
    except OSError as error:
        raise AccessError(f"cannot write {path}", why=error.strerror or "") from error


def endpoint_of(definition: Definition, engine: Path, socket_name: str) -> str:
    """Where the llama-server of a definition answers: a socket in `engine`, or its address. Raises AccessError."""
    if not definition.is_direct:
        return str(engine / socket_name)
    listen, path = parse_listen(definition.listen or DEFAULT_LISTEN), engine / _KEY_FILE
    try:
        own = path.read_text().partition("\n")[0]
    except FileNotFoundError:
        return TcpEndpoint(listen.host, listen.port)
    except OSError as error:
        raise AccessError(f"cannot read {path}", why=error.strerror or "") from error
    return TcpEndpoint(listen.host, listen.port, own, path)


def is_told_as_before(endpoint: str, definition: Definition, engine: Path) -> bool:
    """Whether a llama-server that was started for this endpoint would be told the same address and keys again. Raises
    AccessError.
    """
    if not isinstance(endpoint, TcpEndpoint):
        return True
    now = endpoint_of(definition, engine, "")
    return isinstance(now, TcpEndpoint) and (str(now), now.key) == (str(endpoint), endpoint.key)


def remove_stale(endpoint: str) -> None:
    """llama-server leaves its socket behind and does not start over one."""
    if not isinstance(endpoint, TcpEndpoint):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(endpoint)
