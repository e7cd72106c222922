"""A file that is being fetched: `NAME.part` beside the place where it will be, and `NAME.part.json`, what is in it.

The name of a model belongs to whole files alone. Which bytes are there is written down only after they are on the
disk, so that whatever ends a download (a signal, a crash, a power cut) costs the last few seconds of it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import threading
from pathlib import Path

from llamad.errors import AccessError, BusyError, LlamadError, UsageError, Where, os_error
from llamad.frozen import dataclass
from llamad.store import load_cache, store_cache, sync_folder
from llamad.text import shown
from llamad.units import format_bytes

_MODE = 0o644
_PART_MODE = 0o600
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE
_FORMAT = 1
_SPANS_MOST = 10_000
Span = tuple[int, int]
"""From a byte up to, without, another."""


@dataclass(frozen=True)
class Content:
    """What tells one content from another: two of the same are the same bytes.

    `key` names the source without its secrets; `mark` is what its server calls this content (an ETag or a date), or
    the published hash; empty where there is neither, and then nothing can be gone on with.
    """

    key: str
    mark: str
    size_bytes: int


class Part:
    """Holds the lock of one unfinished file. Safe to write to from several threads."""

    def __init__(self, target: Path) -> None:
        """Opens or makes `NAME.part`. Raises BusyError where another process has it, AccessError."""
        self.target = target
        self.path = target.with_name(target.name + ".part")
        self._state = target.with_name(target.name + ".part.json")
        self._lock = threading.Lock()
        self._spans: list[Span] = []
        self._content: Content | None = None
        self.generation = 0
        """Counts contents: what was read of a former one is not written into the next."""
        self._fd = self._opened()

    def begin(self, content: Content) -> int:
        """Go on with what is there of this content, or begin anew; the bytes that are kept.

        Raises BusyError where the disk has no room for the rest, which is kept for us from then on where the file
        system can do that.
        """
        kept = self._kept(content)
        if not kept:
            self.forget()
        with self._lock:
            self._content, self._spans = content, kept
        self._require_room(content.size_bytes)
        return self.done_bytes

    def forget(self) -> None:
        """Nothing of what is there is right."""
        with self._lock:
            self._spans = []
            self.generation += 1
            if self._fd >= 0:
                os.ftruncate(self._fd, 0)
        self._state.unlink(missing_ok=True)

    @property
    def done_bytes(self) -> int:
        """How much is there."""
        with self._lock:
            return sum(end - start for start, end in self._spans)

    def missing(self) -> list[Span]:
        """What is not there yet, in order."""
        assert self._content is not None
        with self._lock:
            edges = [0, *(edge for span in self._spans for edge in span), self._content.size_bytes]
        pairs = zip(edges[::2], edges[1::2], strict=True)
        return [(start, end) for start, end in pairs if start < end]

    def write(self, start: int, data: bytes, generation: int) -> None:
        """Bytes of this content at their place. Raises BusyError for a full disk, and once it is forgotten."""
        try:
            with self._lock:
                if self._fd < 0 or generation != self.generation:
                    raise BusyError("not wanted any more")
                done = 0
                while done < len(data):
                    done += os.pwrite(self._fd, data[done:] if done else data, start + done)
                self._spans = _with(self._spans, (start, start + len(data)))
        except OSError as error:
            raise self._problem("cannot write", error) from error

    def checkpoint(self) -> None:
        """Have what is there by now outlive us. Raises BusyError, AccessError."""
        content = self._content
        with self._lock:
            spans = list(self._spans)
        if content is None or not spans:
            return
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._problem("cannot write", error) from error
        store_cache(
            self._state,
            {
                "format": _FORMAT,
                "key": content.key,
                "mark": content.mark,
                "size": content.size_bytes,
                "done": spans,
            },
        )

    def publish(self) -> None:
        """Give the whole file its name, which nothing else may have. Raises UsageError, BusyError, AccessError."""
        try:
            if not _same(self._fd, self.path):
                raise AccessError(
                    "cannot store", where=Where(str(self.path)), why="somebody else moved it away"
                )
            os.fchmod(self._fd, _MODE)
            os.fsync(self._fd)
            self._link()
            sync_folder(self.target.parent)
        except FileExistsError:
            fix = "remove it, or name another folder"
            raise UsageError("is there already", where=Where(str(self.target)), fix=fix) from None
        except OSError as error:
            raise self._problem("cannot store", error) from error
        self._state.unlink(missing_ok=True)
        self.close()

    def discard(self) -> None:
        """Leave nothing behind."""
        self._state.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of it; what is there stays, and nothing of a file that has nothing in it."""
        with self._lock:
            if self._fd < 0:
                return
            if os.fstat(self._fd).st_size == 0 and _same(self._fd, self.path):
                self.path.unlink()
                self._state.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1

    def _opened(self) -> int:
        """The descriptor, with the lock, of the file that has the name."""
        while True:
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                fd = os.open(self.path, flags, _PART_MODE)
            except OSError as error:
                raise self._problem("cannot write", error) from error
            try:
                self._judge(fd)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _same(fd, self.path):
                    return fd
            except BlockingIOError:
                os.close(fd)
                raise BusyError(
                    f"{shown(self.target.name, 200)} is being fetched already",
                    why=f"another process has {self.path}",
                    fix="wait for it, or end it: what it has is kept",
                ) from None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # it was finished or removed between the two steps

    def _judge(self, fd: int) -> None:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or status.st_uid != os.geteuid():
            why = "it is no file of ours"
            raise AccessError("cannot write", where=Where(str(self.path)), why=why, fix="remove it")

    def _kept(self, content: Content) -> list[Span]:
        raw = load_cache(self._state, owner=os.geteuid())
        if not content.mark or not isinstance(raw, dict):
            return []
        told = (raw.get("format"), raw.get("key"), raw.get("mark"), raw.get("size"))
        if told != (_FORMAT, content.key, content.mark, content.size_bytes):
            return []
        return _sane(raw.get("done"), min(content.size_bytes, os.fstat(self._fd).st_size))

    def _require_room(self, size_bytes: int) -> None:
        status, folder = os.fstat(self._fd), os.fstatvfs(self._fd)
        lacking = size_bytes - status.st_blocks * 512
        free = folder.f_bavail * folder.f_frsize
        if lacking > free or not _reserve(self._fd, size_bytes):
            raise no_room(shown(self.target.name, 200), lacking, free, self.target.parent)

    def _link(self) -> None:
        """Unlike a rename, a link fails where the name is taken; some file systems have none."""
        try:
            os.link(self.path, self.target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            if os.path.lexists(self.target):
                raise FileExistsError(errno.EEXIST, "exists", str(self.target)) from None
            os.rename(self.path, self.target)
        else:
            os.unlink(self.path)

    def _problem(self, what: str, error: OSError) -> LlamadError:
        found = os_error(what, error, "run it as root, or name a folder that you may write: --to FOLDER")
        found.where = Where(str(self.path))
        return found


def no_room(what: str, lacking_bytes: int, free_bytes: int, folder: Path) -> BusyError:
    """The error for a disk that is too small."""
    why = f"{format_bytes(max(0, lacking_bytes))} more are needed, {format_bytes(free_bytes)} are free in {folder}"
    return BusyError(f"no room for {what}", why=why, fix="make room, or --to another folder")


def _same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _reserve(fd: int, size_bytes: int) -> bool:
    """Have the file system keep room for us; False where it has none. True where it cannot do such a thing.

    Not `os.posix_fallocate`: where a file system cannot, that one writes into every block.
    """
    library = ctypes.CDLL(None, use_errno=True)
    call = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if call is None or not size_bytes:
        return True
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    while call(fd, _KEEP_SIZE, 0, size_bytes) != 0:
        problem = ctypes.get_errno()
        if problem != errno.EINTR:
            return problem not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return True


def _with(spans: list[Span], new: Span) -> list[Span]:
    """The spans and one more, joined where they touch."""
    start, end = new
    kept = []
    for one in spans:
        if one[1] < start or one[0] > end:
            kept.append(one)
        else:
            start, end = min(start, one[0]), max(end, one[1])
    return sorted([*kept, (start, end)])


def _sane(raw: object, most: int) -> list[Span]:
    """Spans that a file may hold; [] for anything else."""
    spans: list[Span] = []
    last = -1
    for pair in raw if isinstance(raw, list) and len(raw) <= _SPANS_MOST else ():
        match pair:
            case [int(start), int(end)] if last < start < end <= most:
                spans.append((start, end))
                last = end
            case _:
                return []
    return spans
