"""What was learned: kept whole or not at all, for one key, and never fatal."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamad.config.definition import Definition, Placement, Server
from llamad.planning.plan import Parts
from llamad.supervision.learned import FILE_NAME, Learned, LearnedFile, Load, digest, key_of
from llamad.supervision.step_down import Step
from llamad.units import MIB
from tests.support.fakes import a_plan

STEP = Step("CUDA0", "GPU-1", 500 * MIB, "measured", "gpu-out-of-memory-context", 8192, 300 * MIB)
ARGS = ("-m", "x", "-c", "4096")


def full(key: str = "k") -> Learned:
    load = Load("CUDA0", Parts(1, 2, 3), Parts(100 * MIB, 20 * MIB, 6 * MIB))
    base = Learned(key, context_tokens=4096, args_digest=digest(ARGS), loads=(load,), host=Parts(7, 8, 9))
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
