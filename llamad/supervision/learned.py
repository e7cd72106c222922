"""What former starts of a model taught, on disk: corrections by device, real bytes, out-of-memory events.

One TOML file in the model's state folder, replaced in one step. It may always be missing; what is there and
cannot be used is set aside with a warning, and never keeps a model from being served. What was learned counts
for one key only (model, engine, driver, flags): after an upgrade the first start plans by formulas again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from llamad.config.definition import Definition
from llamad.engine.arguments import those_for_devices
from llamad.planning.plan import Parts, Plan
from llamad.store import read_regular
from llamad.units import MIB, format_bytes

if TYPE_CHECKING:
    from llamad.supervision.step_down import Step  # steps are seldom, and a start waits for what it imports

FILE_NAME = "learned.toml"
FORMAT = 1
_LIMIT_BYTES = 1 << 20
_KEEP_EVENTS = 50
LEAST_OVERHEAD_BYTES = 64 * MIB
MOST_OVERHEAD_BYTES = 4 << 30
"""A driver's context takes 180 to 605 MiB of the cards that figures are known of."""
_NOTHING: Mapping[str, int] = MappingProxyType({})
_NOT_IN_THE_KEY = frozenset({"context", "context_min", "memory"})


class Load(NamedTuple):
    """A load that succeeded: what was planned on a device, and what llama-server really took."""

    device: str
    planned: Parts
    real: Parts


class Measured(NamedTuple):
    """What the driver showed beyond the buffers of the log: its own context, libraries, and what grew with use."""

    device: str
    """Its UUID."""
    loaded_bytes: int
    """When it had become ready: the most of all loads."""
    peak_bytes: int
    """The most ever."""
    ubatch_tokens: int
    """The micro-batch that it worked with."""
    used: bool = False
    """Whether it has served people for long enough that it grows no more."""

    @property
    def grown_bytes(self) -> int:
        """What came after the load."""
        return self.peak_bytes - self.loaded_bytes


class Learned(NamedTuple):
    """All that is known under one key."""

    key: str = ""
    corrections: Mapping[str, int] = _NOTHING
    """Bytes by device UUID (or name) that the driver claims and a llama-server cannot have."""
    rooms: Mapping[str, int] = _NOTHING
    """Bytes by device that there are at most, whatever the driver claims."""
    context_tokens: int = 0
    """Of the last plan that became ready."""
    args_digest: str = ""
    loads: tuple[Load, ...] = ()
    host: Parts = Parts()
    events: tuple[Mapping[str, Any], ...] = ()
    measured: tuple[Measured, ...] = ()

    def with_measured(self, seen: Measured, *, ready: bool = False) -> Learned:
        """One more look at what a device shows beyond the buffers; the same object where that is no news.

        `ready`: the first look of a load. Peaks only rise; a larger micro-batch is measured anew. What no driver
        context can be is not believed: some drivers tell half of what a process holds.
        """
        if not LEAST_OVERHEAD_BYTES <= seen.peak_bytes <= MOST_OVERHEAD_BYTES:
            return self
        others = tuple(one for one in self.measured if one.device != seen.device)
        before = next((one for one in self.measured if one.device == seen.device), None)
        if before is None or before.ubatch_tokens < seen.ubatch_tokens:
            return self._replace(measured=(*others, seen))
        after = before._replace(
            loaded_bytes=max(before.loaded_bytes, seen.loaded_bytes) if ready else before.loaded_bytes,
            peak_bytes=max(before.peak_bytes, seen.peak_bytes),
            used=before.used or seen.used,
        )
        moved = after.peak_bytes - before.peak_bytes + after.loaded_bytes - before.loaded_bytes
        return self if moved < MIB and after.used == before.used else self._replace(measured=(*others, after))

    def overheads(self, ubatch_tokens: int) -> dict[str, int]:
        """Bytes by UUID that devices really need beyond the buffers, for a micro-batch of at most so many tokens.

        Only of a llama-server that has been in use: before that the defaults are safer.
        """
        return {
            one.device: one.peak_bytes
            for one in self.measured
            if one.used and one.ubatch_tokens >= ubatch_tokens
        }

    def with_step(self, step: Step, at_s: float) -> Learned:
        """One more out-of-memory event and its correction."""
        event = {
            "at": int(at_s), "device": step.key, "cause": step.cause, "context_tokens": step.context_tokens,
            "size_mib": step.size_bytes // MIB, "correction_mib": step.correction_bytes // MIB, "how": step.how,
        }  # fmt: skip
        told = self._replace(events=(*self.events, event)[-_KEEP_EVENTS:], context_tokens=0)
        if step.room_bytes is not None:
            return told._replace(rooms={**self.rooms, step.key: step.room_bytes})
        return told._replace(corrections={**self.corrections, step.key: step.correction_bytes})

    def with_outcome(self, context_tokens: int) -> Learned:
        """What the last out-of-memory event led to."""
        *before, last = self.events or ({},)
        return self._replace(events=(*before, {**last, "stepped_to_tokens": context_tokens})) if last else self

    def reserved(self, free: Iterable[tuple[str, str, int]]) -> dict[str, int]:
        """Bytes to leave out by device name. `free` has name, UUID and free bytes of each device."""
        found = {}
        for name, uuid, free_bytes in free:
            key = uuid or name
            over = free_bytes - self.rooms[key] if key in self.rooms else 0
            if (size := max(over, self.corrections.get(key, 0))) > 0:
                found[name] = size
        return found

    def asked(self, plan: Plan, args: Iterable[str]) -> tuple[dict[str, Parts], Parts] | None:
        """What this very plan really took last time, by device, and on the host; None where it is another plan."""
        if not self.loads or self.context_tokens != plan.context_tokens or self.args_digest != args_digest(args):
            return None
        real = {load.device: load.real for load in self.loads}
        return (real, self.host) if set(real) == {device.name for device in plan.devices} else None


def in_words(reserved: Mapping[str, int], name: str) -> str:
    """What is left out of every plan of a model, and what to do about it; "" where that is nothing."""
    if not reserved:
        return ""
    sizes = " and ".join(f"{format_bytes(size)} of {device}" for device, size in reserved.items())
    return f"{sizes} are left out since memory was short there (`llamad forget {name}` has it tried again)"


def digest(words: Iterable[str]) -> str:
    """A short hash of words in their order."""
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def args_digest(args: Iterable[str]) -> str:
    """A short hash of the arguments that decide what llama-server allocates."""
    return digest(those_for_devices(list(args)))


def key_of(fingerprint: str, engine: str, drivers: Iterable[str], definition: Definition) -> str:
    """What a lesson is about. Another model, LoRA, engine or backend library, driver or flag is another key.

    The context is none: it is what the lesson changes.
    """
    placement = definition.placement
    flags = [
        f"{one.name}={getattr(placement, one.name)}" for one in fields(placement) if one.name not in _NOT_IN_THE_KEY
    ]  # fmt: skip
    environment = [f"{name}={value}" for name, value in sorted(definition.environment.items())]
    return digest(
        [fingerprint, engine, *sorted(drivers), *flags, *environment, *definition.server.extra_args]
    )


class DamagedError(Exception):
    """What the file holds is nothing that was learned."""


class LearnedFile:
    """`learned.toml` in a model's state folder. Blocking; nothing is raised.

    Who gives no `warn` only looks: a damaged file is passed over, and left where it is.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] | None = None) -> None:
        self._path = folder / FILE_NAME
        self._warn = warn
        self._kept = True
        """Whether the last one could be written: a disk that stays full is told once."""

    def load(self, key: str) -> Learned:
        """What is known under this key; nothing where there is no file, no usable one, or one of another key."""
        try:
            found = self.read()
        except FileNotFoundError:
            return Learned(key)
        except OSError as error:
            self._tell(f"What was learned cannot be read: {error}")
            return Learned(key)
        except DamagedError as error:
            self._set_aside(error)
            return Learned(key)
        return found if found.key == key else Learned(key)

    def read(self) -> Learned:
        """All that the file says, whatever its key is. Raises OSError, DamagedError."""
        data = read_regular(self._path, _LIMIT_BYTES + 1)
        try:
            return _from_toml(data)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedError(error) from error

    def save(self, learned: Learned) -> bool:
        """Replace the file in one step. False, and a warning, where that was not possible."""
        import tomli_w  # seldom: after a failure, and when a load brought something new

        text = tomli_w.dumps(_to_toml(learned)).encode()
        scratch = self._path.with_name(f".{FILE_NAME}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(
                scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
            with os.fdopen(fd, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
            if self._kept:
                self._kept = False
                self._tell(f"What was learned cannot be kept: {error}")
            return False
        self._kept = True
        return True

    def forget(self) -> bool:
        """Remove it; whether there was something."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True

    def _tell(self, text: str) -> None:
        if self._warn:
            self._warn(text)

    def _set_aside(self, error: Exception) -> None:
        if self._warn is None:
            return
        aside = self._path.with_suffix(f".bad-{int(time.time())}")
        with contextlib.suppress(OSError):
            os.replace(self._path, aside)
        self._warn(
            f"What was learned is damaged ({error}); it is set aside as {aside.name} and learned anew"
        )


def _parts_row(parts: Parts) -> dict[str, int]:
    return {
        "weights": parts.weights_bytes, "context": parts.context_bytes, "compute": parts.compute_bytes,
    }  # fmt: skip


def _parts(row: Mapping[str, Any]) -> Parts:
    return Parts(*(_count(row[name]) for name in ("weights", "context", "compute")))


def _measured(row: Mapping[str, Any]) -> Measured:
    loaded, peak, ubatch = (_count(row[name]) for name in ("loaded_bytes", "peak_bytes", "ubatch_tokens"))
    return Measured(str(row["device"]), loaded, peak, ubatch, used=row["used"] is True)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 50:
        raise ValueError(f"{value!r} is no number of bytes")
    return value


def _to_toml(learned: Learned) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "key": learned.key,
        "context_tokens": learned.context_tokens,
        "args": learned.args_digest,
        "corrections": dict(learned.corrections),
        "rooms": dict(learned.rooms),
        "host": _parts_row(learned.host),
        "load": [
            {"device": one.device, "planned": _parts_row(one.planned), "real": _parts_row(one.real)}
            for one in learned.loads
        ],
        "measured": [one._asdict() for one in learned.measured],
        "event": [dict(event) for event in learned.events],
    }


def _from_toml(data: bytes) -> Learned:
    import tomllib

    if len(data) > _LIMIT_BYTES:
        raise ValueError("too long")
    raw = tomllib.loads(data.decode())
    if raw["format"] != FORMAT:
        raise ValueError(f"format {raw['format']!r}")
    return Learned(
        key=str(raw["key"]),
        corrections={str(name): _count(size) for name, size in raw["corrections"].items()},
        rooms={str(name): _count(size) for name, size in raw["rooms"].items()},
        context_tokens=_count(raw["context_tokens"]),
        args_digest=str(raw["args"]),
        loads=tuple(
            Load(str(row["device"]), _parts(row["planned"]), _parts(row["real"])) for row in raw["load"]
        ),
        host=_parts(raw["host"]),
        events=tuple(dict(row) for row in raw["event"]),
        measured=tuple(_measured(row) for row in raw.get("measured", ())),
    )
