"""Taking definitions into service and out of it: `llamad enable`, `disable`, `remove`. Blocking."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llamad.config.load import load_definition
from llamad.config.names import check_name, definition_names, offer
from llamad.errors import BusyError, ConfigErrors, LlamadError, UsageError, os_error
from llamad.service.checks import CREDENTIAL_STORES, check_loaded
from llamad.service.paths import ROUTER, STATE_ROOT
from llamad.service.systemctl import ROUTER_UNIT, Units, require, unit_of

Say = Callable[[str], None]
CACHE_ROOT = Path("/var/cache/llamad")
_ENABLED = ("enabled", "enabled-runtime")
_RUNS = ("active", "activating", "reloading", "deactivating")


def require_definition(name: str, root: Path) -> None:
    """Raises ConfigError, UsageError for a name that no definition has."""
    check_name(name, root)
    if name not in definition_names(root):
        fix = offer(name, root) or f"`llamad add {name} FILE.gguf` writes one"
        raise UsageError(f"no definition named {name}", fix=fix)


def enable(name: str, root: Path, units: Units, say: Say, *, sandboxed: bool = True) -> int:
    """Check a definition, then start its unit now and at every boot; the exit status of systemctl.

    Raises ConfigErrors where there is a mistake: then nothing was done.
    """
    require_definition(name, root)
    require(units, f"`llamad serve {name}` serves it in the foreground")
    loaded = load_definition(name, root)
    problems = check_loaded(loaded, root, sandboxed=sandboxed)
    if problems:
        raise ConfigErrors(problems)
    if units.is_active(ROUTER_UNIT):
        say(f"llamad.service finishes what it has of {name}, hands it over, and passes requests on from then on")
    say(f"starting llamad@{name}: this returns when a token was generated")
    status = units.order("enable", "--now", unit_of(name))
    if status:
        say(f"llamad@{name} is not running: `systemctl status llamad@{name}`, `journalctl -u llamad@{name} -x -e`")
    elif loaded.definition.listen:
        say(f"{name} is served on {loaded.definition.listen}, now and after every boot")
    else:
        say(f"{name} is served, now and after every boot")
    return status


def disable(name: str, root: Path, units: Units, say: Say) -> int:
    """Stop a model's unit, now and at boot; the exit status of systemctl. One without a definition is stopped too."""
    check_name(name, root)
    require(units, f"end the `llamad serve {name}` that serves it")
    unit, defined = units.show(name), name in definition_names(root)
    stands = unit.get("ActiveState", "") in (*_RUNS, "failed") or unit.get("UnitFileState", "") in _ENABLED
    if not defined and not stands:
        require_definition(name, root)
    status = units.order("disable", "--now", unit_of(name))
    if status == 0:
        stays = f"; the definition stays: {root / name}.toml" if defined else ""
        say(f"llamad@{name} is stopped and does not start at boot{stays}")
        if units.is_active(ROUTER_UNIT):
            say(f"llamad.service runs: it loads {name} with the next request for it (`llamad remove {name}` ends that)")
    return status


@dataclass(frozen=True)
class Removal:
    """What removing a definition comes to."""

    name: str
    root: Path
    files: tuple[Path, ...]
    """The definition and the folder of its drop-ins."""
    model: str
    """Its model file, which stays; empty where the definition cannot be read."""
    runs: bool
    enabled: bool
    failed: bool
    left: tuple[Path, ...]
    """State and caches, which stay unless purged."""
    beside: tuple[Path, ...]
    """Keys and unit drop-ins, which always stay."""


def removal(name: str, root: Path, units: Units) -> Removal:
    """What there is of a model. Raises UsageError where there is no definition."""
    require_definition(name, root)
    main = root / f"{name}.toml"
    unit = units.show(name) if units.are_there() else {}
    try:
        model = load_definition(name, root).definition.model
    except LlamadError:
        model = ""
    return Removal(
        name, root,
        tuple(path for path in (main, root / f"{name}.toml.d") if os.path.lexists(path)),
        model,
        unit.get("ActiveState", "") in _RUNS,
        unit.get("UnitFileState", "") in _ENABLED,
        unit.get("ActiveState", "") == "failed",
        tuple(path for path in places_of(name) if os.path.lexists(path)),
        tuple(path for path in _kept_beside(name) if path.exists()),
    )  # fmt: skip


def places_of(name: str) -> tuple[Path, ...]:
    """Where units and the router keep what they learned and cached of a model."""
    return (
        STATE_ROOT / name, STATE_ROOT.parent / ROUTER / name, CACHE_ROOT / name, CACHE_ROOT / ".router" / name
    )  # fmt: skip


def _kept_beside(name: str) -> list[Path]:
    kinds = ("api-key", "admin-key", "tls-key")
    credentials = [Path(store) / f"llamad.{kind}.{name}" for store in CREDENTIAL_STORES for kind in kinds]
    return [*credentials, Path(f"/etc/systemd/system/llamad@{name}.service.d")]


def describe(found: Removal, *, purge: bool, backup: bool) -> list[str]:
    """What `remove` will do, a line each."""
    lines = []
    if found.runs:
        lines.append(f"llamad@{found.name} is running: it finishes its requests and is stopped")
    if found.enabled:
        lines.append(f"llamad@{found.name} is enabled: it is disabled")
    names = ", ".join(map(str, found.files))
    lines.append(f"moved to {backup_of(found.files[0])}: {names}" if backup else f"deleted: {names}")
    if found.left and purge:
        lines.append(f"deleted, what was learned and cached: {', '.join(map(str, found.left))}")
    kept = [found.model] if found.model else []
    kept += [] if purge else list(map(str, found.left))
    kept += list(map(str, found.beside))
    if kept:
        lines.append(f"kept: {', '.join(kept)}")
    return lines


def backup_of(file: Path) -> Path:
    """`NAME.toml.removed`, or the first of its numbered followers that is free; no name of a definition."""
    candidate, number = file.with_name(f"{file.name}.removed"), 1
    while os.path.lexists(candidate) or os.path.lexists(f"{candidate}.d"):
        number += 1
        candidate = file.with_name(f"{file.name}.removed.{number}")
    return candidate


def remove(found: Removal, units: Units, say: Say, *, purge: bool, backup: bool) -> int:
    """Carry it out; the exit status. Raises BusyError where the unit cannot be stopped, AccessError."""
    name = found.name
    if found.runs or found.enabled:
        status = units.order("disable", "--now", unit_of(name))
        if status:
            fix = f"`systemctl status llamad@{name}`; nothing was removed"
            raise BusyError(f"llamad@{name} cannot be stopped", why=f"systemctl ended with {status}", fix=fix)
    with _removing(name):
        _take_away(found.files, backup=backup)
    if found.failed:
        units.order("reset-failed", unit_of(name))
    status = 0
    if units.are_there() and units.is_active(ROUTER_UNIT):
        say("llamad.service is told: it unloads the model and knows it no more")
        status = units.order("reload", ROUTER_UNIT)
    with _removing(name):  # last: who has the model loaded writes there
        for folder in filter(os.path.lexists, found.left if purge else ()):
            shutil.rmtree(folder)
    return status


@contextlib.contextmanager
def _removing(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise os_error(f"cannot remove {error.filename or name}", error, "run it as root") from error


def _take_away(files: tuple[Path, ...], *, backup: bool) -> None:
    saved = backup_of(files[0])
    for path in files:  # the definition first: without it the drop-ins count for nothing
        is_folder = path.is_dir() and not path.is_symlink()
        if backup:
            path.rename(f"{saved}.d" if path != files[0] else saved)
        elif is_folder:
            shutil.rmtree(path)
        else:
            path.unlink()
