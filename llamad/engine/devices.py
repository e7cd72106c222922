"""The devices that llama-server can use, with what is free on them.

llama-server's own `--list-devices` says which devices there are, in its order and by its names. The drivers say
better what is free: fresh, and without a context of ours on the device. Asking llama-server costs 0.1 to 0.4 s, so
its list is kept for as long as nothing can have changed it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from llamad.engine.build import Capabilities
from llamad.engine.merge import merge_devices
from llamad.engine.query import QueryResult, run_query
from llamad.errors import DeviceError
from llamad.frozen import dataclass
from llamad.hardware.device import Device, HostMemory, Probe
from llamad.hardware.host import host_memory
from llamad.store import load_cache, store_cache
from llamad.units import MIB

_ROW = re.compile(
    # A name is CUDA0, Vulkan1, SYCL0, MTL0, RPC0.
    r"^\s+(?P<name>[A-Za-z]\w*): (?P<text>.*) "
    r"\((?P<total>\d{1,9}) MiB, (?P<free>\d{1,9}) MiB free\)\s*$",
    re.ASCII,
)
_UNREACHED = re.compile(r"Failed to connect to (\S{1,300})")
# Devices with the host's memory: Vulkan drivers that compute on the CPU, and Intel's GPUs inside a processor, which
# have a family for a name where cards have a number. (amdgpu and NVML tell it of AMD's and NVIDIA's.)
_INTEGRATED = re.compile(
    r"llvmpipe|lavapipe|SwiftShader|Apple|"
    r"Intel.* (?:U?HD Graphics|Iris)(?!.*\bMAX\b)|"
    r"Intel\(R\) (?:Arc\(tm\) )?Graphics(?! \((?:BMG|DG\d))|"
    r"Intel\(R\) Arc\(TM\) 1\d\d[TV] GPU",
    re.IGNORECASE,
)


def list_devices(
    caps: Capabilities, env: Mapping[str, str], deadline_s: float = 5.0, rpc: Sequence[str] = ()
) -> list[Device]:
    """What `--list-devices` prints: the devices of every backend but the CPU; [] if there is none. Blocking.

    `rpc` has the addresses of the servers of remote devices. Each of them serves one client at a time: who asks while
    another is served waits for the deadline.

    Free bytes are read by llama-server through a context of its own, which they already lack. Raises DeviceError
    if it fails or does not answer in time (a hanging driver does that).
    """
    words = ["--rpc", ",".join(rpc)] if rpc else []
    result = run_query([caps.path, *words, "--list-devices"], env, deadline_s)
    if result.timed_out or result.returncode != 0:
        raise _no_list(caps, result, deadline_s, rpc)
    return parse_devices(result.stdout)


def parse_devices(text: str) -> list[Device]:
    """The devices of a `--list-devices` output. One without memory (BLAS) cannot hold a model and is left out."""
    _, _, rows = text.rpartition("Available devices:")
    found: dict[str, Device] = {}
    for match in filter(None, map(_ROW.match, rows.splitlines())):
        total_bytes, free_bytes = int(match["total"]) * MIB, int(match["free"]) * MIB
        if total_bytes:
            found.setdefault(
                match["name"], _listed(match["name"], match["text"], total_bytes, min(free_bytes, total_bytes))
            )
    return _addressed(found.values())


def _addressed(devices: Iterable[Device]) -> list[Device]:
    """Remote devices with an identity: their server's address, and which of its devices. Their names depend on the
    order in which the servers are given, and others may have other ones.
    """
    seen: Counter[str] = Counter()
    found = []
    for device in devices:
        if device.backend == "RPC":
            seen[device.description] += 1
            uuid = f"rpc:{device.description}/{seen[device.description] - 1}"
            device = replace(device, uuid=uuid)
        found.append(device)
    return found


def _listed(name: str, text: str, total_bytes: int, free_bytes: int) -> Device:
    integrated = bool(_INTEGRATED.search(text))
    return Device(
        name, total_bytes, free_bytes, description=text, context_included=True, integrated=integrated
    )


def _no_list(caps: Capabilities, result: QueryResult, deadline_s: float, rpc: Sequence[str]) -> DeviceError:
    why = result.first_error or f"exit status {result.returncode}"
    if rpc and (away := _UNREACHED.search(result.stderr)):
        return DeviceError(
            f"the RPC server {away[1]} cannot be reached",
            why="nothing listens there, or a firewall is between",
            fix="start ggml-rpc-server there, or take the address out of rpc in [placement]",
        )
    if rpc and result.timed_out:
        return DeviceError(
            f"the RPC server {' or '.join(rpc)} does not answer",
            why=f"no answer within {deadline_s:g} s: it serves one client at a time",
            fix="see who else uses it; name it in one definition only",
        )
    if result.timed_out:
        why = f"no answer within {deadline_s:g} s: a GPU driver may hang"
    return DeviceError(
        "llama-server cannot list its devices",
        why=why,
        fix=f"run {caps.path} --list-devices by hand, and look into the kernel log",
    )


@dataclass(frozen=True)
class Surroundings:
    """What else decides which devices there are: folders whose entries are read, and where the boot id stands."""

    folders: tuple[Path, ...] = (
        Path("/dev/dri"),
        Path("/usr/share/vulkan/icd.d"),
        Path("/etc/vulkan/icd.d"),
        Path("/etc/OpenCL/vendors"),
    )
    nodes: Path = Path("/dev")
    boot_id: Path = Path("/proc/sys/kernel/random/boot_id")

    def fingerprint(self) -> list[object]:
        """Names of device nodes and of drivers' descriptions, and the boot they belong to."""
        nodes = [name for name in _names(self.nodes) if name.startswith(("nvidia", "kfd", "dxg"))]
        try:
            boot = self.boot_id.read_text().strip()
        except OSError:  # hidden by a sandbox: drivers' versions and the nodes still tell
            boot = ""
        return [boot, nodes, [_names(folder) for folder in self.folders]]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


_DRIVER_VARIABLES = (
    "CUDA_",
    "GGML_",
    "HIP_",
    "HSA_",
    "ROCR_",
    "VK_",
    "ONEAPI_",
    "ZE_",
    "LD_",
    "GPU_",
    "MESA_",
)


class DeviceFinder:
    """Probe of everything: llama-server's list (kept in `cache_file`) with the drivers' fresh figures.

    `env` is the child's environment without a plan (`environment.child_environment`). `rpc` has the addresses of
    remote devices; while they are `rpc_in_use` by a child of ours they are not asked, and what they last told counts.
    `hints` says in words what
    an admin should know when the last call found less than he may expect.
    """

    def __init__(
        self,
        caps: Capabilities,
        env: Mapping[str, str],
        *,
        nvml: Probe,
        amdgpu: Probe,
        cache_file: Path | None = None,
        deadline_s: float = 5.0,
        host: Callable[[], HostMemory] = host_memory,
        surroundings: Surroundings | None = None,
        rpc: Sequence[str] = (),
        rpc_in_use: bool = False,
    ) -> None:
        self._rpc = tuple(rpc)
        self._rpc_in_use = rpc_in_use
        self._caps = caps
        self._env = env
        self._nvml = nvml
        self._amdgpu = amdgpu
        self._cache_file = cache_file
        self._deadline_s = deadline_s
        self._host = host
        self._surroundings = surroundings or Surroundings()
        self.hints: tuple[str, ...] = ()
        self.left_out: tuple[str, ...] = ()
        """GPUs that the last call left out because they do not answer, each with its reason."""

    def devices(self) -> list[Device]:
        """`find`, as the Probe protocol has it."""
        return self.find()

    def find(self, *, trust_none: bool = False) -> list[Device]:
        """Devices with what is free on them now. Blocking: 1 ms where drivers tell it, else one `--list-devices`.

        A kept list of no devices counts only with `trust_none`: a driver may come late, and nobody who needs a
        GPU may be told for ever that there is none. Raises DeviceError as the probes and `list_devices` do.
        """
        nvml, amdgpu, host = self._read(trust_none=trust_none)
        key = self._key(nvml, amdgpu)
        if self._rpc and self._rpc_in_use:
            return self._merged(self._last_told(self._kept(key)), nvml, amdgpu, host)
        found = self._told(key, nvml, amdgpu, host)
        if found is not None and (found or trust_none):
            self._hint(found, nvml, amdgpu)
            return found
        engine = list_devices(self._caps, self._env, self._deadline_s, self._rpc)
        self._keep(key, engine)
        found = self._merged(engine, nvml, amdgpu, host)
        self._hint(found, nvml, amdgpu)
        return found

    def glance(self) -> list[Device] | None:
        """The devices as far as the drivers tell them. None where llama-server would have to be run to say what is
        free, which takes memory of its own. Raises DeviceError as the probes do.
        """
        nvml, amdgpu, host = self._read(trust_none=False)
        return self._told(self._key(nvml, amdgpu), nvml, amdgpu, host)

    def _read(self, *, trust_none: bool) -> tuple[list[Device], list[Device], HostMemory]:
        nvml, refused = self._nvidia(trust_none=trust_none)
        amdgpu, host = self._amdgpu.devices(), self._host()
        self.left_out = (*refused, *getattr(self._nvml, "problems", ()))
        return nvml, amdgpu, host

    def _told(
        self, key: str, nvml: Sequence[Device], amdgpu: Sequence[Device], host: HostMemory
    ) -> list[Device] | None:
        """The kept list with the drivers' figures; None where there is none, or no driver tells one of them."""
        kept = self._kept(key)
        if kept is None:
            return None
        found = self._merged(kept, nvml, amdgpu, host)
        return found if all(device.source != "engine" or device.integrated for device in found) else None

    def _last_told(self, kept: list[Device] | None) -> list[Device]:
        """What was said before a child of ours took the remote devices. Raises DeviceError where nothing is kept."""
        if kept is None:
            raise DeviceError(
                f"the RPC server {' or '.join(self._rpc)} serves the running model",
                why="it serves one client at a time, and what it said before is not kept here",
                fix="stop the model first; or ask as the user that serves it (sudo llamad plan)",
            )
        return kept

    def _nvidia(self, *, trust_none: bool) -> tuple[list[Device], tuple[str, ...]]:
        """What NVML shows; where a model may do without a GPU, a driver that cannot be used is left out."""
        try:
            return self._nvml.devices(), ()
        except DeviceError as error:
            if not trust_none:
                raise
            return [], (str(error),)

    def _hint(self, found: Sequence[Device], nvml: Sequence[Device], amdgpu: Sequence[Device]) -> None:
        absence = getattr(self._nvml, "absence", "")
        # Without a driver there is nothing to say: most machines have none.
        said = (absence,) if absence and not absence.startswith("no NVIDIA driver") else ()
        self.hints = (*_hints(found, nvml, amdgpu), *self.left_out, *said)

    def _merged(
        self, engine: Sequence[Device], nvml: Sequence[Device], amdgpu: Sequence[Device], host: HostMemory
    ) -> list[Device]:
        return merge_devices(engine, nvml, amdgpu, host, self._env, nvml_complete=not self.left_out)

    def _key(self, nvml: Sequence[Device], amdgpu: Sequence[Device]) -> str:
        parts = [
            self._caps.key,
            sorted((name, text) for name, text in self._env.items() if name.startswith(_DRIVER_VARIABLES)),
            [(device.driver, device.uuid, device.pci, device.total_bytes) for device in (*nvml, *amdgpu)],
            self._surroundings.fingerprint(),
            self._rpc,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _kept(self, key: str) -> list[Device] | None:
        if self._cache_file is None:
            return None
        raw = load_cache(self._cache_file)
        try:
            if raw["key"] != key:
                return None
            return _addressed(_from_row(row) for row in raw["devices"])
        except (LookupError, TypeError, ValueError):
            return None  # none kept, or not as we write it

    def _keep(self, key: str, engine: Sequence[Device]) -> None:
        if self._cache_file is not None:
            rows = [[one.name, one.description, one.total_bytes, one.free_bytes] for one in engine]
            store_cache(self._cache_file, {"key": key, "devices": rows})


def _from_row(row: Sequence[object]) -> Device:
    """A kept device. Its free bytes count only of a remote one: else a driver or the host must tell them anew."""
    name, text, total, free = row
    if not isinstance(total, int) or not isinstance(free, int):
        raise TypeError("total_bytes")
    return _listed(str(name), str(text), total, free if str(name).startswith("RPC") else total)


def _hints(found: Sequence[Device], nvml: Sequence[Device], amdgpu: Sequence[Device]) -> tuple[str, ...]:
    backends = {device.backend for device in found}
    hints = []
    if nvml and not backends & {"CUDA", "Vulkan"}:
        hints.append(
            f"the NVIDIA driver shows {len(nvml)} GPU(s) and llama-server offers none of them:"
            " install its CUDA or Vulkan backend (libggml0-backend-cuda, libggml0-backend-vulkan)"
        )
    if amdgpu and not backends & {"ROCm", "Vulkan"}:
        hints.append(
            f"the amdgpu driver shows {len(amdgpu)} GPU(s) and llama-server offers none of them:"
            " install its Vulkan or HIP backend (libggml0-backend-vulkan, libggml0-backend-hip)"
        )
    return tuple(hints)
