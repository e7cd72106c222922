"""Damaged headers: any bytes give facts or a typed error, quickly and in bounded memory."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamad.errors import LlamadError
from llamad.gguf import window
from llamad.gguf.read import read_facts
from tests.support.gguf_bytes import Gguf, key_array, key_i32s, key_text, key_u32, tensor, text
from tests.support.models import build_tiny

EXAMPLES = settings(
    max_examples=500,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
RICH = Gguf(
    keys=[
        *Gguf().keys,
        key_text("general.name", "fuzz"),
        key_u32("general.alignment", 32),
        key_i32s("llama.attention.head_count_kv", 2, 2),
        key_u32("llama.expert_count", 4),
        key_u32("llama.expert_used_count", 2),
        key_array("tokenizer.ggml.tokens", 8, 40, b"".join(text(f"t{n}") for n in range(40))),
        key_text("tokenizer.chat_template", "x" * 5000),
    ]
).to_bytes()
INTERESTING = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])
EDITS = st.lists(
    st.tuples(st.integers(0, len(RICH) - 1), st.one_of(INTERESTING, st.integers(0, 255))),
    min_size=0,
    max_size=12,
)


def read_or_refuse(path: Path) -> None:
    """Anything but a result or a LlamadError is a failure, and so is a slow or a large one."""
    tracemalloc.start()
    started = time.perf_counter()
    try:
        read_facts(str(path))
    except LlamadError as error:
        assert "\n" not in str(error)
    finally:
        elapsed_s = time.perf_counter() - started
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert elapsed_s < 1
    assert peak_bytes < 8 << 20


@EXAMPLES
@given(edits=EDITS, cut=st.integers(0, len(RICH)), extra=st.binary(max_size=64))
def test_mutated_headers(tmp_path: Path, edits: list[tuple[int, int]], cut: int, extra: bytes) -> None:
    content = bytearray(RICH)
    for place, value in edits:
        content[place] = value
    path = tmp_path / "model.gguf"
    path.write_bytes(content if cut % 3 else content[:cut] + extra)
    read_or_refuse(path)


@EXAMPLES
@given(
    place=st.integers(4, len(RICH) - 9),
    number=st.sampled_from([0, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]),
)
def test_headers_with_a_number_out_of_range(tmp_path: Path, place: int, number: int) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(RICH[:place] + number.to_bytes(8, "little") + RICH[place + 8 :])
    read_or_refuse(path)


@EXAMPLES
@given(content=st.binary(max_size=200))
def test_any_bytes_behind_the_magic(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\3\0\0\0" + content)
    read_or_refuse(path)


def test_every_truncation_of_a_header(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    content = Gguf(data_bytes=0, tensors=[tensor("t", (1,))]).to_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(LlamadError):
            read_facts(str(path))


def test_truncations_of_a_real_model(tmp_path: Path) -> None:
    path = build_tiny(tmp_path / "tiny.gguf", layers=1, embd=64)
    size_bytes = path.stat().st_size
    for length in range(size_bytes - 1, 0, -max(1, size_bytes // 97)):
        with path.open("r+b") as file:
            file.truncate(length)
        with pytest.raises(LlamadError):
            read_facts(str(path))


@settings(max_examples=100, deadline=None)
@given(
    some=st.lists(st.sampled_from([0, 1, 7, 8, 9, 40, 63, 64, 65, 300]), min_size=60, max_size=400),
    end=st.integers(0, 300_000),
    fill=st.sampled_from([b"a", b"\0", b"\x08"]),
)
def test_the_fast_hop_equals_the_plain_one(some: list[int], end: int, fill: bytes) -> None:
    lengths = some * (window._SHORTEST_ARRAY_FOR_BATCHES // len(some) + 1)  # long enough for the fast way
    buffer = bytearray(b"".join(n.to_bytes(8, "little") + fill * n for n in lengths) + b"\0" * 64)
    end = min(end, len(buffer))
    assert window._hop(buffer, 0, end, len(lengths)) == window._hop_singly(buffer, 0, end, len(lengths))
