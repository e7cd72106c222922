"""NVIDIA GPUs from the driver's own library, by the optional Python binding (`pynvml` of nvidia-ml-py).

Memory is read without a CUDA context of ours. The library stays open between reads: opening it may wake a GPU for
seconds. Nothing is imported on a machine without the driver.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from types import ModuleType
from typing import Any

from llamad.errors import DeviceError
from llamad.hardware.device import Device, HostMemory
from llamad.hardware.host import host_memory

DRIVER_FILES = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg")
"""One of these is there where NVIDIA's driver is: its nodes, the loaded module, WSL's bridge."""


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
    ) -> None:
        self._own_pids = own_pids
        self._host = host
        self._driver_files = driver_files
        self._lock = threading.Lock()
        self._nvml: ModuleType | None = None
        self.absence = ""
        self.problems: tuple[str, ...] = ()

    def devices(self) -> list[Device]:
        """GPUs in PCI order as `CUDA0`, `CUDA1`, ...; slices of a GPU in MIG mode each count as one, not the GPU.

        [] without the driver or the binding. Raises DeviceError if the driver is there and cannot be used, or if
        no GPU of it answers; one that does not answer beside others that do is left out.
        """
        with self._lock:
            self.absence, self.problems = "", ()
            nvml = self._open()
            if nvml is None:
                return []
            try:
                return self._read(nvml)
            except nvml.NVMLError as error:
                self._shut()
                raise _device_error(nvml, error, "the NVIDIA driver") from error
            except DeviceError:
                self._shut()
                raise

    def close(self) -> None:
        """Let go of the driver, so that it can be unloaded. The next read opens it again."""
        with self._lock:
            self._shut()

    def _shut(self) -> None:
        if self._nvml is not None:
            with suppress(self._nvml.NVMLError):  # the driver has gone first
                self._nvml.nvmlShutdown()
            self._nvml = None

    def _open(self) -> ModuleType | None:
        if self._nvml is not None:
            return self._nvml
        if not any(map(os.path.exists, self._driver_files)):
            self.absence = "no NVIDIA driver is loaded"
            return None
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
            if error.value in (nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED):
                self.absence = f"NVML: {error}"
                return None
            raise _device_error(nvml, error, "the NVIDIA driver") from error
        self._nvml = nvml
        return nvml

    def _read(self, nvml: ModuleType) -> list[Device]:
        driver = str(nvml.nvmlSystemGetDriverVersion())
        found: list[Device] = []
        errors: list[DeviceError] = []
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                found += self._gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(index), driver)
            except nvml.NVMLError as error:
                errors.append(_device_error(nvml, error, f"GPU {index}"))
        self.problems = tuple(map(str, errors))
        if errors and not found:
            raise errors[0]
        found.sort(key=lambda device: device.pci)  # stable: the slices of one GPU keep their order
        return [replace(device, name=f"CUDA{index}") for index, device in enumerate(found)]

    def _gpu(self, nvml: ModuleType, handle: Any, driver: str) -> list[Device]:
        info = nvml.nvmlDeviceGetPciInfo(handle)
        pci = f"{info.domain:04x}:{info.bus:02x}:{info.device:02x}.0"
        display = self._display_active(nvml, handle)
        slices = [self._device(nvml, part, pci, driver, display) for part in _mig_slices(nvml, handle)]
        return slices or [self._device(nvml, handle, pci, driver, display)]

    def _device(self, nvml: ModuleType, handle: Any, pci: str, driver: str, display: bool) -> Device:
        memory = _memory(nvml, handle)
        unified = memory is None
        total, free = memory or self._host_figures()
        return Device(
            name="CUDA",
            total_bytes=total,
            free_bytes=free,
            uuid=str(nvml.nvmlDeviceGetUUID(handle)),
            pci=pci,
            description=str(nvml.nvmlDeviceGetName(handle)),
            driver=driver,
            source="nvml",
            integrated=unified,
            display_active=display,
            foreign_bytes=self._foreign(nvml, handle),
        )

    def _host_figures(self) -> tuple[int, int]:
        host = self._host()
        return host.total_bytes, host.available_bytes

    def _foreign(self, nvml: ModuleType, handle: Any) -> int:
        """Bytes of others' processes; 0 where the driver does not tell them (WSL, MIG, no permission)."""
        own = self._own_pids()
        held: dict[int, int] = {}
        for listing in (
            nvml.nvmlDeviceGetComputeRunningProcesses,
            nvml.nvmlDeviceGetGraphicsRunningProcesses,
        ):
            with suppress(nvml.NVMLError):
                for process in listing(handle):
                    held[process.pid] = max(held.get(process.pid, 0), process.usedGpuMemory or 0)
        return sum(size for pid, size in held.items() if pid not in own)

    @staticmethod
    def _display_active(nvml: ModuleType, handle: Any) -> bool:
        with suppress(nvml.NVMLError):  # boards without an output do not know the question
            return bool(nvml.nvmlDeviceGetDisplayActive(handle))
        return False


def _memory(nvml: ModuleType, handle: Any) -> tuple[int, int] | None:
    """Total and free bytes; None where GPU and host share their memory and the driver has no figure of its own.

    `free` is what cudaMemGetInfo will say less the context; the total contains what the driver keeps for itself.
    """
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except nvml.NVMLError as error:
        if error.value == nvml.NVML_ERROR_NOT_SUPPORTED:
            return None
        if error.value != nvml.NVML_ERROR_FUNCTION_NOT_FOUND:  # drivers before 510
            raise
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return int(memory.total), int(memory.free)


def _mig_slices(nvml: ModuleType, handle: Any) -> Iterator[Any]:
    try:
        enabled, _ = nvml.nvmlDeviceGetMigMode(handle)
        count = nvml.nvmlDeviceGetMaxMigDeviceCount(handle) if enabled else 0
    except nvml.NVMLError:  # no GPU that can be sliced
        return
    for index in range(count):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_NOT_FOUND:  # places that no slice was made for
                raise


def _device_error(nvml: ModuleType, error: Any, what: str) -> DeviceError:
    known: dict[int, tuple[str, str, str]] = {
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
            "cannot use the NVIDIA driver",
            "its libraries were upgraded and the kernel still runs the old module",
            "reboot, or stop all users of the GPUs and reload the nvidia modules",
        ),
        nvml.NVML_ERROR_NO_PERMISSION: (
            f"may not use {what}",
            "permission denied by the driver",
            "allow /dev/nvidia* to the service (DeviceAllow=, group render or video)",
        ),
        nvml.NVML_ERROR_GPU_IS_LOST: (
            f"{what} is lost",
            "it has fallen off the bus",
            "look for Xid in the kernel log, check power and cooling, then reset it or reboot",
        ),
        nvml.NVML_ERROR_RESET_REQUIRED: (
            f"{what} needs a reset",
            "the driver has stopped it after a fault",
            "stop its users and run nvidia-smi --gpu-reset, or reboot",
        ),
    }
    first, why, fix = known.get(
        error.value,
        (f"cannot use {what}", f"NVML: {error}", "see whether nvidia-smi works, and the kernel log"),
    )
    return DeviceError(first, why=why, fix=fix)
