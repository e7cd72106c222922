"""Where the router's files are. Each model has folders of its own there, apart from those of its unit: systemd makes
and removes the unit's as root, and would remove what the router still uses.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from llamad.service.paths import ROUTER, SYSTEM_RUN, Paths, can_make, make_folders, require_own, user_run

CACHE = ".router"
"""Beside the caches of models, whose names do not begin with a point."""
HOST_CREDENTIAL = "llamad"
"""`llamad.api-key.llamad`: a name that no model has."""
_SYSTEM_STATE = Path("/var/lib/llamad") / ROUTER
_SYSTEM_CACHE = Path("/var/cache/llamad") / CACHE


@dataclass(frozen=True)
class RouterPaths:
    """The folders below which each model has its own."""

    run: Path
    """`/run/llamad`, or the user's."""
    runtime: Path
    state: Path
    cache: Path
    ledger: Path
    credentials: Path | None

    @classmethod
    def of(cls, environ: dict[str, str]) -> RouterPaths:
        """The unit's directories; outside systemd the same places if they can be written, else the user's."""
        credentials = Path(environ["CREDENTIALS_DIRECTORY"]) if "CREDENTIALS_DIRECTORY" in environ else None
        home = Path(environ.get("HOME", "/nonexistent"))
        ledger = SYSTEM_RUN / "ledger"
        run = SYSTEM_RUN if os.access(ledger, os.W_OK) else user_run(environ)
        return cls(
            run,
            Path(environ.get("RUNTIME_DIRECTORY", str(_own_run(environ) / ROUTER))),
            _directory(environ, "STATE_DIRECTORY", _SYSTEM_STATE, home / ".local/state/llamad-router"),
            _directory(environ, "CACHE_DIRECTORY", _SYSTEM_CACHE, home / ".cache/llamad" / CACHE),
            run / "ledger",
            credentials,
        )

    def make(self) -> None:
        """Make what is missing. Raises AccessError, BusyError."""
        if self.run != SYSTEM_RUN:
            require_own(self.run.parent)
        folders = [(self.runtime, 0o711), (self.state, 0o700), (self.cache, 0o700), (self.ledger, 0o700)]
        folders += [(self.run / "api", 0o755), (self.run / "public", 0o755)]
        make_folders(folders, "run it as llamad.service does, or install the package's tmpfiles")

    def of_model(self, name: str) -> Paths:
        """The folders of one model."""
        return Paths(
            self.runtime / name, self.state / name, self.cache / name, self.ledger, self.run / "api", self.credentials
        )

    def unit_state(self, name: str) -> Path:
        """Where the model's own unit, or a `llamad serve NAME` of this user, keeps what it learned."""
        if self.state == _SYSTEM_STATE:
            return _SYSTEM_STATE.with_name("state") / name
        return self.state.with_name("llamad") / name

    def unit_runtime(self, name: str) -> Path:
        """The runtime directory of the model's own unit, or of a `llamad serve NAME` of this user."""
        return self.run / "model" / name


def _own_run(environ: dict[str, str]) -> Path:
    return SYSTEM_RUN if can_make(SYSTEM_RUN / ROUTER) else user_run(environ)


def _directory(environ: dict[str, str], key: str, system: Path, user: Path) -> Path:
    if key in environ:
        return Path(environ[key])
    return system if can_make(system) else user
