"""NVML's error codes, what they mean for a reading, and what an admin can do about them. Pure.

The numbers are those of nvml.h and never change; older bindings do not name them all.
"""

from __future__ import annotations

from llamad.errors import DeviceError

UNINITIALIZED = 1
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
DRIVER_NOT_LOADED = 9
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
RESET_REQUIRED = 16
VERSION_MISMATCH = 18
ARGUMENT_VERSION_MISMATCH = 25

NO_DRIVER = frozenset({DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND})
"""At the opening: there is no driver here, which is no error."""
DRIVER_GONE = NO_DRIVER | {UNINITIALIZED, VERSION_MISMATCH}
"""Later: no GPU can be used any more, not only the one that was asked about."""
NO_ANSWER = frozenset({NOT_SUPPORTED, FUNCTION_NOT_FOUND})
"""The board or the driver does not know the question."""
UNREADABLE_FORM = frozenset({FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH})
"""The driver answers the question in an older form only."""


class DriverUpgraded(DeviceError):
    """The driver's libraries are newer than the loaded module: no new process can use a GPU, running ones can."""


def driver_upgraded(running: str, installed: str) -> DriverUpgraded:
    """The same from the versions of the loaded module and of the libraries."""
    what, _, fix = _KNOWN[VERSION_MISMATCH]
    return DriverUpgraded(what, why=f"the kernel runs {running}, the libraries are {installed}", fix=fix)


def device_error(error: Exception, what: str) -> DeviceError:
    """An NVMLError in words; `what` names the GPU or the driver."""
    kind = DriverUpgraded if getattr(error, "value", 0) == VERSION_MISMATCH else DeviceError
    first, why, fix = _KNOWN.get(
        getattr(error, "value", 0),
        ("cannot use {what}", f"NVML: {error}", "see whether nvidia-smi works, and the kernel log"),
    )
    return kind(first.format(what=what), why=why, fix=fix)


_KNOWN: dict[int, tuple[str, str, str]] = {
    VERSION_MISMATCH: (
        "NVIDIA driver was upgraded",
        "its libraries were replaced and the kernel still runs the old module: nothing that starts now gets a GPU",
        "reboot (or stop all users of the GPUs and reload the nvidia modules)",
    ),
    NO_PERMISSION: (
        "may not use {what}",
        "permission denied by the driver",
        "allow /dev/nvidia* to the service (DeviceAllow=, group render or video)",
    ),
    GPU_IS_LOST: (
        "{what} is lost",
        "it has fallen off the bus",
        "look for Xid in the kernel log, check power and cooling, then reset it or reboot",
    ),
    RESET_REQUIRED: (
        "{what} needs a reset",
        "the driver has stopped it after a fault",
        "stop its users and run nvidia-smi --gpu-reset, or reboot",
    ),
}
