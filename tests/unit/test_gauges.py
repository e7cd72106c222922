"""The public numbers of a model: right, cheap, and read without trust."""

from __future__ import annotations

import asyncio
import os
import stat
import struct
from pathlib import Path

import pytest

from llamad.front.settings import Outcome, RequestRecord
from llamad.front.usage import Usage
from llamad.service.gauges import Activity, Gauges, read_activity
from llamad.service.paths import GAUGES
from tests.support.fake_upstream import Call
from tests.support.front import running


class Now:
    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


def record(output: int, events: int = 0) -> RequestRecord:
    usage = Usage(9, 0, output, 1.0)
    return RequestRecord("POST", "/", 200, Outcome.ANSWERED, "", 1.0, 0.0, 0.1, 1, 1, 0, "", usage, events)


def test_what_is_written_is_read_by_everybody(tmp_path: Path) -> None:
    now = Now()
    gauges = Gauges(tmp_path, now)
    assert read_activity(tmp_path, now.s) == Activity(0, 0, 0, 0, 0.0)
    assert stat.S_IMODE((tmp_path / GAUGES).stat().st_mode) == 0o644
    now.s += 1
    gauges.counts(3, 2)
    for _ in range(30):  # three a second
        gauges.token()
        now.s += 1 / 3
    gauges.finished(record(output=40, events=30))
    seen = read_activity(tmp_path, now.s + 1)
    assert seen is not None and seen[:4] == (3, 2, 1, 40)
    assert seen.tokens_per_s == pytest.approx((10 + 27) / 10, abs=0.3)  # what was no stream is counted at the end
    late = read_activity(tmp_path, now.s + 12)
    assert late is not None and late.tokens_per_s == 0.0


def test_a_stream_costs_ten_writes_a_second(tmp_path: Path) -> None:
    now = Now()
    gauges = Gauges(tmp_path, now)
    writes = 0
    before = (tmp_path / GAUGES).read_bytes()
    for _ in range(1000):
        now.s += 0.001
        gauges.token()
        after = (tmp_path / GAUGES).read_bytes()
        writes, before = writes + (after != before), after
    assert 8 <= writes <= 11


def test_of_many_requests_at_once_the_first_and_the_last_are_written(tmp_path: Path) -> None:
    now = Now()
    gauges = Gauges(tmp_path, now)
    for active in (1, 2, 3, 2, 1, 0):  # all within a millisecond
        gauges.counts(active, 0)
        if active == 1:
            assert read_activity(tmp_path, now.s)[:2] == (1, 0)  # type: ignore[index]
        if active < 3:
            gauges.finished(record(10))
    assert read_activity(tmp_path, now.s) == Activity(0, 0, 5, 50, 0.0)


def test_a_folder_that_cannot_be_written_bothers_nobody(tmp_path: Path) -> None:
    for folder in (None, tmp_path / "none"):
        gauges = Gauges(folder)
        gauges.counts(1, 1)
        gauges.finished(record(5))
        gauges.close()
    assert read_activity(tmp_path / "none") is None


@pytest.mark.parametrize(
    "content", [b"", b"x" * 320, bytes(320), struct.pack("=40Q", 0x316567756167, *[1 << 63] * 39), b"\xff" * 4096]
)
def test_garbage_is_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / GAUGES).write_bytes(content)
    assert read_activity(tmp_path) is None


def test_a_pipe_or_a_link_is_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / GAUGES)
    assert read_activity(tmp_path) is None
    (tmp_path / GAUGES).unlink()
    Gauges(tmp_path / ".")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / GAUGES).symlink_to(tmp_path / GAUGES)
    assert read_activity(tmp_path / "other") is None


async def stream(call: Call) -> None:
    await call.begin_stream()
    for word in "abcde":
        await call.event(word)
        await call.ping()
        await asyncio.sleep(0)
    await call.end()


@pytest.mark.asyncio
async def test_the_relay_tells_of_every_admission_and_event(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    events = 0

    def event() -> None:
        nonlocal events
        events += 1

    async with running(handler=stream, max_concurrent_requests=1) as bench:
        bench.front.watch(lambda active, waiting: told.append((active, waiting)), event)
        await asyncio.gather(*(bench.ask("POST", "/v1/chat/completions", body=b"{}") for _ in range(3)))
        assert told[-1] == (0, 0)
    assert max(active for active, _ in told) == 1 and max(waiting for _, waiting in told) == 2
    assert sum(one.events for one in bench.observer.records) == events
    assert 3 <= events <= 15  # pieces may come together
