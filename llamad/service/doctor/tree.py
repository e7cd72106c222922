"""The host's files below a root: `/` on a real host, a folder of a test's elsewhere.

Every path is written as on the host. What is not there, or may not be looked at, reads as nothing.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from llamad.config.access import Mode, SystemAccess
from llamad.frozen import dataclass
from llamad.store import read_regular

_MOST_BYTES = 1 << 20
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "glusterfs", "lustre", "beegfs"})
_NETWORK_FUSE = ("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone")


class Space(NamedTuple):
    """What a file system has left for an ordinary user."""

    free_bytes: int
    free_inodes: int
    """-1 where the file system has no fixed number."""
    read_only: bool


@dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    point: str
    kind: str
    source: str

    @property
    def is_network(self) -> bool:
        """Whether its files come from another host."""
        return self.kind in _NETWORK or self.kind in _NETWORK_FUSE


class Tree:
    """Reads the host's files. Blocking: a dead network file system blocks for ever, see `runner`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._access = SystemAccess()

    def path(self, path: str) -> Path:
        """Where a path of the host really is."""
        return self._root / path.lstrip("/")

    def text(self, path: str) -> str:
        """The text of a file that others may have put there, at most 1 MiB: no link is followed, no pipe waited for."""
        try:
            return read_regular(self.path(path), _MOST_BYTES).decode("utf-8", "replace")
        except OSError:
            return ""

    def trusted_text(self, path: str) -> str:
        """The text of a file that root alone writes, or the kernel: links are followed."""
        try:
            return self.path(path).read_text("utf-8", "replace")
        except OSError:
            return ""

    def names(self, folder: str) -> list[str]:
        """What is in a folder, sorted."""
        try:
            return sorted(os.listdir(self.path(folder)))
        except OSError:
            return []

    def link(self, path: str) -> str:
        """Where a link leads, as it is written; "" for what is none."""
        try:
            return os.readlink(self.path(path))
        except OSError:
            return ""

    def exists(self, path: str) -> bool:
        """Whether something is there, links followed."""
        return os.path.exists(self.path(path))

    def is_folder(self, path: str) -> bool:
        """Whether a folder is there, links followed."""
        return os.path.isdir(self.path(path))

    def mode(self, path: str) -> Mode | None:
        """Owner, group, permissions with the special bits, and ACL; None where it cannot be told."""
        found = self._access.mode(os.fspath(self.path(path)))
        if found is None:
            return None
        try:
            bits = stat.S_IMODE(os.stat(self.path(path)).st_mode)
        except OSError:
            return None
        return Mode(bits, found.uid, found.gid, found.acl)

    def size_bytes(self, path: str) -> int:
        """Of a file; 0 where it cannot be told."""
        try:
            return os.stat(self.path(path)).st_size
        except OSError:
            return 0

    def space(self, path: str) -> Space | None:
        """What is left on the file system of a path; None where it cannot be told."""
        try:
            found = os.statvfs(self.path(path))
        except OSError:
            return None
        inodes = found.f_favail if found.f_files else -1
        return Space(found.f_bavail * found.f_frsize, inodes, bool(found.f_flag & os.ST_RDONLY))

    def mounts(self) -> list[Mount]:
        """What is mounted, in the order of mounting."""
        found = []
        for line in self.trusted_text("/proc/self/mountinfo").splitlines():
            before, _, after = line.partition(" - ")
            left, right = before.split(), after.split()
            if len(left) >= 5 and len(right) >= 2:
                found.append(Mount(_plain(left[4]), right[0], _plain(right[1])))
        return found

    def mount_of(self, path: str) -> Mount | None:
        """The mount that a path is on, told by its name alone: nothing of it is touched."""
        above = [mount for mount in self.mounts() if _is_below(path, mount.point)]
        longest = max((len(mount.point) for mount in above), default=0)
        return next((mount for mount in reversed(above) if len(mount.point) == longest), None)


def _is_below(path: str, folder: str) -> bool:
    return folder == "/" or path == folder or path.startswith(f"{folder}/")


def _plain(text: str) -> str:
    """mountinfo writes spaces and the like as `\\040`."""
    for octal, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(octal, letter)
    return text
