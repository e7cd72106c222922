"""Which files a model consists of, by name, and whether they are still the ones that were read."""

from __future__ import annotations

import os
import re

_SHARD = re.compile(r"(?s)(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_SHARDS_LIMIT = 1000


def shard_of(path: str) -> tuple[str, int, int] | None:
    """Prefix, number (from 1) and count of a shard by its name; None for any other name."""
    match = _SHARD.fullmatch(path)
    return (match["prefix"], int(match["number"]), int(match["count"])) if match else None


def shard_path(prefix: str, number: int, count: int) -> str:
    """The name that llama.cpp gives a shard."""
    return f"{prefix}-{number:05d}-of-{count:05d}.gguf"


def files_of(path: str) -> list[str]:
    """All files of the model that `path` names, itself where its name is no shard's."""
    shard = shard_of(path)
    if shard is None:
        return [path]
    prefix, _, count = shard
    return [shard_path(prefix, number, count) for number in range(1, min(count, _SHARDS_LIMIT) + 1)]


def identity(path: str) -> str:
    """Device, inode, size, times of modification and change of all the model's files; empty if one is not there.

    The time of change cannot be set back as that of modification can.
    """
    parts = []
    for file in files_of(path):
        try:
            status = os.stat(file)
        except (OSError, ValueError):
            return ""
        parts.append(
            f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
        )
    return " ".join(parts)


def lasting_identity(path: str) -> str:
    """Device, inode, size and time of modification of all the model's files: what stays when one is given another name,
    owner or mode. Empty if one is not there.
    """
    return " ".join(part.rpartition(":")[0] for part in identity(path).split(" "))
