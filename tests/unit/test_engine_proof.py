"""The proof over recorded loads of the real server, and over misplacements made from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamad.engine.log import LoadObserver, LogLine, Observed, parse_line
from llamad.engine.proof import TOLERANCE_BYTES, compare
from llamad.planning.plan import DevicePlan, Parts, Plan
from llamad.units import MIB
from tests.unit.test_engine_flags import plan as some_plan

DATA = Path(__file__).parents[1] / "data" / "engine"
GIB_OF_WORDS = (
    "planned 7952 MiB of weights on Vulkan0, llama-server put 5.00 MiB there and 7947 MiB on the CPU"
)


def observe(name: str) -> Observed:
    observer = LoadObserver()
    for raw in (DATA / name).read_bytes().splitlines():
        observer.line(parse_line(raw))
    return observer.observed()


def observed(*lines: str) -> Observed:
    observer = LoadObserver()
    for line in lines:
        observer.line(LogLine("info", line))
    return observer.observed()


def device(
    name: str, weights_mib: float, context_mib: float, uuid: str = "", *, draft_mib: float = 0
) -> DevicePlan:
    draft = round(draft_mib * MIB)
    parts = Parts(round(weights_mib * MIB), round(context_mib * MIB), 500 * MIB, draft_bytes=draft)
    return DevicePlan(name, uuid, 0, 0, 5, parts)


def planned(*devices: DevicePlan, host_weights_mib: float = 0, host_context_mib: float = 0) -> Plan:
    host = Parts(round(host_weights_mib * MIB), round(host_context_mib * MIB), 6 * MIB)
    return replace(some_plan(), devices=devices, host=host)


ONE = planned(device("Vulkan0", 4.65, 8))
LOADS = {
    "vulkan.log": ONE,
    "vulkan.jsonl": ONE,
    "vulkan_fit.log": ONE,
    "vulkan_fit.jsonl": planned(device("Vulkan0", 4, 8)),  # as the whole MiB of an asked plan are
    "two_devices.jsonl": planned(device("Vulkan0", 3.38, 6), device("Vulkan1", 1.27, 2)),
    "partial.jsonl": planned(device("Vulkan0", 2.39, 4), host_weights_mib=2.39, host_context_mib=4),
    "rpc_fit.jsonl": planned(device("RPC0", 4.65, 8)),
    "sliding_window.jsonl": planned(device("Vulkan0", 6.9, 8.25)),
    "recurrent.jsonl": planned(device("Vulkan0", 5.1, 0.89)),
    "draft.jsonl": planned(
        device("CUDA0", 1918.35, 896, draft_mib=1918.35 + 896 + 80), host_weights_mib=308.23
    ),
    "cpu.log": planned(host_weights_mib=4.79, host_context_mib=8),
    "cpu.jsonl": planned(host_weights_mib=4, host_context_mib=8),
}


SAME = {"vulkan.log", "vulkan.jsonl", "vulkan_fit.log", "vulkan_fit.jsonl"}
SAME_CPU = {"cpu.log", "cpu.jsonl"}


@pytest.mark.parametrize("name", LOADS)
def test_a_load_proves_its_own_plan_and_no_other(name: str) -> None:
    seen = observe(name)
    for other, other_plan in LOADS.items():
        like = other == name or {name, other} <= SAME or {name, other} <= SAME_CPU
        assert (compare(other_plan, seen) == []) == like, (name, other, compare(other_plan, seen))


def test_silent_fall_back_to_the_cpu_is_told_in_words() -> None:
    seen = observe("cpu.log")
    found = compare(ONE, seen)
    assert [(m.device, m.kind) for m in found] == [
        ("Vulkan0", "weights"),
        ("Vulkan0", "context"),
        ("CPU", "context"),
    ]
    assert found[1].text == (
        "planned 8.00 MiB of context on Vulkan0, llama-server put 0.00 MiB there and 8.00 MiB on the CPU"
    )


def test_weights_pushed_to_the_cpu_by_an_override() -> None:
    seen = observed(
        "load_tensors: offloaded 41/41 layers to GPU",
        "load_tensors:   CPU_Mapped model buffer size =  7947.00 MiB",
        "load_tensors:      Vulkan0 model buffer size =     5.00 MiB",
        "llama_kv_cache:    Vulkan0 KV buffer size =  1600.00 MiB",
    )
    (found,) = compare(planned(device("Vulkan0", 7952, 1600)), seen)
    assert found.text == GIB_OF_WORDS
    assert (found.planned_bytes, found.observed_bytes) == (7952 * MIB, 5 * MIB)


def test_a_tiny_part_without_any_line_is_missed_too() -> None:
    seen = observed("load_tensors:      Vulkan0 model buffer size =     4.65 MiB")
    (found,) = compare(planned(device("Vulkan0", 4.65, 0.5)), seen)
    assert found.kind == "context"


def test_recurrent_state_counts_as_context_and_embedding_models_have_none() -> None:
    seen = observed(
        "load_tensors:      CUDA0 model buffer size =   800.00 MiB",
        "llama_kv_cache:      CUDA0 KV buffer size =   100.00 MiB",
        "llama_memory_recurrent:      CUDA0 RS buffer size =    49.62 MiB",
    )
    assert compare(planned(device("CUDA0", 800, 149.62)), seen) == []
    assert [m.kind for m in compare(planned(device("CUDA0", 800, 100)), seen)] == ["context"]
    bert = observed("load_tensors:      CUDA0 model buffer size =   800.00 MiB")
    assert compare(planned(device("CUDA0", 800, 0)), bert) == []


def test_more_than_planned_is_a_mismatch_as_well() -> None:
    seen = observed(
        "load_tensors:      CUDA0 model buffer size =   802.00 MiB",
        "llama_kv_cache:      CUDA0 KV buffer size =   100.00 MiB",
    )
    (found,) = compare(planned(device("CUDA0", 800, 100)), seen)
    assert found.text == "planned 800 MiB of weights on CUDA0, llama-server put 802 MiB there"


def test_names_of_a_child_that_sees_its_own_gpus_only() -> None:
    seen = observed(
        "load_tensors:      CUDA0 model buffer size =   800.00 MiB",
        "load_tensors:      CUDA1 model buffer size =   400.00 MiB",
        "llama_kv_cache:      CUDA0 KV buffer size =   100.00 MiB",
        "llama_kv_cache:      CUDA1 KV buffer size =    50.00 MiB",
    )
    good = planned(device("CUDA2", 800, 100, "GPU-c"), device("CUDA0", 400, 50, "GPU-a"))
    assert compare(good, seen) == []
    swapped = planned(device("CUDA0", 800, 100), device("CUDA2", 400, 50))
    assert {m.device for m in compare(swapped, seen)} == {"CUDA1", "CUDA2"}


def test_anything_on_a_device_that_was_not_planned() -> None:
    seen = observed(
        "load_tensors:   CPU_Mapped model buffer size =    10.00 MiB",
        "llama_kv_cache:        CPU KV buffer size =     8.00 MiB",
        "sched_reserve:      CUDA0 compute buffer size =   300.00 MiB",
    )
    (found,) = compare(planned(host_weights_mib=10, host_context_mib=8), seen)
    assert found.text == "planned nothing on CUDA0, llama-server put 300 MiB there"


def test_context_on_the_host_that_was_not_planned_there() -> None:
    seen = observed(
        "load_tensors:      CUDA0 model buffer size =   800.00 MiB",
        "llama_kv_cache:      CUDA0 KV buffer size =   100.00 MiB",
        "llama_kv_cache:        CPU KV buffer size =   900.00 MiB",
    )
    (found,) = compare(planned(device("CUDA0", 800, 100)), seen)
    assert (found.device, found.kind) == ("CPU", "context")


def test_a_mapped_range_and_pinned_buffers_on_the_host_are_no_mismatch() -> None:
    seen = observed(
        "load_tensors:   CPU_Mapped model buffer size =  9000.00 MiB",
        "load_tensors:   CPU_REPACK model buffer size =    20.00 MiB",
        "load_tensors:      CUDA0 model buffer size =   800.00 MiB",
        "llama_context:  CUDA_Host  output buffer size =     2.00 MiB",
        "llama_kv_cache:      CUDA0 KV buffer size =   100.00 MiB",
        "sched_reserve:      CUDA0 compute buffer size =   999.00 MiB",
        "sched_reserve:  CUDA_Host compute buffer size =    24.00 MiB",
    )
    assert compare(planned(device("CUDA0", 800, 100), host_weights_mib=300), seen) == []


def test_nothing_seen_at_all_proves_nothing() -> None:
    assert [m.kind for m in compare(ONE, Observed())] == ["weights", "context"]
    assert [m.kind for m in compare(planned(host_weights_mib=4.8, host_context_mib=8), Observed())] == [
        "context",
        "weights",
    ]


@given(st.floats(0, 40), st.floats(0, 40), st.floats(-3, 3), st.floats(-3, 3))
def test_the_bound_is_one_mib_for_each_part(weights: float, context: float, d_w: float, d_c: float) -> None:
    sizes = {
        ("CUDA0", "model"): round(max(0.0, weights + d_w) * MIB),
        ("CUDA0", "kv"): round(max(0.0, context + d_c) * MIB),
    }
    wrong = {m.kind for m in compare(planned(device("CUDA0", weights, context)), Observed(sizes))}
    off_w = abs(sizes["CUDA0", "model"] - round(weights * MIB)) > TOLERANCE_BYTES
    off_c = abs(sizes["CUDA0", "kv"] - round(context * MIB)) > TOLERANCE_BYTES
    assert wrong == {kind for kind, off in (("weights", off_w), ("context", off_c)) if off}


def test_a_draft_is_told_apart_from_the_model_and_may_not_take_more_than_planned() -> None:
    seen = observe("draft.jsonl")
    assert seen.bytes_of("CUDA0", "model") == seen.bytes_of("CUDA0", "draft model") == round(1918.35 * MIB)
    assert seen.bytes_of("CUDA0", "kv") == seen.bytes_of("CUDA0", "draft kv") == 896 * MIB
    bound = planned(device("CUDA0", 1918.35, 896, draft_mib=4000), host_weights_mib=308.23)
    assert compare(bound, seen) == []
    less = planned(device("CUDA0", 1918.35, 896, draft_mib=2800), host_weights_mib=308.23)
    (mismatch,) = compare(less, seen)
    assert str(mismatch) == "planned at most 2800 MiB of a draft on CUDA0, llama-server put 2814 MiB there"
