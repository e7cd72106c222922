"""Damaged headers: any bytes give facts or a typed error, quickly and in bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamad.errors import LlamadError
from llamad.gguf import window
from llamad.gguf.read import read_facts
from tests.support.gguf_bytes import Gguf, tensor
from tests.support.gguf_fuzz import BASES, MEMORY_LIMIT_BYTES, READ_LIMIT_S
from tests.support.models import build_tiny

EXAMPLES = settings(
    max_examples=500,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
CASES = 20_000
PROCESSES = 2
ROOT = Path(__file__).parents[2]


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder on a tmpfs where there is one: thousands of files are written and cut."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else None) as folder:
        yield Path(folder)


def test_twenty_thousand_damaged_headers(in_memory: Path) -> None:
    """Each ends in facts or in one line of a typed error, within a second and 256 MiB."""
    runs = []
    for seed in range(PROCESSES):
        folder = in_memory / str(seed)
        folder.mkdir()
        words = [sys.executable, "-m", "tests.support.gguf_fuzz", str(CASES // PROCESSES), str(seed), folder]
        runs.append(subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    outcomes: Counter[str] = Counter()
    for run in runs:
        printed, errors = run.communicate(timeout=110)
        assert run.returncode == 0, errors.decode()
        found = json.loads(printed)
        assert not found["failures"], "\n".join(found["failures"])
        assert found["slowest_s"] < READ_LIMIT_S
        assert found["peak_bytes"] < MEMORY_LIMIT_BYTES
        outcomes += Counter(found["outcomes"])
    assert sum(outcomes.values()) == CASES
    kinds = {name: {key for key in outcomes if key.startswith(f"{name}: ")} for name in BASES}
    for name, seen in kinds.items():
        assert {f"{name}: read", f"{name}: BadModelError"} <= seen, "some damage is harmless, most is not"
    assert sum(count for key, count in outcomes.items() if key.endswith(": read")) > CASES // 20


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
