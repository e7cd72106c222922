"""What systemd says of llamad's units, and which line of a drop-in says what should not be said."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from llamad.config.names import name_of_file
from llamad.service.doctor.tree import Tree
from llamad.service.neighbours import ENABLED_UNITS

if TYPE_CHECKING:
    from llamad.service.doctor.host import Commands

RUNNING = "/run/systemd/system"
DROP_INS = "/etc/systemd/system/llamad@.service.d"
_KEYS = (
    "Id,LoadState,ActiveState,SubState,StatusText,UnitFileState,Result,ExecMainStatus,NeedDaemonReload,DropInPaths,"
    "Slice,LimitMEMLOCK,MemoryMax,MemoryHigh,EffectiveMemoryMax,EffectiveMemoryHigh,TasksMax,EffectiveTasksMax,"
    "PrivateDevices,DevicePolicy,MemoryDenyWriteExecute,NFileDescriptorStore"
)
UNLIMITED = 1 << 62


class Unit:
    """The properties of one unit."""

    def __init__(self, name: str, properties: dict[str, str]) -> None:
        self.name = name
        self.properties = properties

    def __getitem__(self, key: str) -> str:
        return self.properties.get(key, "")

    def number(self, *keys: str) -> int:
        """The smallest of these limits; UNLIMITED where none is set, or none is told."""
        values = (self[key] for key in keys)
        return min((int(value) for value in values if value.isdecimal()), default=UNLIMITED)

    @property
    def is_masked(self) -> bool:
        """Whether it can be started at all."""
        return self["LoadState"] == "masked" or self["UnitFileState"].startswith("masked")

    @property
    def is_active(self) -> bool:
        """Whether it runs, or is about to."""
        return self["ActiveState"] in ("active", "activating", "reloading")

    @property
    def is_enabled(self) -> bool:
        """Whether it starts with the system."""
        return self["UnitFileState"] in ("enabled", "enabled-runtime")


class Systemd:
    """Asks systemd, each unit once. Nothing is known where it does not run."""

    def __init__(self, tree: Tree, commands: Commands) -> None:
        self._tree = tree
        self._commands = commands
        self._units: dict[str, Unit] = {}
        self._lock = threading.Lock()

    @cached_property
    def runs(self) -> bool:
        """Whether systemd runs here."""
        return self._tree.is_folder(RUNNING)

    def units(self, names: Iterable[str]) -> list[Unit]:
        """The units that systemd tells of, in the order of the names."""
        wanted = list(dict.fromkeys(names))
        with self._lock:
            missing = [name for name in wanted if name not in self._units]
            if missing and self.runs:
                self._ask(missing)
            return [self._units[name] for name in wanted if name in self._units]

    def unit(self, name: str) -> Unit:
        """One unit; without properties where nothing is told of it."""
        return next(iter(self.units([name])), Unit(name, {}))

    def _ask(self, names: list[str]) -> None:
        answer = self._commands.ask("systemctl", "show", f"--property={_KEYS}", "--", *names)
        for block in answer.text.split("\n\n") if answer else ():
            pairs = (line.partition("=") for line in block.splitlines())
            found = {key: value for key, _, value in pairs}
            if found.get("Id"):
                self._units[found["Id"]] = Unit(found["Id"], found)

    @cached_property
    def instances(self) -> list[str]:
        """The models whose units systemd has in memory or enabled, by their names."""
        answer = self._commands.ask("systemctl", "list-units", "--all", "--plain", "--no-legend", "llamad@*.service")
        words = [line.split()[0] for line in (answer.text if answer else "").splitlines() if line.split()]
        files = [*words, *self._tree.names(str(ENABLED_UNITS))]
        return sorted({name for file in files if (name := _model_of(file))})

    def line_of(self, unit: Unit, setting: str) -> str:
        """The drop-in of an admin that says `setting=`, the last one if several do; "" where none does."""
        found = ""
        for path in unit["DropInPaths"].split():
            if any(line.strip().startswith(f"{setting}=") for line in self._tree.trusted_text(path).splitlines()):
                found = path
        return found

    def without(self, unit: Unit, *settings: str) -> str:
        """A command that takes the settings out of every drop-in that has them; "" where none has."""
        words = []
        for setting in settings:
            for path in unit["DropInPaths"].split():
                lines = self._tree.trusted_text(path).splitlines()
                if any(line.strip().startswith(f"{setting}=") for line in lines):
                    words.append(f"sed -i '/^ *{setting}=/d' {shlex.quote(path)}")
        return " && ".join([*dict.fromkeys(words), "systemctl daemon-reload"]) if words else ""


def _model_of(unit: str) -> str:
    word = unit.removesuffix(".service")
    return name_of_file(f"{word.removeprefix('llamad@')}.toml") if word.startswith("llamad@") else ""


def unit_of(name: str) -> str:
    """The unit of a model."""
    return f"llamad@{name}.service"
