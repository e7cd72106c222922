"""Faults that NVIDIA's driver reports of its GPUs (Xid), as they happen.

NVML calls every Xid critical, also those that a program's own bug raises. They are told apart here by the list that
NVIDIA's device plug-in for Kubernetes ignores, and two that only announce work for the next reset.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from llamad.frozen import dataclass
from llamad.hardware.nvml_errors import GPU_IS_LOST

_TIMEOUT = 10
NOT_THE_DEVICE = frozenset({13, 31, 43, 45, 63, 68, 92, 109})
"""A program's page fault, a channel that was stopped or cleaned up, rows to be remapped, corrected errors."""
_WORDS = {
    48: "an uncorrectable error of its memory",
    62: "its internal controller stopped",
    64: "a bad row of its memory could not be replaced",
    74: "an NVLink error",
    79: "it has fallen off the bus",
    94: "an uncorrectable error of its memory, contained to the program that met it",
    95: "an uncorrectable error of its memory that was not contained",
    119: "its system processor (GSP) does not answer",
    120: "its system processor (GSP) reported an error",
    140: "an uncorrectable error of its memory",
    154: "it asks for a reset",
}


@dataclass(frozen=True)
class Fault:
    """One Xid of one GPU; `uuid` is "" where the GPU does not even tell that any more."""

    uuid: str
    xid: int

    @property
    def of_the_device(self) -> bool:
        """Whether it says something of the device, and not only of a program on it."""
        return self.xid not in NOT_THE_DEVICE

    def __str__(self) -> str:
        words = _WORDS.get(self.xid, "see NVIDIA's list of Xid errors")
        return f"Xid {self.xid} ({words})"


class FaultWatch:
    """Waits for faults in a thread of its own, from `start` to `stop`. `on_fault` is called in that thread.

    Where the driver or the binding cannot do that (WSL, old ones), it hears nothing. The thread holds the library open
    and never the process: a driver that hangs costs a thread.
    """

    def __init__(self, on_fault: Callable[[Fault], None], wait_s: float = 2.0) -> None:
        self._on_fault = on_fault
        self._wait_ms = int(wait_s * 1000)
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to listen."""
        threading.Thread(target=self._listen, name="llamad-faults", daemon=True).start()

    def stop(self) -> None:
        """Listen no more; the thread ends within its wait."""
        self._stopped.set()

    def _listen(self) -> None:
        try:
            nvml = importlib.import_module("pynvml")
            with _registered(nvml) as events:
                while not self._stopped.is_set():
                    self._wait(nvml, events)
        except ImportError:
            return  # no binding: devices are still looked at now and then, by who can
        except nvml.NVMLError as error:
            if error.value == GPU_IS_LOST and not self._stopped.is_set():
                self._on_fault(Fault("", 79))

    def _wait(self, nvml: Any, events: Any) -> None:
        try:
            data = nvml.nvmlEventSetWait(events, self._wait_ms)
        except nvml.NVMLError as error:
            if error.value == _TIMEOUT:
                return
            raise
        uuid = ""
        with suppress(nvml.NVMLError):
            uuid = str(nvml.nvmlDeviceGetUUID(data.device))
        if not self._stopped.is_set():
            self._on_fault(Fault(uuid, int(data.eventData)))


@contextmanager
def _registered(nvml: Any) -> Iterator[Any]:
    """A set of events that gets the faults of every GPU; one that has none of them to tell is left out."""
    nvml.nvmlInit()
    try:
        events = nvml.nvmlEventSetCreate()
        try:
            for index in range(nvml.nvmlDeviceGetCount()):
                with suppress(nvml.NVMLError):
                    handle = nvml.nvmlDeviceGetHandleByIndex(index)
                    nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
            yield events
        finally:
            with suppress(nvml.NVMLError):
                nvml.nvmlEventSetFree(events)
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
