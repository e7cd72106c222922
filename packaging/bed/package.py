"""llamad's Debian package: built in a bed by an unprivileged user, checked by lintian, kept by its content."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from bed import files
from bed.build import CACHE, cached_root
from bed.container import Bed
from bed.recipe import BUILDER
from bed.report import BedError, say

TREE = "/build/llamad"  # a copy of the checkout in the bed, writable
_PACKAGES = CACHE / "deb"
_KEPT = 4
# Not part of a source tree, wherever they lie.
_SKIPPED = ("__pycache__", ".git", ".*_cache", ".hypothesis", ".pybuild", "*.egg-info", ".venv", "venv")
# What the package is not made of: a change there needs no new build.
_NOT_PACKAGED = (
    "tests",
    "bench",
    ".ci",
    "packaging/bed",
    "packaging/test",
    "packaging/testbed",
    "packaging/demo",
)

_COPY = """
set -e
mkdir -p "$1"
cd /src
tar -c {excludes} . | tar -x --no-same-owner -C "$1"
""".format(excludes=" ".join(f"--exclude='{name}'" for name in _SKIPPED))

_BUILD = """
set -e
cd /build/package
dpkg-buildpackage -us -uc -b >/build/package.log 2>&1 || { tail -n 60 /build/package.log; exit 1; }
lintian --fail-on error,warning --tag-display-limit 0 /build/*.changes
"""


def copy_tree(bed: Bed, target: str = TREE, *, user: str = BUILDER) -> None:
    """Copy the checkout to `target` in the bed, to be written to by `user`. Raises BedError if that fails."""
    if bed.call(["sh", "-c", _COPY, "sh", target], user=user) != 0:
        msg = f"cannot copy /src to {target} in the bed"
        raise BedError(msg)


def provide(bed: Bed, source: Path) -> str:
    """Put the package of this checkout into the bed, built there or kept from before; its path in the bed.

    Raises BedError when the build or lintian fails; what they said is on the terminal then.
    """
    if not (source / "debian/control").is_file():
        msg = f"{source}/debian/control is missing: there is no package to build"
        raise BedError(msg)
    kept = _PACKAGES / f"{cached_root().parent.name}-{_tree_hash(source)}"
    found = next(kept.glob("*.deb"), None)
    if found is None:
        found = _build(bed, kept)
    else:
        say(f"the package of this very tree is built and checked: {found.name}")
    os.utime(kept)
    files.push(bed, found, f"/build/{found.name}")
    return f"/build/{found.name}"


def install_command(package: str) -> list[str]:
    """What installs the package in the bed."""
    return [
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "install",
        "--yes",
        "--quiet",
        "--option=Dpkg::Use-Pty=0",
        package,
    ]


def _build(bed: Bed, kept: Path) -> Path:
    copy_tree(bed, "/build/package")
    if bed.call(["sh", "-c", _BUILD], user=BUILDER) != 0:
        msg = "the package cannot be built, or lintian finds fault with it (see above)"
        raise BedError(msg)
    _, listed = bed.output(["sh", "-c", "ls /build/*.deb"])
    path = Path(listed.strip())
    kept.mkdir(parents=True, exist_ok=True)
    # Pulled under another name first: a *.deb in that folder is whole.
    files.pull(bed, str(path), kept / "new")
    (kept / "new").rename(kept / path.name)
    _forget_old(keep=kept)
    return kept / path.name


def _forget_old(*, keep: Path) -> None:
    others = sorted(
        (path for path in _PACKAGES.iterdir() if path != keep), key=lambda path: path.stat().st_mtime
    )
    for folder in others[: -(_KEPT - 1)]:
        shutil.rmtree(folder)


def _tree_hash(source: Path) -> str:
    digest = hashlib.sha256()
    for path in _packaged_files(source):
        digest.update(f"{path.relative_to(source)}\0{path.stat().st_mode}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _packaged_files(source: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(source):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if _is_packaged(here / name, source))
        yield from (
            here / name
            for name in sorted(names)
            if _is_packaged(here / name, source) and (here / name).is_file()
        )


def _is_packaged(path: Path, source: Path) -> bool:
    skipped = any(path.match(pattern) for pattern in _SKIPPED)
    return not skipped and str(path.relative_to(source)) not in _NOT_PACKAGED
