"""Prompt caches of slots over a planned change of llama-server: written by the old one, read by the new one.

Only a help: whatever goes wrong costs prompts that are read again, never a request, and nothing stays on the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from pathlib import Path

from llamad.engine.slots import Slot, read_slots, restore_slot, save_slot
from llamad.errors import LlamadError
from llamad.supervision.launch import Launch
from llamad.threads import in_thread
from llamad.units import GIB

SAVE_S = 10.0
RESTORE_S = 10.0
MOST_BYTES = 4 * GIB
SHARE_OF_FREE = 4
"""No more than a quarter of what is free on the disk."""
FLAG = "--slot-save-path"


def slot_key(launch: Launch) -> str:
    """What a cache is good for: the same model with its LoRA, engine, cache types, flash attention, positions and
    layout of slots. Not the context: a cache that does not fit a smaller one is refused by llama-server.
    """
    plan, definition = launch.plan, launch.definition
    parts = (
        launch.model_key, launch.engine_key, plan.cache_type_k, plan.cache_type_v, plan.flash_attention,
        plan.unified_cache or plan.slots == 1, definition.lora, definition.rope, definition.draft, definition.vision,
        definition.placement.swa_full, definition.server.override_kv,
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


class SlotKeeper:
    """The caches that one llama-server left for the next."""

    def __init__(
        self, folder: Path, *, save_s: float = SAVE_S, restore_s: float = RESTORE_S, most_bytes: int = MOST_BYTES
    ) -> None:
        """The deadlines are for all slots together, and so is the bound of what is written."""
        self._folder = folder
        self._save_s = save_s
        self._restore_s = restore_s
        self._most_bytes = most_bytes
        self._key = ""
        self._saved: dict[int, str] = {}
        self._is_clean = False

    async def save(self, launch: Launch) -> None:
        """Have the caches of idle slots written, those with most tokens first, within time and room."""
        if FLAG not in launch.argv or not launch.model_key:
            return
        await self._clean()
        self._key = slot_key(launch)
        with contextlib.suppress(LlamadError, TimeoutError):
            async with asyncio.timeout(self._save_s):
                await self._save_all(launch)

    async def _save_all(self, launch: Launch) -> None:
        slots = await read_slots(launch.socket_path, self._save_s)
        room = await in_thread(self._room)
        idle = [slot for slot in slots if slot.tokens and not slot.is_busy]
        for slot in sorted(idle, key=lambda slot: -slot.tokens):
            if _bytes_of(slot, launch) > room:
                continue
            name = f"{self._key}-{slot.number}"
            self._is_clean = False
            await save_slot(launch.socket_path, slot.number, name, self._save_s)
            room -= await in_thread(self._size, name)
            self._saved[slot.number] = name

    async def restore(self, launch: Launch) -> int:
        """Have them read where they fit this launch; the tokens that were. All files are removed then."""
        saved, self._saved = self._saved, {}
        tokens = 0
        if FLAG in launch.argv and self._key == slot_key(launch):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._restore_s):
                    for slot, name in saved.items():
                        if slot < launch.plan.slots:
                            with contextlib.suppress(LlamadError):  # it does not fit, or is torn
                                tokens += await restore_slot(launch.socket_path, slot, name, self._restore_s)
        await self._clean()
        return tokens

    def _room(self) -> int:
        try:
            free = os.statvfs(self._folder)
        except OSError:
            return 0
        return min(self._most_bytes, free.f_bavail * free.f_frsize // SHARE_OF_FREE)

    def _size(self, name: str) -> int:
        path = self._folder / name
        with contextlib.suppress(OSError):
            path.chmod(0o600)
            return path.stat().st_size
        return self._most_bytes

    async def _clean(self) -> None:
        """Remove all that is there: also what a llamad that was killed has left."""
        self._saved = {}
        if self._is_clean:
            return
        with contextlib.suppress(LlamadError):
            self._is_clean = await in_thread(self._remove_all)

    def _remove_all(self) -> bool:
        try:
            for path in self._folder.iterdir():
                path.unlink()
        except FileNotFoundError:
            return True
        except OSError:
            return False  # tried again before the next ones are written
        return True


def _bytes_of(slot: Slot, launch: Launch) -> int:
    """About what a slot's file takes: its share of all the context's bytes."""
    plan = launch.plan
    context_bytes = sum(device.parts.context_bytes for device in plan.devices) + plan.host.context_bytes
    return context_bytes * min(slot.tokens, plan.context_tokens) // max(1, plan.context_tokens)
