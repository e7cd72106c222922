"""How many bytes a second a device's or the host's memory gives: from the driver, from a table, or measured.

Nothing is planned with these figures: they only tell how quickly a model would answer.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
import time
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from llamad.frozen import dataclass
from llamad.hardware.device import Device
from llamad.units import GIB, MIB

GB = 10**9
_BUFFER_BYTES = 48 * MIB
"""More than most last-level caches hold; a copy reads and writes it."""
_MEASURE_S = 0.15
_LONGEST_S = 1.0
_THREADS_MOST = 8


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second, and where the figure is from: `driver`, `table`, `measured`, `given` or `assumed`."""

    bytes_s: float
    source: str


@dataclass(frozen=True)
class Card:
    """A row of the table."""

    name: str
    memory_bytes: int
    bytes_s: float


@cache
def cards() -> tuple[Card, ...]:
    """The table, longest names first."""
    text = resources.files("llamad.data").joinpath("cards.toml").read_text(encoding="utf-8")
    rows: Mapping[str, list[int]] = tomllib.loads(text)["card"]
    found = [Card(name, gib * GIB, speed * GB) for name, (gib, speed) in rows.items()]
    return tuple(sorted(found, key=lambda card: -len(card.name)))


def card_named(text: str) -> Card | None:
    """The card whose name is in the text, the longest if several are; None for none."""
    wanted = _plain(text)
    return next((card for card in cards() if _plain(card.name) in wanted), None)


def card_asked_for(text: str) -> Card | None:
    """The card that a user means, who may leave out the maker: `rtx 4090`, `h200`. None for none."""
    wanted = _plain(text)
    exact = [
        card for card in cards() if wanted in (_plain(card.name), _plain(card.name).removeprefix("nvidia"))
    ]
    return exact[0] if exact else card_named(text)


def bandwidth_of(device: Device, known: Mapping[str, float]) -> Bandwidth:
    """Of a device, by what its driver told (`known`, by UUID), its name, or cards with as much memory."""
    if device.uuid and device.uuid in known:
        return Bandwidth(known[device.uuid], "driver")
    card = card_named(device.description) if device.description else None
    if card is not None:
        return Bandwidth(card.bytes_s, "table")
    return Bandwidth(typical(device.total_bytes), "assumed")


def typical(memory_bytes: int) -> float:
    """The middle of the known cards with about as much memory."""
    near = sorted(card.bytes_s for card in cards() if 0.75 <= card.memory_bytes / memory_bytes <= 1.35)
    if not near:
        smaller = [card for card in cards() if card.memory_bytes <= memory_bytes] or list(cards())
        near = [max(smaller, key=lambda card: card.memory_bytes).bytes_s]
    return near[len(near) // 2]


def driver_bandwidths(module: Any = None) -> dict[str, float]:
    """Bytes a second by UUID as NVIDIA's driver has them: bus width times memory clock, two transfers a clock.

    {} without the driver. A slice of a GPU in MIG mode is none of it: its share of the bus is not told.
    """
    try:
        nvml: Any = module or importlib.import_module("pynvml")
    except ImportError:
        return {}
    found: dict[str, float] = {}
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return {}
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            try:
                bits = nvml.nvmlDeviceGetMemoryBusWidth(handle)
                clock_mhz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)
                found[str(nvml.nvmlDeviceGetUUID(handle))] = bits / 8 * clock_mhz * 1e6 * 2
            except nvml.NVMLError:
                continue  # a board that does not tell is looked up by its name
    except nvml.NVMLError:
        return found
    finally:
        nvml.nvmlShutdown()
    return {uuid: speed for uuid, speed in found.items() if speed > 0}


def measure_host(threads: int, *, seconds: float = _MEASURE_S) -> Bandwidth:
    """What copies in several threads move in a moment: bytes read and written. Takes 48 MiB a thread meanwhile.

    By the processor's time, so that others' work does not count as slow memory; for a second at most.
    """
    count = max(1, min(threads, _THREADS_MOST))
    moved: list[float] = []
    barrier = threading.Barrier(count)

    def copy() -> None:
        half = _BUFFER_BYTES // 2
        buffer = ctypes.create_string_buffer(_BUFFER_BYTES)
        start = ctypes.addressof(buffer)
        ctypes.memset(start, 1, _BUFFER_BYTES)
        barrier.wait()
        began_s, end_s, done = time.thread_time(), time.monotonic() + _LONGEST_S, 0
        while (passed_s := time.thread_time() - began_s) < seconds and time.monotonic() < end_s:
            ctypes.memmove(start + half, start, half)  # ctypes lets other threads run meanwhile
            done += 2 * half
        moved.append(done / passed_s if passed_s > 0 else 0.0)

    workers = [threading.Thread(target=copy) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return Bandwidth(sum(moved), "measured")


def _plain(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum())


def speed_words(found: Sequence[Bandwidth]) -> str:
    """`1008 GB/s by its driver`; empty for none."""
    words = {
        "driver": "by its driver",
        "table": "by its data sheet",
        "assumed": "assumed",
        "measured": "measured",
        "given": "given",
    }
    return ", ".join(f"{one.bytes_s / GB:.0f} GB/s {words[one.source]}" for one in found)
