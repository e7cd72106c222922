"""Where a model's files are: systemd's directories under a unit, the user's own elsewhere."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from llamad.errors import AccessError, os_error
from llamad.frozen import dataclass

RUNTIME_ROOT = Path("/run/llamad/model")
STATE_ROOT = Path("/var/lib/llamad/state")

SYSTEM_RUN = Path("/run/llamad")
ROUTER = "router"
"""The folder of the router's models in the run-time directory, beside `model`."""
PUBLIC_LEDGER = Path("public", "ledger.json")


def user_run(environ: Mapping[str, str]) -> Path:
    """Where sockets, locks and status files are of a user who may not write below /run/llamad."""
    return Path(environ.get("XDG_RUNTIME_DIR") or f"/tmp/llamad-{os.getuid()}") / "llamad"


@dataclass(frozen=True)
class Paths:
    """The folders of one model."""

    runtime: Path
    """For the public status and sockets; the child's socket is in `engine/` below it, 0700."""
    state: Path
    cache: Path
    ledger: Path
    public_sockets: Path
    credentials: Path | None

    @classmethod
    def of(cls, name: str, environ: dict[str, str]) -> Paths:
        """The unit's directories; outside systemd the same places if they can be written, else the user's."""
        credentials = Path(environ["CREDENTIALS_DIRECTORY"]) if "CREDENTIALS_DIRECTORY" in environ else None
        run = SYSTEM_RUN
        if "RUNTIME_DIRECTORY" not in environ and not can_make(run / "model" / name):
            run = user_run(environ)
        home = Path(environ.get("HOME", "/nonexistent"))
        ledger = Path("/run/llamad/ledger")
        if not os.access(ledger, os.W_OK):
            ledger = run / "ledger"
        state = _directory(
            environ, "STATE_DIRECTORY", STATE_ROOT, home / ".local/state/llamad", name
        )
        cache = _directory(
            environ, "CACHE_DIRECTORY", Path("/var/cache/llamad"), home / ".cache/llamad", name
        )
        runtime = Path(environ.get("RUNTIME_DIRECTORY", str(run / "model" / name)))
        return cls(runtime, state, cache, ledger, run / "api", credentials)

    @property
    def engine(self) -> Path:
        """The folder of the child's socket."""
        return self.runtime / "engine"

    @property
    def public_ledger(self) -> Path:
        """The copy of the ledger that everybody may read."""
        return self.ledger.parent / PUBLIC_LEDGER

    def credential(self, name: str, kind: str = "api-key") -> Path | None:
        """What systemd imported for this model: `api-key`, `admin-key` or `tls-key`; None where there is none."""
        path = self.credentials / f"llamad.{kind}.{name}" if self.credentials else None
        return path if path is not None and path.exists() else None

    def make(self, *, under_systemd: bool) -> None:
        """Make what is missing. Raises AccessError, BusyError."""
        folders = [(self.engine, 0o700)]
        if not under_systemd:
            if self.public_sockets.parent != SYSTEM_RUN:
                require_own(self.public_sockets.parent.parent)
            folders = [(self.runtime, 0o711), *folders, (self.state, 0o700), (self.cache, 0o700)]
            folders += [(self.ledger, 0o700), (self.public_sockets, 0o755), (self.public_ledger.parent, 0o755)]
        make_folders(folders, "run it as the unit does, or install the package's tmpfiles")


def make_folders(folders: Iterable[tuple[Path, int]], fix: str) -> None:
    """Make those that are missing, each with its mode. Raises AccessError, BusyError with this advice."""
    for folder, mode in folders:
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(mode)  # the umask is 0077
        except OSError as error:
            raise os_error(f"cannot make {folder}", error, fix) from error


def require_own(folder: Path) -> None:
    """Make it, or raise AccessError if others could put things into it: /tmp is everybody's, and who makes the
    folder there before us would own our sockets and locks.
    """
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700, parents=True)
        status = folder.lstat()
    except OSError as error:
        raise os_error(f"cannot make {folder}", error, "set XDG_RUNTIME_DIR to a folder of yours") from error
    mine = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
    if not mine:
        why = "it is another user's, or others may write into it"
        fix = f"set XDG_RUNTIME_DIR to a folder of yours, or remove {folder}"
        raise AccessError(f"{folder} cannot be used for sockets", why=why, fix=fix)


def _directory(environ: dict[str, str], key: str, system: Path, user: Path, name: str) -> Path:
    if key in environ:
        return Path(environ[key])
    return (system if can_make(system / name) else user) / name


def can_make(folder: Path) -> bool:
    """Whether we may write into it, or make it."""
    return os.access(folder if folder.exists() else folder.parent, os.W_OK)
