"""A folder of definitions as it would be with other contents in some files, for who must plan before it is written.

All that is not changed is there as a link to what it is. Only root and the service's user can look into the folder.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from llamad.config.access import SERVICE_USER
from llamad.errors import os_error

_RUN = Path("/run")
_FOLDER_MODE, _FILE_MODE = 0o750, 0o640


@contextmanager
def staged(root: Path, contents: Mapping[Path, bytes]) -> Iterator[Path]:
    """A copy of the folder `root` in which these files of it have these contents. Raises AccessError, BusyError.

    Below /run for root, which the unit's sandbox sees (and /tmp it does not); below the user's own /tmp else.
    """
    as_root = os.geteuid() == 0 and os.access(_RUN, os.W_OK)
    try:
        folder = Path(tempfile.mkdtemp(prefix="llamad-staged-", dir=_RUN if as_root else None))
    except OSError as error:
        raise os_error("cannot make a temporary folder", error, "set TMPDIR to a folder of yours") from error
    try:
        try:
            _fill(folder, root, contents)
            _let_in(folder)
        except OSError as error:
            raise os_error(f"cannot copy {root}", error, "run it as root") from error
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill(folder: Path, root: Path, contents: Mapping[Path, bytes]) -> None:
    changed = {file.relative_to(root): content for file, content in contents.items()}
    folders = {file.parts[0] for file in changed if len(file.parts) > 1}
    for name in os.listdir(root) if root.is_dir() else ():
        if name in folders:
            (folder / name).mkdir()
            for inner in os.listdir(root / name):
                (folder / name / inner).symlink_to(os.path.realpath(root / name / inner))
        else:
            (folder / name).symlink_to(os.path.realpath(root / name))
    for file, content in changed.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).unlink(missing_ok=True)
        (folder / file).write_bytes(content)


def _let_in(folder: Path) -> None:
    """What root wrote the service's user reads: a plan is never made as root."""
    group = -1
    if os.geteuid() == 0:
        with contextlib.suppress(KeyError):
            group = pwd.getpwnam(SERVICE_USER).pw_gid
    places = [(folder, _FOLDER_MODE)]
    own = [path for path in folder.rglob("*") if not path.is_symlink()]
    places += [(path, _FOLDER_MODE if path.is_dir() else _FILE_MODE) for path in own]
    for path, mode in places:
        if group >= 0:
            os.chown(path, 0, group)
        path.chmod(mode)
