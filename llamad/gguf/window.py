"""Opening a model file and reading it forward, 1 MiB at a time: all the I/O of this room.

`os.preadv` and never mmap: a mapped file that somebody truncates kills the process with SIGBUS.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from llamad.errors import AccessError, BadModelError, LlamadError, ModelMissingError, Where
from llamad.units import MIB, format_bytes

HEADER_LIMIT_BYTES = 256 * MIB
STRING_LIMIT_BYTES = 16 * MIB
INCOMPLETE_FIX = "wait until the download has finished, or fetch the file again"
_BUFFER_BYTES = 1 * MIB
_FIRST_CHUNK_BYTES = MIB // 8
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_BATCH = 64
_TOLERATED_MISSES = 8
_SHORTEST_ARRAY_FOR_BATCHES = 4096
_LONGEST_SHORT_STRING = 63


def bad_model(path: str, why: str, fix: str = "") -> BadModelError:
    """The one shape of every complaint about a file's contents."""
    return BadModelError("cannot use this model", where=Where(path), why=why, fix=fix)


@contextmanager
def opened(path: str) -> Iterator[tuple[int, int]]:
    """The descriptor and size in bytes of a regular file; both stay true if the name is replaced meanwhile.

    Raises ModelMissingError, AccessError, or BadModelError for what is no regular file; a FIFO does not block.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise _cannot_open(path, error) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
            raise bad_model(path, f"it is {kind}, not a file", "name the .gguf file itself")
        yield fd, status.st_size
    finally:
        os.close(fd)


def read_into(fd: int, path: str, view: memoryview, offset: int) -> int:
    """Fill `view` from `offset`; the bytes read, fewer only at the end of the file.

    Raises ModelMissingError on an I/O error: a disk or a mount may come back.
    """
    done = 0
    while done < len(view):
        try:
            count = os.preadv(fd, [view[done:]], offset + done)
        except OSError as error:
            raise ModelMissingError(
                "cannot read the model now",
                where=Where(path),
                why=f"{os.strerror(error.errno or 0)} at byte {offset + done}",
                fix="check the disk or the network mount",
            ) from error
        if not count:
            break
        done += count
    return done


def read_at(fd: int, path: str, count: int, offset: int) -> bytes:
    """Up to `count` bytes at `offset`; fewer only at the end of the file. Raises as `read_into`."""
    buffer = bytearray(count)
    return bytes(buffer[: read_into(fd, path, memoryview(buffer), offset)])


def _cannot_open(path: str, error: OSError | ValueError) -> LlamadError:
    if isinstance(error, ValueError):
        return bad_model(repr(path), "no file can have this name", "correct the path")
    place = Where(path)
    if isinstance(error, PermissionError):
        return AccessError(
            "cannot open the model",
            where=place,
            why="permission denied",
            fix="make it readable for the user that llamad runs as",
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return ModelMissingError(
            "the model file does not exist", where=place, fix="correct the path, or put the file there"
        )
    if error.errno in (errno.ENXIO, errno.ENODEV):
        return bad_model(path, "it is a device, pipe or socket, not a file", "name the .gguf file itself")
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return bad_model(path, os.strerror(error.errno), "correct the path")
    return ModelMissingError("cannot open the model now", where=place, why=os.strerror(error.errno or 0))


class Window:
    """A cursor over a header. It only moves forward and keeps at most 1 MiB of the file in memory.

    Every method raises BadModelError when the file ends first or the header passes 256 MiB.
    """

    def __init__(self, fd: int, path: str, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self._fd = fd
        self._buffer = bytearray(
            _BUFFER_BYTES
        )  # one for the whole file: fresh pages cost more than the reading
        self._base = 0
        self._at = 0
        self._end = 0
        self._chunk_bytes = _FIRST_CHUNK_BYTES

    @property
    def position(self) -> int:
        """Offset of the cursor in the file, in bytes."""
        return self._base + self._at

    @property
    def left_bytes(self) -> int:
        """How many bytes of the file lie after the cursor."""
        return self.size_bytes - self.position

    def unpack(self, layout: struct.Struct) -> tuple[int | float, ...]:
        """The next fields, of at most 1 MiB in all."""
        at = self._need(layout.size)
        self._at = at + layout.size
        return layout.unpack_from(self._buffer, at)

    def u64(self) -> int:
        """The next unsigned 64-bit number."""
        return int(self.unpack(_U64)[0])

    def u32(self) -> int:
        """The next unsigned 32-bit number."""
        return int(self.unpack(_U32)[0])

    def take(self, count: int) -> bytes:
        """A copy of the next `count` bytes, at most 1 MiB."""
        at = self._need(count)
        self._at = at + count
        return bytes(self._buffer[at : at + count])

    def skip(self, count: int) -> None:
        """Move past `count` bytes without reading those that are not in memory yet."""
        if count > self.left_bytes:
            raise self.cut_off()
        self._at += count
        self._check_limit(0)

    def skip_strings(self, count: int) -> None:
        """Move past `count` strings, each a 64-bit length and as many bytes, without copying one."""
        self._check_limit(0)
        while count:
            self._at, count = _hop(self._buffer, self._at, self._end, count)
            if self._at - self._end > STRING_LIMIT_BYTES:
                raise self.bad(f"a string of more than {format_bytes(STRING_LIMIT_BYTES)} in its header")
            if self.left_bytes < 0:
                raise self.cut_off()
            if count:
                self._need(8)

    def cut_off(self) -> BadModelError:
        """The error for a file that ends too early."""
        why = f"the file ends inside its header, after {format_bytes(self.size_bytes)}"
        return self.bad(why, INCOMPLETE_FIX)

    def bad(self, why: str, fix: str = "") -> BadModelError:
        """An error about this file."""
        return bad_model(self.path, why, fix)

    def _check_limit(self, more: int) -> None:
        if self.position + more > HEADER_LIMIT_BYTES:
            why = f"its header is larger than {format_bytes(HEADER_LIMIT_BYTES)}"
            raise self.bad(why, "fetch the file again")

    def _need(self, count: int) -> int:
        """Have `count` bytes at the cursor in memory; the index of the first."""
        if self._at + count <= self._end:
            return self._at
        if count > self.left_bytes:
            raise self.cut_off()
        self._check_limit(count)
        rest = self._buffer[self._at : self._end]
        self._base, self._at, self._end = self.position, 0, len(rest)
        self._buffer[: self._end] = rest
        self._end += self._read(max(count - self._end, self._chunk_bytes))
        self._chunk_bytes = _BUFFER_BYTES
        if self._end < count:  # somebody cut the file while we read
            raise self.cut_off()
        return 0

    def _read(self, wanted: int) -> int:
        """Read up to `wanted` bytes behind those in the buffer; how many came."""
        with memoryview(self._buffer) as view:
            return read_into(
                self._fd, self.path, view[self._end : self._end + wanted], self._base + self._end
            )


def _hop(buffer: bytearray, at: int, end: int, count: int) -> tuple[int, int]:
    """Hop over up to `count` strings from index `at`; the new index and how many are left.

    Stops where the next length lies beyond `end`; so does the index then if the last string reaches that far. A
    vocabulary has half a million strings: most are taken 64 at a time by a regular expression that matches exactly
    64 short strings, in half the time of a loop of ours.
    """
    if count < _SHORTEST_ARRAY_FOR_BATCHES:
        return _hop_singly(buffer, at, end, count)
    match = _short_strings().match
    misses = 0
    while count >= _BATCH:
        found = match(buffer, at, end) if misses < _TOLERATED_MISSES else None
        if found:
            at, count, misses = found.end(), count - _BATCH, 0
            continue
        few = _BATCH if misses < _TOLERATED_MISSES else 16 * _BATCH  # long strings: stop trying for a while
        misses = misses + 1 if misses < _TOLERATED_MISSES else 0
        few = min(few, count)
        at, left = _hop_singly(buffer, at, end, few)
        count -= few - left
        if left:
            return at, count
    return _hop_singly(buffer, at, end, count)


def _hop_singly(buffer: bytearray, at: int, end: int, count: int) -> tuple[int, int]:
    unpack = _U64.unpack_from
    last = end - 8
    for done in range(count):
        if at > last:
            return at, count - done
        at += unpack(buffer, at)[0] + 8
    return at, 0


@cache
def _short_strings() -> re.Pattern[bytes]:
    """Matches 64 strings of 0 to 63 bytes and nothing else: each length's eight bytes, then as many bytes."""
    likely_first = sorted(range(_LONGEST_SHORT_STRING + 1), key=lambda length: abs(length - 8))
    one = b"|".join(re.escape(_U64.pack(n)) + (b".{%d}+" % n if n else b"") for n in likely_first)
    return re.compile(b"(?s:(?:" + one + b"){%d}+)" % _BATCH)
