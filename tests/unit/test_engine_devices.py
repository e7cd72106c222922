"""Device lists as the real server prints them, merged with what drivers know, and the kept list."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llamad.engine.build import Capabilities
from llamad.engine.devices import DeviceFinder, Surroundings, list_devices, parse_devices
from llamad.engine.merge import merge_devices
from llamad.errors import DeviceError
from llamad.hardware.device import Device, HostMemory
from llamad.units import MIB

DATA = Path(__file__).parents[1] / "data" / "engine"
GIB = 1 << 30
HOST = HostMemory(64 * GIB, 20 * GIB)
ENV = {"PATH": "/usr/bin:/bin"}

CUDA_LIST = """\
ggml_cuda_init: found 2 CUDA devices:
  Device 0: NVIDIA GeForce RTX 4080, compute capability 8.9, VMM: yes
Available devices:
  CUDA0: NVIDIA GeForce RTX 4080 (16012 MiB, 15000 MiB free)
  CUDA1: NVIDIA GeForce RTX 3090 (rev (b)) (24124 MiB, 23000 MiB free)
  BLAS: OpenBLAS (0 MiB, 0 MiB free)
"""


def driver(name: str, total_mib: int, free_mib: int, **more: object) -> Device:
    base = Device(
        name, total_mib * MIB, free_mib * MIB, source="nvml", uuid=f"GPU-{total_mib}", driver="550"
    )
    return replace(base, **more)  # type: ignore[arg-type]


NV4080 = driver("CUDA0", 16376, 15300, description="NVIDIA GeForce RTX 4080", pci="0000:01:00.0")
NV3090 = driver("CUDA1", 24576, 24000, description="NVIDIA GeForce RTX 3090 (rev (b))", pci="0000:02:00.0")


def test_recorded_lists() -> None:
    two = parse_devices((DATA / "devices_two_vulkan.txt").read_text())
    assert [(d.name, d.description) for d in two] == [
        ("Vulkan0", "llvmpipe (LLVM 21.1.8, 256 bits)"),
        ("Vulkan1", "llvmpipe (LLVM 21.1.8, 256 bits)"),
    ]
    assert two[0].total_bytes == 24105 * MIB and two[0].integrated and two[0].context_included
    assert parse_devices((DATA / "devices_none.txt").read_text()) == []


def test_noise_and_parentheses_and_devices_without_memory() -> None:
    one, two = parse_devices(CUDA_LIST)
    assert (one.name, two.description) == ("CUDA0", "NVIDIA GeForce RTX 3090 (rev (b))")
    assert two.free_bytes == 23000 * MIB and not two.integrated
    assert parse_devices("usage: something else\n  CUDA0: x (y MiB, z MiB free)\n") == []


def test_the_drivers_figures_under_the_engines_names() -> None:
    one, two = merge_devices(parse_devices(CUDA_LIST), [NV4080, NV3090], [], HOST)
    assert (one.name, one.uuid, one.free_bytes, one.source) == ("CUDA0", "GPU-16376", 15300 * MIB, "nvml")
    assert (two.name, two.uuid, two.context_included) == ("CUDA1", "GPU-24576", False)


def test_a_gpu_that_the_build_cannot_use_is_left_out_by_name() -> None:
    old = driver("CUDA0", 4096, 4000, description="NVIDIA Quadro K2200")
    engine = parse_devices(CUDA_LIST)
    found = merge_devices(engine, [old, NV4080, NV3090], [], HOST)
    assert [d.uuid for d in found] == ["GPU-16376", "GPU-24576"]
    alone = merge_devices(engine, [NV3090], [], HOST)
    assert [(d.name, d.uuid, d.source) for d in alone] == [
        ("CUDA0", "", "engine"),
        ("CUDA1", "GPU-24576", "nvml"),
    ]


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        ("1", ["GPU-24576"]),
        ("1,0", ["GPU-24576", "GPU-16376"]),
        ("GPU-163", ["GPU-16376"]),
        ("-1", []),
        ("0,x,1", ["GPU-16376"]),
    ],
)
def test_the_definitions_own_choice_of_gpus(visible: str, uuids: list[str]) -> None:
    chosen = [next(d for d in (NV4080, NV3090) if d.uuid == uuid) for uuid in uuids]
    listed = [replace(d, name=f"CUDA{n}", uuid="", source="engine") for n, d in enumerate(chosen)]
    assert [d.uuid for d in merge_devices(listed, [NV4080, NV3090], [], HOST, {"CUDA_VISIBLE_DEVICES": visible})] == uuids


def test_slices_replace_the_one_that_the_engine_sees() -> None:
    engine = [Device("CUDA0", 5 * GIB, 4 * GIB), Device("Vulkan0", 16 * GIB, 15 * GIB)]
    slices = [driver("CUDA0", 4864, 4800, uuid="MIG-x", mig=True), driver("CUDA1", 9728, 9700, uuid="MIG-y", mig=True)]
    found = merge_devices(engine, slices, [], HOST)
    assert [(d.name, d.uuid) for d in found] == [("CUDA0", "MIG-x"), ("CUDA1", "MIG-y"), ("Vulkan0", "")]


def test_amd_and_software_devices() -> None:
    engine = [
        Device("ROCm0", 24 * GIB, 1 * GIB, description="AMD Radeon RX 7900 XTX"),
        Device("ROCm1", 30 * GIB, 29 * GIB, description="AMD Radeon 780M"),
        Device("Vulkan0", 24 * GIB, 24 * GIB, description="llvmpipe", integrated=True),
    ]
    amd = [
        Device("ROCm0", 24 * GIB - MIB, 23 * GIB, uuid="GPU-1", source="amdgpu"),
        Device("ROCm1", GIB // 2, GIB // 4, source="amdgpu", integrated=True),
    ]
    big, small, software = merge_devices(engine, [], amd, HOST)
    assert (big.uuid, big.free_bytes, big.name) == ("GPU-1", 23 * GIB, "ROCm0")
    assert (small.source, small.integrated, small.free_bytes) == ("engine", True, 20 * GIB)
    assert software.free_bytes == HOST.available_bytes


TWIN_A = driver("CUDA0", 24576, 24000, uuid="GPU-aa11", pci="0000:01:00.0", description="NVIDIA RTX 3090")
TWIN_B = driver("CUDA1", 24576, 9000, uuid="GPU-aa22", pci="0000:02:00.0", description="NVIDIA RTX 3090")
SLICES = [
    driver("CUDA0", 4864, 4800, uuid="MIG-x", pci="0000:03:00.0", mig=True),
    driver("CUDA1", 9728, 9700, uuid="MIG-y", pci="0000:03:00.0", mig=True),
]


def listed(count: int, text: str = "NVIDIA RTX 3090", mib: int = 24124, backend: str = "CUDA") -> list[Device]:
    return [Device(f"{backend}{n}", mib * MIB, 8000 * MIB, description=text) for n in range(count)]


@pytest.mark.parametrize(
    ("count", "env", "complete", "uuids"),
    [
        (2, {}, True, ["GPU-aa11", "GPU-aa22"]),
        (1, {"CUDA_VISIBLE_DEVICES": "1"}, True, ["GPU-aa22"]),
        (2, {"CUDA_VISIBLE_DEVICES": "1,0"}, True, ["GPU-aa22", "GPU-aa11"]),
        (1, {"CUDA_VISIBLE_DEVICES": "gpu-AA2"}, True, ["GPU-aa22"]),
        (1, {"CUDA_VISIBLE_DEVICES": " 1 ,9,0"}, True, ["GPU-aa22"]),
        # The driver shows two equal cards, the engine one, and nothing says which: no figure of either.
        (1, {}, True, [""]),
        (1, {"CUDA_VISIBLE_DEVICES": "GPU-aa"}, True, [""]),  # two GPUs have that: CUDA takes neither
        (1, {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, True, [""]),
        (1, {"CUDA_VISIBLE_DEVICES": "1"}, False, [""]),  # a third one is lost: is it counted?
        (2, {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, True, ["", ""]),
        (1, {"CUDA_VISIBLE_DEVICES": "GPU-aa22", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, True, ["GPU-aa22"]),
        (1, {"CUDA_VISIBLE_DEVICES": ""}, True, [""]),
        (1, {"CUDA_VISIBLE_DEVICES": "1,1"}, True, ["GPU-aa22"]),
        (3, {}, True, ["", "", ""]),
        (2, {"GGML_CUDA_DEVICES": "2"}, True, ["", ""]),  # parts of cards that llama.cpp makes up
    ],
)
def test_equal_cards_are_told_apart_or_left_alone(
    count: int, env: dict[str, str], complete: bool, uuids: list[str]
) -> None:
    found = merge_devices(listed(count), [TWIN_A, TWIN_B], [], HOST, env, nvml_complete=complete)
    assert [device.uuid for device in found] == uuids
    known = {"GPU-aa11": 24000 * MIB, "GPU-aa22": 9000 * MIB, "": 8000 * MIB}
    assert [device.free_bytes for device in found] == [known[uuid] for uuid in uuids]


def test_names_count_more_than_the_order() -> None:
    """CUDA's own order has the fastest first; both have 24 GiB."""
    other = replace(TWIN_A, uuid="GPU-bb", pci="0000:00:00.0", description="NVIDIA RTX 4090")
    engine = [*listed(1, "NVIDIA RTX 3090"), replace(listed(1, "NVIDIA RTX 4090")[0], name="CUDA1")]
    found = merge_devices(engine, [other, TWIN_B], [], HOST, {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"})
    assert [device.uuid for device in found] == ["GPU-aa22", "GPU-bb"]


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        (None, ["GPU-aa11", "MIG-x", "MIG-y"]),
        ("MIG-y", ["MIG-y"]),
        ("1", ["MIG-x"]),  # the GPU's number shows its first slice
        ("0", ["GPU-aa11"]),
    ],
)
def test_slices_beside_a_whole_gpu(visible: str | None, uuids: list[str]) -> None:
    env = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    found = merge_devices(listed(1), [TWIN_A, *SLICES], [], HOST, env)
    assert [(device.name, device.uuid) for device in found] == [(f"CUDA{n}", u) for n, u in enumerate(uuids)]
    assert [device.mig for device in found] == [uuid.startswith("MIG") for uuid in uuids]


@pytest.mark.parametrize("variable", ["HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"])
def test_an_amd_card_chosen_by_number_keeps_the_engines_figure(variable: str) -> None:
    cards = [Device(f"ROCm{n}", 24 * GIB, n * GIB, uuid=f"GPU-{n}", source="amdgpu") for n in (1, 2)]
    engine = listed(1, "AMD Radeon RX 7900 XTX", 24 * 1024, "ROCm")
    assert merge_devices(engine, [], cards, HOST, {variable: "1"})[0].free_bytes == 8000 * MIB
    assert merge_devices(engine * 2, [], cards, HOST, {variable: "1,0"})[0].uuid == ""
    assert merge_devices(engine, [], cards[:1], HOST, {variable: "0"})[0].uuid == "GPU-1"


def test_a_card_that_two_backends_list_is_one_card() -> None:
    engine = [*listed(2), *listed(2, backend="Vulkan"), *listed(1, "AMD Radeon RX 7600", 8176, "Vulkan7")]
    amd = [Device("ROCm0", 8 * GIB, GIB, uuid="GPU-f", pci="0000:09:00.0", source="amdgpu", display_active=True)]
    found = merge_devices(engine, [TWIN_A, TWIN_B], amd, HOST)
    assert [device.pci for device in found] == ["0000:01:00.0", "0000:02:00.0"] * 2 + ["0000:09:00.0"]
    assert [device.source for device in found] == ["nvml", "nvml", "engine", "engine", "engine"]
    assert found[4].uuid == "GPU-f" and found[4].free_bytes == 8000 * MIB and found[4].display_active
    # Without CUDA nothing says which of two equal cards is Vulkan0.
    assert [d.pci for d in merge_devices(listed(2, backend="Vulkan"), [TWIN_A, TWIN_B], [], HOST)] == ["", ""]
    (only,) = merge_devices(listed(1, backend="Vulkan"), [TWIN_A], [], HOST)
    assert (only.uuid, only.pci, only.context_included) == ("GPU-aa11", "0000:01:00.0", False)


@pytest.mark.parametrize(
    ("backend", "engine_gib", "expected"),
    [
        ("CUDA", 61, (True, 20 * GIB, "nvml")),  # Jetson, GB10: the host's memory
        ("Vulkan", 48, (True, 5 * GIB, "engine")),
        ("CUDA", 16, (False, 5 * GIB, "engine")),  # the driver does not tell the memory of a card with its own
    ],
)
def test_memory_that_the_driver_does_not_tell(
    backend: str, engine_gib: int, expected: tuple[bool, int, str]
) -> None:
    jetson = replace(NV4080, description="Orin (nvgpu)", integrated=True, total_bytes=64 * GIB, free_bytes=20 * GIB)
    engine = [Device(f"{backend}0", engine_gib * GIB, 5 * GIB, description="Orin (nvgpu)")]
    (device,) = merge_devices(engine, [jetson], [], HOST)
    assert (device.integrated, device.free_bytes, device.source) == expected
    assert device.uuid == "GPU-16376"


def test_an_amd_apu_shares_the_hosts_memory_in_every_backend() -> None:
    apu = Device("ROCm0", GIB // 2, GIB // 4, source="amdgpu", integrated=True, pci="0000:c4:00.0")
    card = Device("ROCm1", 8 * GIB, 7 * GIB, source="amdgpu", pci="0000:03:00.0")
    engine = [
        Device("Vulkan0", 8 * GIB, 7 * GIB, description="AMD Radeon RX 7600 (RADV NAVI33)"),
        Device("Vulkan1", 31 * GIB, 30 * GIB, description="AMD Radeon 780M (RADV PHOENIX)"),
    ]
    found = merge_devices(engine, [], [apu, card], HOST)
    assert [(d.integrated, d.free_bytes, d.pci) for d in found] == [
        (False, 7 * GIB, "0000:03:00.0"),
        (True, 20 * GIB, ""),
    ]


@pytest.mark.parametrize(
    ("row", "name", "backend", "integrated"),
    [
        ("SYCL0: Intel(R) Arc(TM) A770 Graphics (15473 MiB, 15473 MiB free)", "SYCL0", "SYCL", False),
        ("SYCL1: Intel(R) UHD Graphics 770 (29000 MiB, 29000 MiB free)", "SYCL1", "SYCL", True),
        ("SYCL0: Intel(R) Arc(TM) 140V GPU (16GB) (16000 MiB, 1 MiB free)", "SYCL0", "SYCL", True),
        ("SYCL0: Intel(R) Arc(TM) B580 Graphics (12000 MiB, 1 MiB free)", "SYCL0", "SYCL", False),
        ("Vulkan0: Intel(R) Iris(R) Xe Graphics (TGL GT2) (23000 MiB, 2 MiB free)", "Vulkan0", "Vulkan", True),
        ("Vulkan0: Intel(R) Iris(R) Xe MAX Graphics (DG1) (4000 MiB, 2 MiB free)", "Vulkan0", "Vulkan", False),
        ("Vulkan0: Intel(R) Arc(tm) Graphics (MTL) (23000 MiB, 2 MiB free)", "Vulkan0", "Vulkan", True),
        ("Vulkan0: Intel(R) Graphics (LNL) (23000 MiB, 2 MiB free)", "Vulkan0", "Vulkan", True),
        ("Vulkan0: Intel(R) Graphics (BMG G21) (12000 MiB, 2 MiB free)", "Vulkan0", "Vulkan", False),
        ("Vulkan0: Intel(R) Arc(tm) A380 Graphics (DG2) (6000 MiB, 2 MiB free)", "Vulkan0", "Vulkan", False),
        ("Vulkan0: NVIDIA GB10 (:; (x)) (1 MiB, 1 MiB free) (9 MiB, 9 MiB free)", "Vulkan0", "Vulkan", False),
        ("MTL0: Apple M4 Max (98304 MiB, 98303 MiB free)", "MTL0", "MTL", True),
        ("RPC0: 127.0.0.1:50052 (16000 MiB, 15000 MiB free)", "RPC0", "RPC", False),
        ("CANN0: Ascend910 (9 MiB, 9 MiB free)", "CANN0", "CANN", False),
    ],
)
def test_names_of_every_backend(row: str, name: str, backend: str, integrated: bool) -> None:
    (device,) = parse_devices(f"Available devices:\n  {row}\n")
    assert (device.name, device.backend, device.integrated) == (name, backend, integrated)


@pytest.mark.parametrize(
    "row",
    [
        "CUDA0: x (9 MiB, 9 MiB)",
        "CUDA0: x (99999999999999999999 MiB, 9 MiB free)",
        "CUDA0: x (\u0663 MiB, 3 MiB free)",
        "0CUDA: x (9 MiB, 9 MiB free)",
        "CUDA0 x (9 MiB, 9 MiB free)",
        "(none)",
    ],
)
def test_rows_that_are_none(row: str) -> None:
    assert parse_devices(f"Available devices:\n  {row}\n") == []


def test_a_name_counts_once() -> None:
    (device,) = parse_devices("Available devices:\n  A0: x (9 MiB, 9 MiB free)\n  A0: y (5 MiB, 5 MiB free)\n")
    assert device.description == "x"


class Known:
    """A Probe that has these devices."""

    def __init__(self, *devices: Device) -> None:
        self.now = list(devices)

    def devices(self) -> list[Device]:
        return self.now


class Bench:
    """A llama-server that prints a list and counts how often it was asked, and a finder over it."""

    def __init__(self, folder: Path, listing: str) -> None:
        self.folder = folder
        self.nvml, self.amdgpu = Known(), Known()
        self.host = HOST
        self.prints(listing)
        server = folder / "llama-server"
        server.write_text(f"#!/bin/sh\necho $1 >>{folder}/asked\ncat {folder}/listing\n")
        server.chmod(0o755)
        self.caps = Capabilities(str(server), "x", 1, frozenset(), key="k")

    def prints(self, listing: str) -> None:
        (self.folder / "listing").write_text(listing)

    def finder(self, *rpc: str, in_use: bool = False, **env: str) -> DeviceFinder:
        return DeviceFinder(
            self.caps,
            {**ENV, **env},
            rpc=rpc,
            rpc_in_use=in_use,
            nvml=self.nvml,
            amdgpu=self.amdgpu,
            cache_file=self.folder / "cache" / "devices.json",
            host=lambda: self.host,
            surroundings=Surroundings((self.folder / "icd.d",), self.folder / "dev", self.folder / "boot"),
        )

    @property
    def asked(self) -> int:
        log = self.folder / "asked"
        return len(log.read_text().splitlines()) if log.exists() else 0


NO_DEVICES = (DATA / "devices_none.txt").read_text()
LLVMPIPE = "Available devices:\n  Vulkan0: llvmpipe (LLVM 21.1.8, 256 bits) (24105 MiB, 23267 MiB free)\n"


def test_asked_once_then_free_bytes_come_from_the_driver(tmp_path: Path) -> None:
    bench = Bench(tmp_path, CUDA_LIST)
    bench.nvml.now = [NV4080, NV3090]
    first = bench.finder().find()
    bench.nvml.now = [replace(NV4080, free_bytes=5 * GIB), NV3090]
    second = bench.finder().find()
    assert bench.asked == 1
    assert second[0].free_bytes == 5 * GIB and second[1] == first[1]


def test_a_software_device_has_what_the_host_has(tmp_path: Path) -> None:
    bench = Bench(tmp_path, LLVMPIPE)
    assert [d.free_bytes for d in bench.finder().find()] == [20 * GIB]
    bench.host = HostMemory(64 * GIB, 3 * GIB)
    assert [d.free_bytes for d in bench.finder().find()] == [3 * GIB]
    assert bench.asked == 1


@pytest.mark.parametrize("change", ["build", "env", "driver", "icd", "node", "boot", "gpu", "garbage"])
def test_asked_again_when_anything_may_have_changed(tmp_path: Path, change: str) -> None:
    bench = Bench(tmp_path, CUDA_LIST)
    bench.nvml.now = [NV4080, NV3090]
    bench.finder().find()
    if change == "build":
        bench.caps = replace(bench.caps, key="k2")
    elif change == "driver":
        bench.nvml.now = [replace(device, driver="560") for device in bench.nvml.now]
    elif change == "gpu":
        bench.nvml.now = [NV4080]
    elif change == "boot":
        (tmp_path / "boot").write_text("another\n")
    elif change == "garbage":
        (tmp_path / "cache" / "devices.json").write_text("{")
    elif change in ("icd", "node"):
        folder = tmp_path / {"icd": "icd.d", "node": "dev"}[change]
        folder.mkdir()
        (folder / "nvidia-uvm").write_text("")
    bench.finder(**({"GGML_VK_VISIBLE_DEVICES": "0"} if change == "env" else {})).find()
    assert bench.asked == 2


def test_a_device_whose_memory_only_the_engine_knows_is_asked_for_each_time(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "Available devices:\n  Vulkan0: Intel(R) Arc (16000 MiB, 15000 MiB free)\n")
    bench.finder().find()
    bench.prints("Available devices:\n  Vulkan0: Intel(R) Arc (16000 MiB, 9000 MiB free)\n")
    assert [d.free_bytes for d in bench.finder().find()] == [9000 * MIB]


def test_a_glance_asks_drivers_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, CUDA_LIST)
    bench.nvml.now = [NV4080, NV3090]
    assert bench.finder().glance() is None, "nobody has listed the devices yet"
    bench.finder().find()
    bench.nvml.now = [replace(NV4080, free_bytes=5 * GIB), NV3090]
    glanced = bench.finder().glance()
    assert glanced and glanced[0].free_bytes == 5 * GIB
    assert bench.asked == 1
    bench.prints("Available devices:\n  Vulkan0: Intel(R) Arc (16000 MiB, 15000 MiB free)\n")
    bench.nvml.now = []
    bench.finder().find()
    assert bench.finder().glance() is None, "it takes memory of that device to ask"
    assert bench.asked == 2


def test_no_device_is_only_remembered_for_those_who_need_none(tmp_path: Path) -> None:
    bench = Bench(tmp_path, NO_DEVICES)
    assert bench.finder().find() == []
    assert bench.finder().find(trust_none=True) == [] and bench.asked == 1
    bench.prints(LLVMPIPE)  # the driver came late, and nothing else shows it
    assert [d.name for d in bench.finder().find()] == ["Vulkan0"] and bench.asked == 2
    assert [d.name for d in bench.finder().find(trust_none=True)] == ["Vulkan0"]


def test_what_the_drivers_show_and_the_engine_does_not_is_said(tmp_path: Path) -> None:
    bench = Bench(tmp_path, NO_DEVICES)
    bench.nvml.now = [NV4080]
    bench.amdgpu.now = [Device("ROCm0", GIB, GIB)]
    finder = bench.finder()
    assert finder.devices() == [] and len(finder.hints) == 2
    assert "libggml0-backend-cuda" in finder.hints[0] and "libggml0-backend-hip" in finder.hints[1]


class Troubled(Known):
    """A probe of a driver that left a GPU out."""

    problems = ("GPU 1 is lost",)
    absence = ""


def test_a_gpu_that_the_driver_left_out_is_said(tmp_path: Path) -> None:
    bench = Bench(tmp_path, CUDA_LIST)
    bench.nvml = Troubled(NV4080, NV3090)
    finder = bench.finder()
    finder.find()
    assert finder.left_out == ("GPU 1 is lost",) and "GPU 1 is lost" in finder.hints
    bench.nvml = Known(NV4080, NV3090)
    again = bench.finder()
    again.find()
    assert again.left_out == () and again.hints == ()


def test_a_number_of_a_gpu_says_nothing_where_one_is_left_out(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "Available devices:\n  CUDA0: NVIDIA RTX 3090 (24124 MiB, 8000 MiB free)\n")
    bench.nvml = Known(TWIN_A, TWIN_B)
    assert [d.uuid for d in bench.finder(CUDA_VISIBLE_DEVICES="1").find()] == ["GPU-aa22"]
    bench.nvml = Troubled(TWIN_A, TWIN_B)
    assert [d.uuid for d in bench.finder(CUDA_VISIBLE_DEVICES="1").find()] == [""]


def test_failures_name_the_command(tmp_path: Path) -> None:
    bench = Bench(tmp_path, NO_DEVICES)
    server = Path(bench.caps.path)
    server.write_text("#!/bin/sh\necho 'no such device' >&2\nexit 1\n")
    with pytest.raises(DeviceError) as failed:
        list_devices(bench.caps, ENV)
    assert "no such device" in str(failed.value) and "--list-devices" in failed.value.fix
    server.write_text("#!/bin/sh\nexec sleep 1000\n")
    with pytest.raises(DeviceError, match="cannot list its devices") as late:
        list_devices(bench.caps, ENV, 0.3)
    assert "a GPU driver may hang" in late.value.why


def test_a_kept_list_of_another_form_is_ignored(tmp_path: Path) -> None:
    bench = Bench(tmp_path, LLVMPIPE)
    bench.finder().find()
    cache = tmp_path / "cache" / "devices.json"
    for rows in ([["Vulkan0"]], [["Vulkan0", "llvmpipe", "much"]], 5, [5]):
        cache.write_text(json.dumps({"key": json.loads(cache.read_text())["key"], "devices": rows}))
        assert [d.name for d in bench.finder().find()] == ["Vulkan0"]
    assert bench.asked == 5


class Refusing(Known):
    """A driver that cannot be used."""

    def devices(self) -> list[Device]:
        raise DeviceError("NVIDIA driver was upgraded", fix="reboot")


def test_a_driver_that_cannot_be_used_is_done_without_only_by_who_may_do_without_gpus(tmp_path: Path) -> None:
    bench = Bench(tmp_path, NO_DEVICES)
    bench.nvml = Refusing()
    finder = bench.finder()
    with pytest.raises(DeviceError, match="was upgraded"):
        finder.find()
    assert bench.asked == 0
    assert finder.find(trust_none=True) == []
    assert any("was upgraded" in hint for hint in finder.hints), "and it is said"


TWO_SERVERS = (
    "Available devices:\n"
    "  RPC0: 10.0.0.2:50052 (24000 MiB, {free} MiB free)\n"
    "  RPC1: 10.0.0.2:50052 (8000 MiB, 7000 MiB free)\n"
    "  RPC2: 10.0.0.3:50052 (16000 MiB, 15000 MiB free)\n"
)
SERVERS = ("10.0.0.2:50052", "10.0.0.3:50052")


def test_remote_devices_are_asked_for_each_time_and_have_their_server_for_an_identity(tmp_path: Path) -> None:
    bench = Bench(tmp_path, TWO_SERVERS.format(free=20000))
    found = bench.finder(*SERVERS).find()
    assert (tmp_path / "asked").read_text() == "--rpc\n"
    assert [(d.name, d.uuid, d.free_bytes // MIB) for d in found] == [
        ("RPC0", "rpc:10.0.0.2:50052/0", 20000),
        ("RPC1", "rpc:10.0.0.2:50052/1", 7000),
        ("RPC2", "rpc:10.0.0.3:50052/0", 15000),
    ]
    bench.prints(TWO_SERVERS.format(free=9000))
    assert bench.finder(*SERVERS).find()[0].free_bytes == 9000 * MIB and bench.asked == 2


def test_a_remote_device_that_a_child_of_ours_has_is_never_asked(tmp_path: Path) -> None:
    bench = Bench(tmp_path, TWO_SERVERS.format(free=20000))
    with pytest.raises(DeviceError, match="serves the running model"):
        bench.finder(*SERVERS, in_use=True).find()
    first = bench.finder(*SERVERS).find()
    bench.prints(TWO_SERVERS.format(free=1))
    assert bench.finder(*SERVERS, in_use=True).find() == first, "as they last said"
    assert bench.asked == 1
    with pytest.raises(DeviceError, match="serves the running model"):
        bench.finder(SERVERS[0], in_use=True).find()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            "echo './ggml-rpc.cpp:650: Failed to connect to 10.0.0.3:50052' >&2; kill -ABRT $$",
            "the RPC server 10.0.0.3:50052 cannot be reached",
        ),
        ("exec sleep 20", "the RPC server 10.0.0.2:50052 or 10.0.0.3:50052 does not answer"),
    ],
)
def test_a_server_that_is_away_or_serves_another_is_named(tmp_path: Path, body: str, text: str) -> None:
    server = tmp_path / "llama-server"
    server.write_text(f"#!/bin/sh\n{body}\n")
    server.chmod(0o755)
    caps = Capabilities(str(server), "x", 1, frozenset(), key="k")
    with pytest.raises(DeviceError, match=text) as failed:
        list_devices(caps, ENV, 1.0, SERVERS)
    assert failed.value.exit_code == 69
