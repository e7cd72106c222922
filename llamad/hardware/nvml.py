"""NVIDIA GPUs from the driver's own library, by the optional Python binding (`pynvml` of nvidia-ml-py).

Memory is read without a CUDA context of ours. The library stays open between reads: opening it may wake a GPU for
seconds. Nothing is imported on a machine without the driver.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from types import ModuleType
from typing import Any, TypeVar

from llamad.errors import DeviceError
from llamad.hardware.deadline import Bounded
from llamad.hardware.device import Device, HostMemory
from llamad.hardware.host import host_memory
from llamad.hardware.nvml_errors import (
    DRIVER_GONE,
    NO_ANSWER,
    NO_DRIVER,
    NO_PERMISSION,
    NOT_FOUND,
    NOT_SUPPORTED,
    UNREADABLE_FORM,
    device_error,
)

T = TypeVar("T")

DRIVER_FILES = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg")
"""One of these is there where NVIDIA's driver is: its nodes, the loaded module, WSL's bridge."""
DEADLINE_S = 30.0
"""Opening eight sleeping GPUs takes about half of it."""

_Place = tuple[int, int, int]
_NOWHERE: _Place = (-1, -1, -1)
_PROCESS_LISTS = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")


def _nobody() -> Collection[int]:
    return ()


class Nvml:
    """Probe of NVIDIA's driver. Safe to call from several threads; `close` it at the end.

    `own_pids` names the processes whose memory is ours and does not count as foreign. `absence` says in words why
    the last call found nothing, `problems` what was left out of it.
    """

    def __init__(
        self,
        *,
        own_pids: Callable[[], Collection[int]] = _nobody,
        host: Callable[[], HostMemory] = host_memory,
        driver_files: Collection[str] = DRIVER_FILES,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._own_pids = own_pids
        self._host = host
        self._driver_files = driver_files
        self._bounded = Bounded("the NVIDIA driver", deadline_s)
        self._nvml: ModuleType | None = None
        self.absence = ""
        self.problems: tuple[str, ...] = ()

    def devices(self) -> list[Device]:
        """GPUs in PCI order as `CUDA0`, `CUDA1`, ...; slices of a GPU in MIG mode each count as one, not the GPU.

        [] without the driver or the binding. Raises DeviceError if the driver is there and cannot be used or does
        not answer in time, or if no GPU of it answers; one that does not answer beside others that do is left out.
        """
        if self._nvml is None and not any(map(os.path.exists, self._driver_files)):
            self.absence, self.problems = "no NVIDIA driver is loaded", ()
            return []
        return self._bounded.call(self._devices)

    def held(self) -> dict[str, dict[int, int]]:
        """Bytes that processes hold by the driver's own account: by UUID, by process id. {} where it does not tell."""
        if self._nvml is None:
            return {}
        with suppress(DeviceError):
            return self._bounded.call(self._held)
        return {}

    def _held(self) -> dict[str, dict[int, int]]:
        nvml = self._nvml
        found: dict[str, dict[int, int]] = {}
        if nvml is None:
            return found
        reading = _Reading(nvml, (), self._host)
        with suppress(nvml.NVMLError):
            for index in range(nvml.nvmlDeviceGetCount()):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                found[str(nvml.nvmlDeviceGetUUID(handle))] = reading.held(handle, 1 << 50)
        return found

    def close(self) -> None:
        """Let go of the driver, so that it can be unloaded. The next read opens it again. Does not wait for one
        that hangs.
        """
        if self._nvml is not None:
            with suppress(DeviceError):
                self._bounded.call(self._shut)

    def _devices(self) -> list[Device]:
        self.absence, self.problems = "", ()
        nvml = self._open()
        if nvml is None:
            return []
        reading = _Reading(nvml, self._own_pids(), self._host)
        try:
            found = reading.devices()
        except nvml.NVMLError as error:
            self._shut()
            raise device_error(error, "the NVIDIA driver") from error
        except DeviceError:
            self._shut()
            raise
        self.problems = tuple(map(str, reading.problems))
        if reading.stale:
            self._shut()
        if not found:
            self.absence = "the NVIDIA driver shows no GPU"
        return found

    def _shut(self) -> None:
        if self._nvml is not None:
            with suppress(self._nvml.NVMLError):  # the driver has gone first
                self._nvml.nvmlShutdown()
            self._nvml = None

    def _open(self) -> ModuleType | None:
        if self._nvml is not None:
            return self._nvml
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            self.absence = (
                "the NVIDIA driver is loaded, but the Python module pynvml (nvidia-ml-py) is missing"
            )
            return None
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            if error.value in NO_DRIVER:
                self.absence = f"NVML: {error}"
                return None
            raise device_error(error, "the NVIDIA driver") from error
        self._nvml = nvml
        return nvml


class _Reading:
    """One look at all GPUs through an open library.

    An error that is the driver's own is raised; one of a single GPU or slice leaves that one out, into `problems`.
    A question that a board or an old driver does not know has its plain answer: no slices, no display, no name.
    """

    def __init__(self, nvml: ModuleType, own: Collection[int], host: Callable[[], HostMemory]) -> None:
        self._nvml = nvml
        self._own = own
        self._host = host
        self._driver = ""
        self.problems: list[DeviceError] = []
        self.stale = False
        """A GPU is in trouble: open the library anew, or it is not seen when it comes back."""

    def devices(self) -> list[Device]:
        nvml = self._nvml
        self._driver = self._asked("nvmlSystemGetDriverVersion", default="")
        found: list[tuple[_Place, Device]] = []
        for index in range(nvml.nvmlDeviceGetCount()):
            with self._kept_apart(f"GPU {index}"):
                found += self._gpu(nvml.nvmlDeviceGetHandleByIndex(index), f"GPU {index}")
        if self.problems and not found:
            raise self.problems[0]
        found.sort(key=lambda one: one[0])  # stable: the slices of one GPU keep their order
        return [replace(device, name=f"CUDA{index}") for index, (_, device) in enumerate(found)]

    def _kept_apart(self, what: str) -> _KeptApart:
        return _KeptApart(self, what, self._nvml.NVMLError)

    def _asked(self, question: str, *words: Any, default: T) -> T:
        """The answer to a question that not every board, driver and binding knows."""
        ask = getattr(self._nvml, question, None)
        if ask is None:
            return default
        try:
            answer: T = ask(*words)
        except UnicodeDecodeError:
            return default
        except self._nvml.NVMLError as error:
            if error.value not in NO_ANSWER:
                raise
            return default
        return answer

    def _gpu(self, handle: Any, what: str) -> list[tuple[_Place, Device]]:
        info = self._asked("nvmlDeviceGetPciInfo", handle, default=None)  # the GPU of a Jetson is on no bus
        place = (info.domain, info.bus, info.device) if info else _NOWHERE
        pci = f"{info.domain:04x}:{info.bus:02x}:{info.device:02x}.0" if info else ""
        display = False
        with suppress(self._nvml.NVMLError):  # only for the margin, and boards without an output do not know
            display = bool(self._nvml.nvmlDeviceGetDisplayActive(handle))
        whole = Device("CUDA", 0, 0, pci=pci, driver=self._driver, source="nvml", display_active=display)
        enabled, _ = self._asked("nvmlDeviceGetMigMode", handle, default=(0, 0))
        if not enabled:
            return [(place, self._described(whole, handle, what))]
        return [(place, device) for device in self._slices(whole, handle, what)]

    def _slices(self, whole: Device, handle: Any, what: str) -> Iterator[Device]:
        """Its slices. The GPU itself cannot be used in this mode, and its memory is only their sum."""
        nvml = self._nvml
        made = 0
        for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with self._kept_apart(f"slice {place} of {what}"):
                try:
                    part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
                except nvml.NVMLError as error:
                    if error.value == NOT_FOUND:  # a place that no slice was made for
                        continue
                    raise
                made += 1
                yield self._described(replace(whole, mig=True), part, f"slice {place} of {what}")
        if not made:
            self.problems.append(
                DeviceError(
                    f"cannot use {what}",
                    why="it is in MIG mode and has no slice that may be used",
                    fix="make one with nvidia-smi mig -cgi ... -C, or leave the mode with nvidia-smi -mig 0",
                )
            )

    def _described(self, blank: Device, handle: Any, what: str) -> Device:
        total_bytes, free_bytes, unified = self._memory(handle, may_be_unified=not blank.mig)
        uuid = str(self._asked("nvmlDeviceGetUUID", handle, default=""))
        if total_bytes <= 0 or (blank.mig and not uuid):
            why = "the driver does not tell its memory" if total_bytes <= 0 else "the driver tells no UUID"
            raise DeviceError(f"cannot use {what}", why=why, fix="see what nvidia-smi says of it")
        return replace(
            blank,
            total_bytes=total_bytes,
            free_bytes=min(free_bytes, total_bytes),
            uuid=uuid,
            description=str(self._asked("nvmlDeviceGetName", handle, default="")) or "NVIDIA GPU",
            integrated=unified,
            foreign_bytes=self._foreign(handle, total_bytes),
        )

    def _memory(self, handle: Any, *, may_be_unified: bool) -> tuple[int, int, bool]:
        """Bytes that processes can have in all, bytes that are free, and whether they are the host's.

        What the driver keeps for itself is in neither. Drivers before 510 do not tell it: there it is in the total.
        """
        nvml = self._nvml
        try:
            try:
                memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
                return int(memory.total) - int(memory.reserved), int(memory.free), False
            except AttributeError:  # a binding as old
                memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            except nvml.NVMLError as error:
                if error.value not in UNREADABLE_FORM:
                    raise
                memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as error:
            if error.value != NOT_SUPPORTED or not may_be_unified:
                raise
            host = self._host()
            return host.total_bytes, host.available_bytes, True
        return int(memory.total), int(memory.free), False

    def _foreign(self, handle: Any, total_bytes: int) -> int:
        """Bytes of others' processes; 0 where the driver does not tell them (WSL, MIG, no permission)."""
        held = self.held(handle, total_bytes)
        return min(total_bytes, sum(size for pid, size in held.items() if pid not in self._own))

    def held(self, handle: Any, total_bytes: int) -> dict[int, int]:
        """Bytes by process id, as far as the driver tells them."""
        held: dict[int, int] = {}
        for listing in _PROCESS_LISTS:
            for process in self._processes(listing, handle):
                used = process.usedGpuMemory
                # Not told is None, or in old bindings the largest number there is.
                known = used if isinstance(used, int) and 0 <= used <= total_bytes else 0
                held[process.pid] = max(held.get(process.pid, 0), known)
        return held

    def _processes(self, listing: str, handle: Any) -> list[Any]:
        """A list of processes in the newest form that the driver knows; the figures only widen a margin.

        Never by the name without a version: the binding has an error of another kind for a driver without the newest.
        """
        for name in (f"{listing}_v3", f"{listing}_v2"):
            with suppress(self._nvml.NVMLError, AttributeError):
                return list(getattr(self._nvml, name)(handle))
        return []


class _KeptApart:
    """Puts the error of one GPU into the reading's problems, unless it is the driver's own."""

    def __init__(self, reading: _Reading, what: str, kind: type[Exception]) -> None:
        self._reading = reading
        self._what = what
        self._kind = kind

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> bool:
        if isinstance(error, DeviceError):
            self._reading.problems.append(error)
            return True
        if not isinstance(error, self._kind):
            return False
        value: int = getattr(error, "value", 0)
        if value in DRIVER_GONE:
            return False
        self._reading.stale |= value != NO_PERMISSION
        self._reading.problems.append(device_error(error, self._what))
        return True
