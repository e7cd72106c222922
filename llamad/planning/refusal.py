"""Why there is no plan: typed refusals that say what is missing and which single change would do. Pure."""

from __future__ import annotations

from llamad.errors import BusyError, ConfigError, DeviceError
from llamad.frozen import dataclass
from llamad.planning.plan import Parts
from llamad.units import MIB


@dataclass(frozen=True)
class Change:
    """One edit of the definition after which the same machine has room. `value` is what TOML would hold."""

    key: str
    value: int | str | bool | tuple[str, ...]
    note: str = ""

    def __str__(self) -> str:
        return f"{self.key} = {_toml(self.value)} would fit{self.note}"


class NoDevice(DeviceError):
    """There is no device, or none of those that the definition names. One may appear later."""


class PromiseError(ConfigError):
    """Values of the definition that cannot be kept together, on any machine or with this file."""


class NoRoom:
    """What refusals for lack of memory have in common."""

    changes: tuple[Change, ...] = ()
    """Each of them alone makes the plan fit; the least intrusive first."""
    missing_bytes: int = 0
    """How much more the smallest allowed plan needs where it lacks most."""
    place: str = ""
    """Where it lacks: a device's name, or `host`."""


class NoRoomNow(NoRoom, BusyError):
    """It would fit if the memory were not in use. May become free."""


class NoSettlement(BusyError):
    """llama-server's figures changed from question to question: none of the plans was confirmed."""


class NeverFits(NoRoom, ConfigError):
    """It does not fit even if the machine were empty: only a change of the definition helps."""


@dataclass(frozen=True)
class Lack:
    """The facts of a refusal for lack of memory. `place` lacks `missing_bytes` for `need`."""

    model: str
    place: str
    need: Parts
    at: str
    """The smallest plan that the definition allows, in words."""
    free_bytes: int
    budget_bytes: int
    missing_bytes: int
    cache_ram_bytes: int = 0


def no_room(lack: Lack, changes: tuple[Change, ...], *, ever: bool) -> NoRoomNow | NeverFits:
    """The error to raise: `ever` = an empty machine would have room."""
    what = f"{lack.model} does not fit {'in host memory' if lack.place == 'host' else lack.place}"
    what += " at this moment" if ever else " even if nothing else used it"
    fixes = [f"free {_mib(lack.missing_bytes)} of it"] if ever else []
    fixes += [str(change) for change in changes]
    if lack.missing_bytes < lack.need.weights_bytes and not lack.cache_ram_bytes:
        fixes.append(f"a quantisation of the model that is {_mib(lack.missing_bytes)} smaller would fit")
    kind = NoRoomNow if ever else NeverFits
    error = kind(what, why=_why(lack), fix="; ".join(fixes))
    error.changes = changes
    error.missing_bytes = lack.missing_bytes
    error.place = lack.place
    return error


def _why(lack: Lack) -> str:
    parts = lack.need
    words = [
        ("weights", parts.weights_bytes),
        ("context", parts.context_bytes),
        ("compute", parts.compute_bytes),
        ("overhead", parts.overhead_bytes),
        ("margin", parts.margin_bytes),
        ("vision projector", parts.vision_bytes),
        ("adapters", parts.adapters_bytes),
        ("draft model", parts.draft_bytes),
        ("prompt cache", lack.cache_ram_bytes),
    ]
    listed = ", ".join(f"{word} {size // MIB}" for word, size in words if size)
    total = parts.total_bytes + lack.cache_ram_bytes
    text = f"{lack.at} needs {_mib(total)} ({listed}), {_mib(lack.free_bytes)} are free"
    if lack.budget_bytes < lack.free_bytes:
        text += f" of which {_mib(max(0, lack.budget_bytes))} may be used"
    return text


def _mib(size_bytes: int) -> str:
    return f"{-(-size_bytes // MIB)} MiB"


def _toml(value: int | str | bool | tuple[str, ...]) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{name}"' for name in value) + "]"
    return f'"{value}"'
