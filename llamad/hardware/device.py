"""Devices that can hold a model, and how their free memory is known."""

from __future__ import annotations

from typing import Protocol

from llamad.frozen import dataclass


@dataclass(frozen=True)
class Device:
    """One device by llama-server's name for it (`CUDA0`, `Vulkan0`, `ROCm1`, `RPC0`), memory in bytes.

    `total_bytes` is what processes can have of it in all: what a driver keeps for itself is not in it where the
    driver tells that. So `memory = "60%"` is a share of what could be had, and an empty device has all of it free.
    `free_bytes` is what a new process may take, before the context that it creates itself, unless
    `context_included` says that the figure was read through a live context (the engine's own list).
    """

    name: str
    total_bytes: int
    free_bytes: int
    uuid: str = ""
    pci: str = ""
    description: str = ""
    driver: str = ""
    source: str = "engine"
    """nvml | amdgpu | engine | what-if"""
    context_included: bool = False
    integrated: bool = False
    """Its memory is the host's: what it takes, the host lacks."""
    mig: bool = False
    """A slice of a GPU. A process sees one slice and no other CUDA device: a plan may use it only alone."""
    display_active: bool = False
    foreign_bytes: int = 0
    """Held by processes that are not ours, where the driver tells."""

    @property
    def backend(self) -> str:
        """`CUDA` of `CUDA0`: the name without its index."""
        return self.name.rstrip("0123456789")


@dataclass(frozen=True)
class HostMemory:
    """The host's memory, in bytes (MemTotal and MemAvailable)."""

    total_bytes: int
    available_bytes: int


class Probe(Protocol):
    """A source of devices. Blocking; call it off the loop, with a deadline."""

    def devices(self) -> list[Device]:
        """The devices in the backend's order; [] if there is none of this kind.

        Raises DeviceError where the driver is there but does not answer.
        """
        ...
