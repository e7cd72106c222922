"""What was learned: kept whole or not at all, for one key, and never fatal."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamad.config.definition import Definition, Placement, Server
from llamad.engine.arguments import those_for_devices
from llamad.engine.flags import server_args
from llamad.hardware.device import HostMemory
from llamad.planning.plan import BuildGates, Parts, Plan
from llamad.planning.solve import plan as solve
from llamad.supervision.learned import (
    FILE_NAME,
    LEAST_OVERHEAD_BYTES,
    MOST_OVERHEAD_BYTES,
    Learned,
    LearnedFile,
    Load,
    Measured,
    args_digest,
    key_of,
)
from llamad.supervision.step_down import Step
from llamad.units import GIB, MIB
from tests.support.fakes import a_plan
from tests.support.planning import card, facts_of
from tests.support.shapes import LLAMA31_8B
from tests.unit.test_engine_flags import NEW

STEP = Step("CUDA0", "GPU-1", 500 * MIB, "measured", "gpu-out-of-memory-context", 8192, 300 * MIB)
ARGS = ("-m", "x", "-c", "4096")


def full(key: str = "k") -> Learned:
    load = Load("CUDA0", Parts(1, 2, 3), Parts(100 * MIB, 20 * MIB, 6 * MIB))
    measured = (Measured("GPU-1", 300 * MIB, 348 * MIB, 512, used=True),)
    base = Learned(key, measured=measured, context_tokens=4096, args_digest=args_digest(ARGS), loads=(load,), host=Parts(7, 8, 9))
    return base.with_step(STEP, 1e9)._replace(context_tokens=4096)


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    file = LearnedFile(tmp_path / "state")
    assert file.load("k") == Learned("k")
    assert file.save(full())
    assert file.load("k") == full()
    assert [path.name for path in (tmp_path / "state").iterdir()] == [FILE_NAME]
    assert (tmp_path / "state" / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_another_key_knows_nothing_and_forgetting_forgets(tmp_path: Path) -> None:
    file = LearnedFile(tmp_path)
    file.save(full())
    assert file.load("another") == Learned("another")
    assert file.forget() and not file.forget()
    assert file.load("k") == Learned("k")


@pytest.mark.parametrize("data", [b"", b"\0\xff" * 90, b"format = 2\n", b"format = 1\nkey = [\n", b'format = 1\nkey = "k"\n',
                                  b"x" * (2 << 20)])  # fmt: skip
def test_garbage_is_set_aside_with_a_warning_and_learned_anew(tmp_path: Path, data: bytes) -> None:
    said: list[str] = []
    (tmp_path / FILE_NAME).write_bytes(data)
    assert LearnedFile(tmp_path).load("k") == Learned("k")
    assert os.listdir(tmp_path) == [FILE_NAME], "who only looks leaves it there"
    file = LearnedFile(tmp_path, said.append)
    assert file.load("k") == Learned("k")
    assert len(said) == 1 and "set aside" in said[0]
    assert [path.name.startswith("learned.bad-") for path in tmp_path.iterdir()] == [True]
    assert file.save(full()) and file.load("k") == full()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.integers(0, 5000), st.binary(min_size=1, max_size=8))
def test_any_damage_is_survived(tmp_path: Path, at: int, noise: bytes) -> None:
    file = LearnedFile(tmp_path, lambda _text: None)
    file.save(full())
    data = bytearray((tmp_path / FILE_NAME).read_bytes())
    at %= len(data)
    data[at : at + len(noise)] = noise
    (tmp_path / FILE_NAME).write_bytes(data)
    found = file.load("k")
    assert all(size >= 0 for size in found.corrections.values())


def test_a_disk_that_is_full_keeps_what_was_there(tmp_path: Path) -> None:
    said: list[str] = []
    file = LearnedFile(tmp_path, said.append)
    file.save(full())
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # a write past ten bytes fails, as on a full disk
    try:
        assert not file.save(full()._replace(context_tokens=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)
    assert len(said) == 1 and "cannot be kept" in said[0]
    assert file.load("k") == full()
    assert os.listdir(tmp_path) == [FILE_NAME]


def test_a_plan_that_was_proved_needs_not_be_asked_again() -> None:
    plan, learned = a_plan(), full()
    known = learned.asked(plan, ARGS)
    assert known is not None
    assert known[0]["CUDA0"] == Parts(100 * MIB, 20 * MIB, 6 * MIB) and known[1] == Parts(7, 8, 9)
    assert learned.asked(plan, (*ARGS, "-ub", "1")) is None
    assert learned.asked(replace(plan, context_tokens=2048), ARGS) is None
    assert learned.asked(replace(plan, devices=()), ARGS) is None


def test_a_lesson_is_about_model_engine_driver_and_flags_but_not_the_context() -> None:
    definition = Definition(model="/m.gguf")
    key = key_of("f", "e", ["550"], definition)
    assert key == key_of("f", "e", ["550"], replace(definition, placement=Placement(context=8192, context_min=512)))
    others = [
        key_of("g", "e", ["550"], definition), key_of("f", "x", ["550"], definition), key_of("f", "e", ["560"], definition),
        key_of("f", "e", ["550"], replace(definition, placement=Placement(kv_cache="q8_0"))),
        key_of("f", "e", ["550"], replace(definition, server=Server(extra_args=("--lora", "a.gguf")))),
        key_of("f", "e", ["550"], replace(definition, environment={"GGML_X": "1"})),
    ]  # fmt: skip
    assert len({key, *others}) == 7


def test_what_is_left_out_goes_by_uuid_and_comes_back_by_name() -> None:
    assert full().corrections == {"GPU-1": 500 * MIB}
    assert full().reserved([("CUDA3", "GPU-1", 9 << 30), ("CUDA0", "GPU-2", 9 << 30)]) == {"CUDA3": 500 * MIB}


def test_a_room_is_the_same_whatever_the_driver_claims() -> None:
    tried = replace(STEP, how="tried", room_bytes=700 * MIB)
    learned = Learned("k").with_step(tried, 1e9)
    assert learned.reserved([("Vulkan0", "GPU-1", 20_000 * MIB)]) == {"Vulkan0": 19_300 * MIB}
    assert learned.reserved([("Vulkan0", "GPU-1", 10_000 * MIB)]) == {"Vulkan0": 9_300 * MIB}
    assert learned.reserved([("Vulkan0", "GPU-1", 600 * MIB)]) == {}


def args_with(host_gib: int, name: str = "phi4", socket: str = "/run/a.sock") -> tuple[list[str], Plan]:
    """What llama-server is started with on a host that has so much memory free."""
    host = HostMemory(64 * GIB, host_gib * GIB)
    placement = Placement()
    facts = facts_of(LLAMA31_8B)
    plan = solve(facts, [card(free_gib=12.0)], host, placement, frozenset(), BuildGates())
    definition = Definition(model=facts.path, placement=placement)
    return server_args(plan, definition, NEW, socket_path=socket, alias_names=(name,)), plan


def test_two_starts_with_other_free_memory_of_the_host_are_one_plan() -> None:
    (first, plan), (second, _) = args_with(14), args_with(21)
    assert first != second, "the prompt cache follows what is free"
    load = Load("CUDA0", Parts(1, 2, 3), Parts(100 * MIB, 20 * MIB, 6 * MIB))
    learned = Learned("k", context_tokens=plan.context_tokens, args_digest=args_digest(first), loads=(load,))
    assert learned.asked(plan, second) is not None
    assert learned.asked(plan, args_with(21, "another", "/run/b.sock")[0]) is not None
    assert learned.asked(plan, [*second, "--no-kv-offload"]) is None


def test_only_what_changes_no_buffer_is_left_out_of_the_arguments() -> None:
    kept = ["-m", "x", "-c", "1", "--device", "CUDA0", "--no-mmap", "-ub", "64"]
    assert those_for_devices(kept) == kept
    assert those_for_devices(["--cache-ram", "64", *kept, "--host", "/s", "-cram", "9", "--ctx-checkpoints"]) == kept


def test_peaks_beyond_the_buffers_only_rise_and_count_once_in_use() -> None:
    learned = Learned("k").with_measured(Measured("GPU-1", 300 * MIB, 300 * MIB, 512), ready=True)
    assert learned.overheads(512) == {}, "the first minutes say nothing of what use takes"
    assert learned.with_measured(Measured("GPU-1", 250 * MIB, 250 * MIB, 512), ready=True) is learned
    assert learned.with_measured(Measured("GPU-1", 301 * MIB - 1, 301 * MIB - 1, 512)) is learned, "noise is no news"
    grown = learned.with_measured(Measured("GPU-1", 340 * MIB, 340 * MIB, 512, used=True))
    (row,) = grown.measured
    assert (row.loaded_bytes, row.peak_bytes, row.grown_bytes) == (300 * MIB, 340 * MIB, 40 * MIB)
    assert grown.overheads(512) == grown.overheads(256) == {"GPU-1": 340 * MIB}
    assert grown.overheads(1024) == {}, "a larger micro-batch takes more"
    assert grown.with_measured(Measured("GPU-1", 300 * MIB, 300 * MIB, 256)) is grown
    larger = grown.with_measured(Measured("GPU-1", 310 * MIB, 310 * MIB, 1024), ready=True)
    assert larger.measured == (Measured("GPU-1", 310 * MIB, 310 * MIB, 1024),)
    two = grown.with_measured(Measured("GPU-2", 500 * MIB, 500 * MIB, 512, used=True))
    assert two.overheads(512) == {"GPU-1": 340 * MIB, "GPU-2": 500 * MIB}


@pytest.mark.parametrize("size", [-1, 0, LEAST_OVERHEAD_BYTES - 1, MOST_OVERHEAD_BYTES + 1])
def test_what_no_driver_takes_is_not_believed(size: int) -> None:
    learned = Learned("k")
    assert learned.with_measured(Measured("GPU-1", size, size, 512, used=True)) is learned
    assert full().with_measured(Measured("GPU-1", size, size, 512)).measured == full().measured


def test_a_file_of_an_older_llamad_has_no_measures(tmp_path: Path) -> None:
    file = LearnedFile(tmp_path)
    file.save(full())
    text = (tmp_path / FILE_NAME).read_text()
    head, _, tail = text.partition("[[measured]]")
    (tmp_path / FILE_NAME).write_text(head + tail[tail.index("[[event]]") :])
    assert file.load("k") == full()._replace(measured=())
