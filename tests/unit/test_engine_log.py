"""The log reader against what the real llama-server (build 11669) wrote, and against hostile bytes."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamad.engine.log import LineSplitter, LoadObserver, LogLine, Observed, Sign, parse_line, sign_of
from llamad.units import MIB

DATA = Path(__file__).parents[1] / "data" / "engine"


def lines_of(name: str) -> list[LogLine]:
    splitter = LineSplitter()
    raw = splitter.feed((DATA / name).read_bytes()) + splitter.flush()
    return [parse_line(line) for line in raw]


def observe(name: str) -> Observed:
    observer = LoadObserver()
    for line in lines_of(name):
        observer.line(line)
    return observer.observed()


def mib(observed: Observed) -> dict[tuple[str, str], float]:
    return {key: round(size / MIB, 2) for key, size in observed.buffers.items() if size}


@pytest.mark.parametrize("name", ["vulkan.log", "vulkan.jsonl", "vulkan_fit.log", "vulkan_fit.jsonl"])
def test_both_formats_and_both_fit_modes_tell_the_same_load(name: str) -> None:
    observed = observe(name)
    assert mib(observed) == {
        ("CPU_Mapped", "model"): 0.14,
        ("Vulkan0", "model"): 4.65,
        ("Vulkan0", "kv"): 8.0,
        ("Vulkan0", "compute"): 8.01,
        ("Vulkan_Host", "compute"): 6.02,
    }
    assert (observed.context_tokens, observed.slots) == (4096, 4)
    assert observed.model_loaded and observed.listening
    assert observed.first_error == "" and observed.alloc_failures == () and observed.fit_warnings == ()


@pytest.mark.parametrize("name", ["cpu.log", "cpu.jsonl"])
def test_cpu_load(name: str) -> None:
    assert mib(observe(name)) == {
        ("CPU_Mapped", "model"): 4.79,
        ("CPU", "kv"): 8.0,
        ("CPU", "compute"): 9.52,
    }


def test_partial_offload_and_two_devices() -> None:
    partial = mib(observe("partial.jsonl"))
    assert partial["CPU_Mapped", "model"] == partial["Vulkan0", "model"] == 2.39
    assert partial["CPU", "kv"] == partial["Vulkan0", "kv"] == 4.0
    two = mib(observe("two_devices.jsonl"))
    assert (two["Vulkan0", "model"], two["Vulkan1", "model"]) == (3.38, 1.27)
    assert (two["Vulkan0", "kv"], two["Vulkan1", "kv"]) == (6.0, 2.0)


def test_two_caches_of_a_sliding_window_and_recurrent_state() -> None:
    window = mib(observe("sliding_window.jsonl"))
    assert window["Vulkan0", "kv"] == 8.25
    recurrent = mib(observe("recurrent.jsonl"))
    assert recurrent["Vulkan0", "rs"] == 0.89 and ("Vulkan0", "kv") not in recurrent
    assert recurrent["CPU_Mapped", "model"] == 0.32  # a mapping for each tensor that the device refused


def test_an_rpc_servers_address_is_no_part_of_the_device() -> None:
    observed = observe("rpc_fit.jsonl")
    assert round(observed.bytes_of("RPC0", "model", "kv") / MIB, 2) == 12.65


def test_out_of_memory_is_told_with_device_and_size() -> None:
    observed = observe("out_of_memory.jsonl")
    assert not observed.model_loaded
    assert ("Vulkan0", 1 << 30) in [
        (failure.buffer, failure.size_bytes) for failure in observed.alloc_failures
    ]
    assert observed.first_error.startswith("ggml_vulkan: Device memory allocation of size 1073741824 failed")


@pytest.mark.parametrize(
    ("name", "first_error"),
    [
        ("bad_device.jsonl", 'error while handling argument "--device": invalid device: CUDA0'),
        ("bad_flag.txt", "error: invalid argument: --mlock"),
        (
            "missing_model.jsonl",
            "gguf_init_from_file: failed to open GGUF file '/srv/models/nosuch.gguf' (No such file or directory)",
        ),
        (
            "truncated_model.jsonl",
            "llama_model_load: error loading model: tensor 'blk.0.attn_k.weight' data is not within the file"
            " bounds, model is corrupted or incomplete",
        ),
        (
            "quantised_without_fa.jsonl",
            "llama_init_from_model: quantized V cache requires flash_attn to be enabled",
        ),
        (
            "abort.jsonl",
            "./src/ggml-backend.cpp:1089: pre-allocated tensor (cache_k_l0) in a buffer (Vulkan0) that cannot"
            " run the operation (NONE)",
        ),
    ],
)
def test_the_first_error_is_the_cause(name: str, first_error: str) -> None:
    observed = observe(name)
    assert observed.first_error == first_error
    assert not observed.model_loaded and not observed.alloc_failures


def test_requests_leave_signs_of_progress_and_of_a_full_cache() -> None:
    signs = [sign_of(line) for line in lines_of("cache_full.jsonl")]
    assert signs.count(Sign.CACHE_FULL) == 3  # three requests were answered 500
    assert signs.count(Sign.PROMPT_PROGRESS) >= 3
    assert Sign.ALLOC_FAILED not in signs


def test_sizes_add_up_but_compute_buffers_are_replaced() -> None:
    observer = LoadObserver()
    for text in (
        "llama_context: constructing llama_context",
        "llama_kv_cache:      CUDA0 KV buffer size =   100.00 MiB",
        "llama_kv_cache:      CUDA0 KV buffer size =    20.50 MiB",
        "llama_memory_recurrent:      CUDA0 RS buffer size =   149.62 MiB",
        "sched_reserve: reserving ...",
        "sched_reserve:      CUDA0 compute buffer size =   300.00 MiB",
        "sched_reserve: reserving ...",
        "sched_reserve:      CUDA0 compute buffer size =   104.00 MiB",
        "alloc_compute_meta:      CUDA0 compute buffer size =   248.10 MiB",
        "llama_context: constructing llama_context",
        "sched_reserve: reserving ...",
        "sched_reserve:      CUDA0 compute buffer size =     8.00 MiB",
        "llama_x:      CUDA0 DSV4 comp state buffer size =     1.00 MiB",
    ):
        observer.line(LogLine("info", text))
    assert mib(observer.observed()) == {
        ("CUDA0", "kv"): 120.5,
        ("CUDA0", "rs"): 150.62,
        ("CUDA0", "compute"): 360.1,
    }


def test_what_the_server_does_without_is_no_failure() -> None:
    observer = LoadObserver()
    observer.line(LogLine("warning", "failed to allocate 12.00 MiB of pinned memory: out of memory"))
    observer.line(
        LogLine("error", "ggml_gallocr_reserve_n_impl: failed to allocate CUDA1 buffer of size 99")
    )
    assert len(observer.observed().alloc_failures) == 1
    observer.line(
        LogLine(
            "warning",
            "sched_reserve: compute buffer allocation failed, retrying without pipeline parallelism",
        )
    )
    assert observer.observed().alloc_failures == ()


def test_cuda_allocation_failure_has_its_size() -> None:
    observer = LoadObserver()
    sign = observer.line(
        parse_line(
            b"0.01.000.000 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating "
            b"7952.31 MiB on device 1: cudaMalloc failed: out of memory"
        )
    )
    assert sign is Sign.ALLOC_FAILED
    (failure,) = observer.observed().alloc_failures
    assert (failure.buffer, failure.size_bytes) == ("CUDA1", int(7952.31 * MIB))


@pytest.mark.parametrize(
    ("raw", "level", "text"),
    [
        (
            b"0.00.106.382 I srv  llama_server: initializing ...",
            "info",
            "srv  llama_server: initializing ...",
        ),
        (b"\x1b[33m12.34.567.890 W x\x1b[0m", "warning", "x"),
        (b"0.00.106.382 E \x1b[31mred\x00\xff", "error", "red\ufffd\ufffd"),
        (b'{"type":"log","time":1,"level":"warn","msg":"two\\nlines\\n"}', "warning", "two\\nlines"),
        (b'{"type":"log","time":1,"level":"info","msg":"cut at the 81', "raw", None),
        (b'{"type":"log","msg":7}', "info", '{"type":"log","msg":7}'),
        (b"terminate called after throwing an instance of 'std::bad_alloc'", "error", None),
        (b"/build/ggml-cuda.cu:109: CUDA error", "error", None),
        (b"", "raw", ""),
    ],
)
def test_lines(raw: bytes, level: str, text: str | None) -> None:
    line = parse_line(raw)
    assert line.level == level
    assert line.text == (raw.decode() if text is None else text)


@given(st.lists(st.binary(max_size=60), max_size=20), st.integers(1, 30))
def test_splitting_does_not_depend_on_the_chunks(chunks: list[bytes], limit: int) -> None:
    whole = LineSplitter(limit)
    expected = whole.feed(b"".join(chunks)) + whole.flush()
    splitter = LineSplitter(limit)
    found = [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.flush()
    assert found == expected
    assert [line for line in found if len(line) > limit and b" [cut, " not in line] == []


@given(st.binary(max_size=300))
def test_no_bytes_break_the_parser(raw: bytes) -> None:
    text = parse_line(raw).text
    assert "\n" not in text and "\x1b" not in text and "\0" not in text


def test_a_line_of_a_megabyte_and_a_flood_stay_small_and_fast() -> None:
    splitter, observer = LineSplitter(), LoadObserver()
    flood = b"0.00.106.382 I srv  update_slots: all slots are idle\n" * 2000
    tracemalloc.start()
    started = time.monotonic()
    for _ in range(256):
        assert splitter.feed(b"x" * 4096) == []
    (long,) = splitter.feed(b"\n")
    for _ in range(100):
        for raw in splitter.feed(flood):
            observer.line(parse_line(raw))
    took_s = time.monotonic() - started
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert long.endswith(b" [cut, 1040384 bytes more]") and len(long) < 8300
    assert peak_bytes < 2 * MIB
    assert took_s < 30  # 200,000 lines under tracemalloc; about 1 s without it


def test_nothing_that_a_client_gets_into_the_log_changes_what_a_child_that_serves_took() -> None:
    """Grammars of clients are printed raw: what a driver shows beyond the buffers is learned from these figures."""
    observer = LoadObserver()
    for line in lines_of("vulkan.log"):
        observer.line(line)
    before = observer.observed().buffers
    observer.forget_failures()
    for text in ("fitting params", "x:    Vulkan0 model buffer size =  9999.00 MiB", "sched_reserve: reserving ..."):
        observer.line(parse_line(text))
    observer.line(LogLine("info", "srv  params: a prompt that says fit params"))
    assert observer.observed().buffers == before


def test_the_last_failures_of_a_child_that_serves_are_kept() -> None:
    observer = LoadObserver()
    observer.forget_failures()
    for number in range(100):
        observer.line(LogLine("error", f"x: failed to allocate CUDA0 buffer of size {number + 1}"))
    assert [one.size_bytes for one in observer.observed().alloc_failures][-1] == 100
    assert len(observer.observed().alloc_failures) <= 16


@pytest.mark.parametrize(
    "text",
    [
        "allocating 1.2.3 MiB on device 0: cudaMalloc failed",
        "failed to allocate CUDA0 buffer of size " + "9" * 400,
        "failed to allocate output buffer of size . MiB",
        "insufficient memory (attempted to allocate " + "9" * 400 + " MB)",
        "load_tensors:   CUDA0 model buffer size =   1.2.3 MiB",
        "load_tensors:   CUDA0 model buffer size =   " + "9" * 400 + " MiB",
        "llama_context: n_ctx = " + "9" * 5000,
        "srv: n_slots = " + "9" * 5000,
    ],
    ids=range(8),
)
def test_a_number_that_is_none_never_raises(text: str) -> None:
    """An exception where the log is read would end the daemon; clients can have lines printed."""
    for level in ("error", "info", "raw"):
        observer = LoadObserver()
        observer.line(LogLine(level, text))  # type: ignore[arg-type]
        observer.observed()
