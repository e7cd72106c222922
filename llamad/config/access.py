"""Whether the user that serves a model can reach its file, and if not, what exactly stands in the way.

The unit's sandbox hides whole trees (ProtectHome=, PrivateTmp=), where the kernel says no more than "no such
file"; and `llamad check` is often run by root, to whom every file is readable. So the answer is computed, from
modes, owners, groups and ACLs, for the user that matters.
"""

from __future__ import annotations

import os
import pwd
import struct
from collections.abc import Iterator
from dataclasses import field
from pathlib import PurePosixPath
from typing import Protocol

from llamad.errors import AccessError, LlamadError, Where
from llamad.frozen import dataclass

SERVICE_USER = "_llamad"
_HIDDEN_BY = (
    ("/home", "ProtectHome="),
    ("/root", "ProtectHome="),
    ("/run/user", "ProtectHome="),
    ("/tmp", "PrivateTmp="),
    ("/var/tmp", "PrivateTmp="),
)
_MOVE = "move it to /var/lib/llamad/models"
_READ, _SEARCH = 4, 1
_ACL_VERSION = 2
_ACL_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK = 0x01, 0x02, 0x04, 0x08, 0x10


@dataclass(frozen=True)
class Identity:
    """A user with all groups."""

    name: str
    uid: int
    gids: frozenset[int]


@dataclass(frozen=True)
class Mode:
    """What decides about access to one file or folder."""

    permissions: int
    uid: int
    gid: int
    acl: bytes = field(default=b"", repr=False)
    """The raw value of `system.posix_acl_access`; empty where there is none."""


class Access(Protocol):
    """The parts of the system that the answer depends on."""

    def identity(self, user: str) -> Identity | None:
        """The user, or None where the system does not know it."""
        ...

    def mode(self, path: str) -> Mode | None:
        """Of a path, links followed; None where it does not exist or cannot be looked at."""
        ...

    def real_path(self, path: str) -> str:
        """The path without links."""
        ...


class SystemAccess:
    """The real system."""

    def identity(self, user: str) -> Identity | None:
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            return None
        return Identity(user, entry.pw_uid, frozenset(os.getgrouplist(user, entry.pw_gid)))

    def mode(self, path: str) -> Mode | None:
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return None
        return Mode(status.st_mode & 0o777, status.st_uid, status.st_gid, _acl_of(path))

    def real_path(self, path: str) -> str:
        return os.path.realpath(path)


def access_problem(
    path: str, user: str = SERVICE_USER, *, sandboxed: bool = True, access: Access | None = None
) -> LlamadError | None:
    """Why `user` could not read the file at `path`; None where nothing stands in the way or nothing can be told.

    With `sandboxed` the file must also lie outside what the unit hides. A missing file is not reported here.
    """
    access = access or SystemAccess()
    for place in dict.fromkeys((path, access.real_path(path))):
        problem = _hidden(place, path) if sandboxed else None
        if problem:
            return problem
    identity = access.identity(user)
    if identity is None or identity.uid == 0:
        return None
    for place in dict.fromkeys((path, access.real_path(path))):
        problem = _unreachable(place, identity, access)
        if problem:
            return problem
    return None


def _hidden(place: str, path: str) -> LlamadError | None:
    for tree, setting in _HIDDEN_BY:
        if PurePosixPath(place).is_relative_to(tree):
            lies = f"it lies in {tree}" if place == path else f"it leads to {place}, in {tree}"
            why = f"{lies}, which the unit does not see ({setting})"
            return AccessError("cannot be read by the service", where=Where(path), why=why, fix=_MOVE)
    return None


def _unreachable(place: str, identity: Identity, access: Access) -> LlamadError | None:
    for folder in reversed(PurePosixPath(place).parents):
        mode = access.mode(str(folder))
        if mode is None:
            return None
        if not may(identity, mode, _SEARCH):
            why = f"the folder {folder} is closed to the user {identity.name}"
            quoted = _quoted(str(folder))
            fix = f"`setfacl -m u:{identity.name}:x {quoted}`, `chmod o+x {quoted}`, or {_MOVE}"
            return AccessError("cannot be read by the service", where=Where(place), why=why, fix=fix)
    mode = access.mode(place)
    if mode is None or may(identity, mode, _READ):
        return None
    why = f"the file is not readable for the user {identity.name}"
    quoted = _quoted(place)
    fix = f"`setfacl -m u:{identity.name}:r {quoted}`, or `chmod a+r {quoted}`"
    return AccessError("cannot be read by the service", where=Where(place), why=why, fix=fix)


def _quoted(path: str) -> str:
    """As a word of sh, without the back quotes that mark commands in an advice."""
    import shlex  # only for what is refused: a start has no time for it

    return shlex.quote(path).replace("`", "'\"$(printf '\\140')\"'")


def may(identity: Identity, mode: Mode, wanted: int) -> bool:
    """Whether the kernel would grant `wanted` (4 read, 1 search): the algorithm of acl(5)."""
    entries = list(_acl_entries(mode.acl))
    if not entries:
        return _by_mode(identity, mode) & wanted == wanted
    mask = next((bits for tag, bits, _ in entries if tag == _MASK), 7)
    if identity.uid == mode.uid:
        return any(tag == _USER_OBJ and bits & wanted == wanted for tag, bits, _ in entries)
    for tag, bits, who in entries:
        if tag == _USER and who == identity.uid:
            return bits & mask & wanted == wanted
    groups = [
        bits
        for tag, bits, who in entries
        if (tag == _GROUP_OBJ and mode.gid in identity.gids) or (tag == _GROUP and who in identity.gids)
    ]
    if groups:
        return any(bits & mask & wanted == wanted for bits in groups)
    return mode.permissions & wanted == wanted


def _by_mode(identity: Identity, mode: Mode) -> int:
    if identity.uid == mode.uid:
        return mode.permissions >> 6 & 7
    if mode.gid in identity.gids:
        return mode.permissions >> 3 & 7
    return mode.permissions & 7


def _acl_entries(raw: bytes) -> Iterator[tuple[int, int, int]]:
    """Tag, permissions and id of each entry of an ACL as the kernel stores it; nothing for what is none."""
    body = raw[4:]
    if int.from_bytes(raw[:4], "little") != _ACL_VERSION or len(body) % _ACL_ENTRY.size:
        return
    yield from _ACL_ENTRY.iter_unpack(body)


def _acl_of(path: str) -> bytes:
    try:
        return os.getxattr(path, "system.posix_acl_access")
    except OSError:
        return b""
