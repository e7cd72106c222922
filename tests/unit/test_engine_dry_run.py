"""The breakdown as the real server prints it, in both forms, and the runs that give none."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llamad.engine.breakdowns import Breakdown, BreakdownCache
from llamad.engine.dry_run import AskError, BreakdownReader, ask_breakdown
from llamad.engine.log import parse_line
from llamad.errors import ConfigError
from llamad.planning.plan import Parts
from llamad.units import MIB

DATA = Path(__file__).parents[1] / "data" / "engine"
ENV = {"PATH": "/usr/bin:/bin"}


def parts(weights: int, context: int, compute: int) -> Parts:
    return Parts(weights * MIB, context * MIB, compute * MIB)


def read(lines: list[str], *, drafted: bool = False) -> Breakdown | None:
    reader = BreakdownReader(drafted=drafted)
    for line in lines:
        if reader.line(parse_line(line)):
            break
    return reader.breakdown()


@pytest.mark.parametrize("name", ["vulkan_fit.log", "vulkan_fit.jsonl"])
def test_both_forms_of_the_recorded_breakdown(name: str) -> None:
    found = read((DATA / name).read_text().splitlines())
    assert found is not None
    assert found.devices == {"Vulkan0": parts(4, 8, 8)} and found.host == parts(0, 0, 6)
    assert found.memory == {"Vulkan0": (24105 * MIB, 24105 * MIB)}


def test_an_rpc_device_and_one_without_any_gpu() -> None:
    found = read((DATA / "rpc_fit.jsonl").read_text().splitlines())
    assert found is not None and found.devices == {"RPC0": parts(4, 8, 9)}
    cpu = read([*(DATA / "cpu.log").read_text().splitlines(), "end"])
    assert cpu is not None and cpu.devices == {} and cpu.host == parts(4, 8, 9)


def test_two_devices_an_older_name_and_an_underflow() -> None:
    table = """\
| memory breakdown [MiB] | total   free  self model context compute unaccounted |
|   - CUDA0 (RTX (4090)) | 24080 = 23000 + (1080 = 800 + 200 + 80) + 17592186044415 |
|   - CUDA1 (RTX 3090)   | 24124 = 24000 + ( 550 = 400 + 100 + 50) + -426 |
|   - Host               |                   700 = 677 + 0 + 23                |
|   - CPU_REPACK         |                    12 =  12 + 0 +  0                |"""
    found = read([*(f"llama_memory_breakdown_print: {row}" for row in table.splitlines()), "something else"])
    assert found is not None
    assert found.devices == {"CUDA0": parts(800, 200, 80), "CUDA1": parts(400, 100, 50)}
    assert found.host == parts(689, 0, 23) and found.memory["CUDA1"] == (24124 * MIB, 24000 * MIB)
    assert found.renamed({"CUDA0": "CUDA3"}).devices.keys() == {"CUDA3", "CUDA1"}


@pytest.mark.parametrize("name", ["draft_fit.log", "draft_fit.jsonl"])
def test_a_draft_has_an_account_of_its_own_and_a_projector_one_line(name: str) -> None:
    lines = (DATA / name).read_text().splitlines()
    second = [n for n, line in enumerate(lines) if "- Host" in line][1]
    lines[second] = lines[second].replace("340 =   308 +       0", "341 =   309 +       0")
    lines = [line.replace('"self":340,"model":308', '"self":341,"model":309') if n > second else line
             for n, line in enumerate(lines)]  # fmt: skip
    found = read(lines, drafted=True)
    assert found is not None
    assert found.devices == {"CUDA0": parts(1918, 896, 80)} and found.host == parts(308, 0, 32)
    assert found.draft == {"CUDA0": parts(1918, 896, 80)} and found.draft_host == parts(309, 0, 32)
    assert found.vision_bytes == round(850.82 * MIB)
    assert found.draft_without_weights().draft == {"CUDA0": parts(0, 896, 80)}
    alone = read(lines)
    assert alone is not None and alone.draft is None and alone.devices == found.devices


@pytest.mark.parametrize("name", ["draft_fit.log", "draft_fit.jsonl"])
def test_a_draft_that_is_not_measured_is_not_waited_for(name: str) -> None:
    lines = (DATA / name).read_text().splitlines()
    second = [n for n, line in enumerate(lines) if "memory breakdown [MiB]" in line][1]
    begins = next(n for n, line in enumerate(lines) if "loading model tensors" in line)
    reader = BreakdownReader(drafted=True)
    told = [reader.line(parse_line(line)) for line in lines[:second] + lines[begins:]]
    assert told.index(True) == second
    found = reader.breakdown()
    assert found is not None and found.draft is None and found.devices["CUDA0"] == parts(1918, 896, 80)
    failed = "W operator(): failed to measure the memory of the extra model, fitting without it: no"
    reader = BreakdownReader(drafted=True)
    assert [reader.line(parse_line(line)) for line in [*lines[:second], failed]][-1]


@pytest.mark.parametrize(
    "record",
    [
        '{"type":"fit_memory_breakdown"}',
        '{"type":"fit_memory_breakdown","data":{"unit":"GiB","rows":[]}}',
        '{"type":"fit_memory_breakdown","data":{"unit":"MiB","rows":[{"kind":"host","name":"Host"}]}}',
        '{"type":"fit_memory_breakdown","data":[]}',
    ],
)
def test_a_record_of_another_form_is_no_breakdown(record: str) -> None:
    assert read([record, "end"]) is None
    text = (DATA / "vulkan_fit.log").read_text().splitlines()
    after = next(n for n, line in enumerate(text) if "- Host" in line) + 1
    found = read([*text[:after], record, *text[after:]])
    assert found is not None and found.devices == {"Vulkan0": parts(4, 8, 8)}


def script(folder: Path, text: str) -> str:
    path = folder / "server"
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def args(folder: Path) -> list[str]:
    return ["-m", "/srv/models/x.gguf", "--host", str(folder / "dry.sock"), "--fit", "on"]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize(("name", "stream"), [("vulkan_fit.jsonl", 1), ("vulkan_fit.log", 2)])
def test_killed_at_the_breakdown_with_nothing_left(tmp_path: Path, name: str, stream: int) -> None:
    server = script(
        tmp_path,
        f"touch {tmp_path}/dry.sock\necho $$ >{tmp_path}/pid\ncat {DATA / name} >&{stream}\nexec sleep 1000\n",
    )
    started = time.monotonic()
    found = ask_breakdown(server, args(tmp_path), ENV, 60)
    assert time.monotonic() - started < 30
    assert found.devices == {"Vulkan0": parts(4, 8, 8)}
    assert not (tmp_path / "dry.sock").exists()
    assert gone(int((tmp_path / "pid").read_text()))


def test_reasons(tmp_path: Path) -> None:
    cases = [
        (
            f"cat {DATA}/abort.jsonl >&2\nkill -{signal.SIGABRT} $$\n",
            "crashed",
            "cannot run the operation (NONE)",
        ),
        (f"cat {DATA}/truncated_model.jsonl\nexit 1\n", "exited", "model is corrupted or incomplete"),
        ("exit 0\n", "silent", "ended without one"),
        ("exec sleep 1000\n", "late", "within 0.5 s"),
    ]
    for text, reason, why in cases:
        with pytest.raises(AskError) as caught:
            ask_breakdown(script(tmp_path, text), args(tmp_path), ENV, 0.5)
        assert caught.value.reason == reason and why in caught.value.why


def test_a_missing_server_is_not_an_ask_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        ask_breakdown(str(tmp_path / "nothing"), args(tmp_path), ENV)


def test_cache_ignores_socket_and_alias_and_forgets_the_oldest(tmp_path: Path) -> None:
    cache = BreakdownCache(tmp_path / "asked.json")
    kept = Breakdown({"CUDA0": parts(1, 2, 3)}, parts(4, 5, 6), {"CUDA0": (9, 8)})
    cache.put("build", "file", args(tmp_path), kept)
    other_socket = ["-m", "/srv/models/x.gguf", "--alias", "a", "--host", "/elsewhere.sock", "--fit", "on"]
    found = cache.get("build", "file", other_socket)
    assert (
        found is not None
        and found.devices == kept.devices
        and found.host == kept.host
        and found.memory == {}
    )
    whole = replace(kept, memory={}, draft={"CUDA0": parts(1, 0, 2)}, draft_host=parts(0, 0, 7), vision_bytes=9)
    cache.put("build", "drafted", [], whole)
    assert cache.get("build", "drafted", []) == whole
    assert cache.get("other build", "file", other_socket) is None
    assert cache.get("build", "other file", other_socket) is None
    assert cache.get("build", "file", [*other_socket, "-c", "1"]) is None
    for number in range(32):
        cache.put("build", "file", ["-c", str(number)], kept)
    assert (
        cache.get("build", "file", other_socket) is None
        and cache.get("build", "file", ["-c", "0"]) is not None
    )


@pytest.mark.parametrize(
    "garbage", ["", "[]", "{", '{"KEY": 5}', '{"KEY": {"devices": {}, "host": [1, 2, 3], "draft": 4}}', '{"KEY": {"devices": {"a": ["x"]}, "host": []}}']
)
def test_a_garbage_cache_is_ignored(tmp_path: Path, garbage: str) -> None:
    path = tmp_path / "asked.json"
    cache = BreakdownCache(path)
    cache.put("b", "f", [], Breakdown({}, Parts(), {}))
    key = path.read_text().split('"')[1]
    path.write_text(garbage.replace("KEY", key))
    assert cache.get("b", "f", []) is None
    cache.put("b", "f", [], Breakdown({}, parts(1, 1, 1), {}))
    assert cache.get("b", "f", []) == Breakdown({}, parts(1, 1, 1), {})
