"""Copies files and folders into a bed and out of it, holes and modes included."""

from __future__ import annotations

import subprocess
from pathlib import Path, PurePosixPath

from bed.container import Bed
from bed.report import BedError

# $1 the place, $2 the name in the archive on standard input. As with cp, a place that is a folder receives the copy.
_PLACE = """
set -e
if [ -d "$1" ]; then target=$1/$2; else target=$1; fi
mkdir -p "$(dirname "$target")"
unpacked=$(mktemp -d "$(dirname "$target")/.copy.XXXXXX")
trap 'rm -rf "$unpacked"' EXIT
tar -x --no-same-owner -C "$unpacked"
rm -rf "$target"
mv -T "$unpacked/$2" "$target"
"""


def push(bed: Bed, source: Path, target: str) -> None:
    """Copy `source` of the host to `target` in the bed. Raises BedError if it cannot be read or written."""
    source = source.resolve()
    if not source.exists():
        msg = f"{source}: no such file on this machine"
        raise BedError(msg)
    _pipe(
        _pack(str(source.parent), source.name),
        bed.command(["sh", "-c", _PLACE, "sh", target, source.name]),
        target,
    )


def pull(bed: Bed, source: str, target: Path) -> None:
    """Copy `source` of the bed to `target` on the host. Raises BedError if it cannot be read or written."""
    path = PurePosixPath(source)
    pack = bed.command(_pack(str(path.parent), path.name))
    _pipe(pack, ["sh", "-c", _PLACE, "sh", str(target.absolute()), path.name], source)


def _pack(folder: str, name: str) -> list[str]:
    return ["tar", "-c", "--sparse", "-C", folder, "--", name]


def _pipe(reader: list[str], writer: list[str], what: str) -> None:
    with subprocess.Popen(reader, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as packing:
        done = subprocess.run(writer, stdin=packing.stdout, check=False)
    if packing.returncode or done.returncode:
        msg = f"cannot copy {what} (status {packing.returncode} and {done.returncode})"
        raise BedError(msg)
