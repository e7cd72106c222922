"""The real ground under a child that serves: files, drivers, clocks. Imported once it serves."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from llamad.engine.capabilities import read_capabilities
from llamad.engine.environment import child_environment
from llamad.engine.files import identity
from llamad.engine.find import find_server
from llamad.errors import DeviceError
from llamad.hardware.device import Probe
from llamad.hardware.driver import driver_upgrade
from llamad.hardware.faults import Fault, FaultWatch
from llamad.hardware.nvml_errors import DriverUpgraded
from llamad.supervision.launch import Launch
from llamad.units import listed


class MachineGround:
    """`Ground` of this machine. `cache` is the model's cache folder, `nvml` the open probe of its daemon."""

    def __init__(
        self, cache: Path, nvml: Probe, upgrade: Callable[[], tuple[str, str] | None] = driver_upgrade
    ) -> None:
        self._upgrade = upgrade
        self._cache = cache
        self._nvml = nvml

    def engine_key(self, launch: Launch) -> str:
        env = self._env(launch)
        return identity(find_server(launch.loaded.host.server, env["PATH"]), env)

    def engine_words(self, launch: Launch) -> str:
        # Kept where the next start looks for it.
        kept = self._cache / "capabilities.json"
        return read_capabilities(launch.loaded.host.server, self._env(launch), kept, launch.loaded.host.query_s).words

    def driver(self, launch: Launch) -> str:
        if not _nvidia(launch):
            return ""
        versions = self._upgrade()
        if versions:
            return f"the kernel runs {versions[0]}, the libraries are {versions[1]}"
        try:
            self._nvml.devices()
        except DriverUpgraded as error:
            return error.why
        except DeviceError:
            return ""  # another trouble, which the child shows if it is its own
        return ""

    def lost(self, launch: Launch) -> DeviceError | None:
        planned = _nvidia(launch)
        if not planned:
            return None
        found = {device.uuid for device in self._nvml.devices()}
        gone = [name for uuid, name in planned.items() if uuid not in found]
        if not gone:
            return None
        problems = "; ".join(getattr(self._nvml, "problems", ()))
        return DeviceError(
            f"{listed(gone)} is lost",
            why=problems or "the NVIDIA driver does not show it any more",
            fix="" if problems else "look for Xid in the kernel log (`journalctl -k`), then reset it or reboot",
        )

    def suspended_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)

    def listen(self, launch: Launch, on_fault: Callable[[Fault], None]) -> Callable[[], None]:
        planned = _nvidia(launch)
        if not planned:
            return _nothing
        # A slice's fault is told of the GPU that it is a slice of.
        any_gpu = any(uuid.startswith("MIG-") for uuid in planned)

        def ours(fault: Fault) -> None:
            if any_gpu or not fault.uuid or fault.uuid in planned:
                on_fault(fault)

        watch = FaultWatch(ours)
        watch.start()
        return watch.stop

    def _env(self, launch: Launch) -> dict[str, str]:
        return child_environment(launch.definition.environment, self._cache)


def _nothing() -> None:
    return


def _nvidia(launch: Launch) -> dict[str, str]:
    """Names of the planned devices that NVML knows, by UUID."""
    known = ("GPU-", "MIG-")
    return {device.uuid: device.name for device in launch.plan.devices if device.uuid.startswith(known)}
