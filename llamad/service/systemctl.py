"""What verbs ask of systemd for an admin. Blocking."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Protocol

from llamad.errors import AccessError
from llamad.service.overview import ask_systemd

ROUTER_UNIT = "llamad.service"


def unit_of(name: str) -> str:
    """The unit of a model."""
    return f"llamad@{name}.service"


class Units(Protocol):
    """The service manager, as far as verbs need it."""

    def are_there(self) -> bool:
        """Whether there is one at all."""
        ...

    def show(self, name: str) -> dict[str, str]:
        """The properties of a model's unit; {} where nothing is known."""
        ...

    def is_active(self, unit: str) -> bool:
        """Whether a unit runs, starts or stops."""
        ...

    def order(self, *words: str) -> int:
        """Have `systemctl` do something, its output before the admin's eyes; its exit status."""
        ...


class Systemctl:
    """The real one."""

    def are_there(self) -> bool:
        return os.path.isdir("/run/systemd/system") and shutil.which("systemctl") is not None

    def show(self, name: str) -> dict[str, str]:
        return ask_systemd([name]).get(name, {})

    def is_active(self, unit: str) -> bool:
        done = subprocess.run(
            ["systemctl", "show", "--property=ActiveState", "--value", unit],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False,
        )  # fmt: skip
        return done.stdout.strip() in ("active", "activating", "reloading", "deactivating", "refreshing")

    def order(self, *words: str) -> int:
        return subprocess.run(["systemctl", *words], check=False).returncode


def require(units: Units, instead: str) -> None:
    """Raises AccessError where there is no systemd; `instead` is what does the same without it."""
    if not units.are_there():
        raise AccessError("there is no systemd here", why="this verb asks systemd", fix=instead)
