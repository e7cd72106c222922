"""What the checks see of a host: its files, its commands, its users, its definitions. Each is a seam for tests."""

from __future__ import annotations

import grp
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from llamad.config.access import SERVICE_USER, Identity, SystemAccess
from llamad.config.loaded import Loaded
from llamad.config.names import DEFAULT_ROOT, definition_names
from llamad.engine.files import backends
from llamad.errors import LlamadError
from llamad.hardware.device import Probe
from llamad.service.doctor.systemd import Systemd
from llamad.service.doctor.tree import Tree

ASK_S = 5.0


@dataclass(frozen=True)
class Answer:
    """What a command said. `status` is its exit status, or the negative number of the signal that ended it."""

    status: int
    text: str
    errors: str = ""


class Commands(Protocol):
    """Runs programs of the host."""

    def ask(self, *argv: str, deadline_s: float = ASK_S, told: str = "") -> Answer | None:
        """What a program says that is `told` this; None where it is not there, cannot be run or is late."""
        ...

    def has(self, program: str) -> bool:
        """Whether a program of this name is installed."""
        ...


class Accounts(Protocol):
    """Users and groups."""

    def identity(self, user: str) -> Identity | None:
        """The user with all groups, or None where the system does not know it."""
        ...

    def group(self, name: str) -> int | None:
        """The number of a group, or None."""
        ...


class Sandbox(Protocol):
    """Runs an engine never as root: as the unit would where that can be had, else as who we are."""

    is_the_units: bool
    """Whether what is run sees what the unit sees."""

    def run(self, name: str, argv: Sequence[str], env: Mapping[str, str], deadline_s: float, /) -> Answer | None:
        """What a program says in the sandbox of llamad@NAME; None where it cannot be run, or is late."""
        ...


class SystemCommands:
    """The real ones, in the language that they are parsed in."""

    def ask(self, *argv: str, deadline_s: float = ASK_S, told: str = "") -> Answer | None:
        import subprocess

        env = {**os.environ, "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}
        try:
            done = subprocess.run(
                argv, capture_output=True, check=False, timeout=deadline_s, env=env, input=told.encode()
            )
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return None
        return Answer(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))

    def has(self, program: str) -> bool:
        return shutil.which(program) is not None


class SystemAccounts(SystemAccess):
    """The real ones."""

    def group(self, name: str) -> int | None:
        try:
            return grp.getgrnam(name).gr_gid
        except KeyError:
            return None


@dataclass
class Host:
    """A host. Safe to use from several threads."""

    sandbox: Sandbox
    nvml: Probe
    config: Path = DEFAULT_ROOT
    tree: Tree = field(default_factory=Tree)
    commands: Commands = field(default_factory=SystemCommands)
    accounts: Accounts = field(default_factory=SystemAccounts)
    is_root: bool = field(default_factory=lambda: os.geteuid() == 0)
    now_s: Callable[[], float] = time.time
    own_command: Sequence[str] = ("llamad",)
    """How llamad is run again."""
    backends_of: Callable[[str, Mapping[str, str]], frozenset[str]] = backends
    """The backends that an engine can load in an environment."""
    only: str = ""
    """The definition that is asked about; empty for all."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, Loaded | LlamadError] = {}
        self.systemd = Systemd(self.tree, self.commands)

    @cached_property
    def names(self) -> list[str]:
        """The definitions that are asked about."""
        return [self.only] if self.only else definition_names(self.config)

    @cached_property
    def user(self) -> Identity | None:
        """Who serves models; None where the package's user is missing."""
        return self.accounts.identity(SERVICE_USER)

    def loaded(self, name: str) -> Loaded | LlamadError:
        """A definition, or what is wrong with it. Read once."""
        from llamad.config.load import load_definition

        with self._lock:
            if name not in self._kept:
                try:
                    self._kept[name] = load_definition(name, self.config)
                except LlamadError as problem:
                    self._kept[name] = problem
            return self._kept[name]

    def usable(self) -> list[Loaded]:
        """The definitions that can be loaded."""
        found = [self.loaded(name) for name in self.names]
        return [one for one in found if isinstance(one, Loaded)]
