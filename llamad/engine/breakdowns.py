"""llama-server's own account of a plan, kept from the last time it was asked: see dry_run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamad.engine.arguments import those_for_devices
from llamad.engine.names import renamed
from llamad.frozen import dataclass
from llamad.planning.plan import Parts
from llamad.store import load_cache, store_cache

_NO_PARTS = Parts()


@dataclass(frozen=True)
class Breakdown:
    """llama-server's own account, in bytes. It counts whole MiB, rounded down: a part may be 1 MiB larger.

    `memory` is total and free of each device as the child saw it, its own context already taken.
    """

    devices: dict[str, Parts]
    host: Parts
    memory: dict[str, tuple[int, int]]
    draft: dict[str, Parts] | None = None
    """The account of what guesses ahead; None where there is none, or it could not be measured."""
    draft_host: Parts = _NO_PARTS
    vision_bytes: int = 0
    """What llama-server reserves for a projector, weights included, device and host together; 0 = not told."""

    def renamed(self, names: Mapping[str, str]) -> Breakdown:
        """The same with other names for the devices (`names.plan_names` of the plan that was asked about)."""
        return replace(
            self,
            devices=renamed(self.devices, names),
            memory=renamed(self.memory, names),
            draft=None if self.draft is None else renamed(self.draft, names),
        )

    def draft_without_weights(self) -> Breakdown:
        """The same for blocks of the model's own that guess ahead: their weights are among the model's."""
        draft = {name: replace(parts, weights_bytes=0) for name, parts in (self.draft or {}).items()}
        return replace(self, draft=draft, draft_host=replace(self.draft_host, weights_bytes=0))


class BreakdownCache:
    """Breakdowns by build, model file and arguments, in one JSON file of the model's cache folder.

    What is free now is in no key and in no entry: it does not change what an explicit plan takes.
    """

    _KEEP = 32

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, caps_key: str, fingerprint: str, args: Sequence[str]) -> Breakdown | None:
        """The breakdown that the same build gave for the same file and arguments; None if none is kept."""
        try:
            entry = self._entries()[_cache_key(caps_key, fingerprint, args)]
            return _breakdown(entry)
        except (LookupError, TypeError, ValueError, AttributeError):
            return None  # none kept, or not as we write it

    def put(self, caps_key: str, fingerprint: str, args: Sequence[str], breakdown: Breakdown) -> None:
        """Keep one more, the oldest beyond 32 being dropped. A cache that cannot be written is done without."""
        entries = self._entries()
        key = _cache_key(caps_key, fingerprint, args)
        entries.pop(key, None)
        entries[key] = _entry(breakdown)
        store_cache(self._path, dict(list(entries.items())[-self._KEEP :]))

    def _entries(self) -> dict[str, Any]:
        raw = load_cache(self._path)
        return raw if isinstance(raw, dict) else {}


def _entry(breakdown: Breakdown) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "devices": {name: _three(parts) for name, parts in breakdown.devices.items()},
        "host": _three(breakdown.host),
    }
    if breakdown.draft is not None:
        entry["draft"] = {name: _three(parts) for name, parts in breakdown.draft.items()}
        entry["draft_host"] = _three(breakdown.draft_host)
    if breakdown.vision_bytes:
        entry["vision"] = breakdown.vision_bytes
    return entry


def _breakdown(entry: Mapping[str, Any]) -> Breakdown:
    """Raises LookupError, TypeError, ValueError or AttributeError for what `_entry` did not write."""
    draft = {name: _parts(sizes) for name, sizes in entry["draft"].items()} if "draft" in entry else None
    return Breakdown(
        devices={str(name): _parts(sizes) for name, sizes in entry["devices"].items()},
        host=_parts(entry["host"]),
        memory={},
        draft=draft,
        draft_host=_parts(entry.get("draft_host", ())),
        vision_bytes=int(entry.get("vision", 0)),
    )


def _parts(sizes: Sequence[int]) -> Parts:
    weights, context, compute = map(int, sizes or (0, 0, 0))
    return Parts(weights, context, compute)


def _three(parts: Parts) -> list[int]:
    return [parts.weights_bytes, parts.context_bytes, parts.compute_bytes]


def _cache_key(caps_key: str, fingerprint: str, args: Sequence[str]) -> str:
    kept = those_for_devices(args)
    return hashlib.sha256(
        "\0".join([caps_key, fingerprint, *kept]).encode("utf-8", "surrogateescape")
    ).hexdigest()
