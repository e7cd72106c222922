"""The log of a child that serves: most lines are dull and cost next to nothing, and none that tells is missed."""

from __future__ import annotations

import json
import random

import pytest

from llamad.engine.log import Sign, telling_lines
from llamad.supervision.intake import Intake
from tests.support.fakes import FakeReporter

TELLING = [
    ("info", "slot update_slots: prompt processing progress, n_tokens = 512"),
    ("info", "slot operator(): cached n_tokens = 0, memory_seq_rm [0, end)"),
    ("info", "image slice encoded in 3 ms"),
    ("info", "encoding image slice..."),
    ("info", "llama_kv_cache:    Vulkan0 KV buffer size =   256.00 MiB"),
    ("warn", "srv init: something is odd"),
    ("error", "srv send_error: task id = 7, error: Context size has been exceeded."),
    ("error", "ggml_vulkan: ErrorOutOfDeviceMemory"),
]
DULL = [("info", "slot launch_slot_: id  0 | task 7 | processing task"), ("debug", "que post: \u00e9 {}"), ("info", "")]



def as_printed(level: str, text: str) -> bytes:
    """As llama-server prints it: no blanks between the members."""
    return json.dumps({"type": "log", "time": 1, "level": level, "msg": text + "\n"}, separators=(",", ":")).encode()


class Slow(Intake):
    """Looks at every line."""

    def _without_dull(self, lines: list[bytes]) -> list[bytes]:
        return lines


def fed(kind: type[Intake], chunks: list[bytes]) -> tuple[object, ...]:
    reporter = FakeReporter()
    intake = kind(reporter, 5, lambda: 0.0)
    signs: list[tuple[Sign, str]] = []
    intake.on_sign = lambda sign, line: signs.append((sign, line.text))
    intake.feed(1, as_printed("info", "first") + b"\n")
    intake.served()
    for chunk in chunks:
        intake.feed(1, chunk)
    observed = intake.observer.observed()
    return signs, intake.line_count, intake.recent(), intake.evidence(), reporter.lines, reporter.events, observed


@pytest.mark.parametrize("seed", range(20))
def test_the_quick_way_tells_the_same_as_looking_at_each_line(seed: int) -> None:
    draw = random.Random(seed)
    lines = [as_printed(*draw.choice(TELLING if draw.random() < 0.2 else DULL)) for _ in range(300)]
    if seed % 3 == 0:
        lines.insert(draw.randrange(300), b"/build/ggml.c:7: GGML_ASSERT failed")
    data = b"\n".join(lines) + b"\n"
    cuts = sorted(draw.randrange(len(data)) for _ in range(12))
    chunks = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]
    assert fed(Intake, chunks) == fed(Slow, chunks)


def test_which_lines_tell() -> None:
    lines = [as_printed(*line) for line in (DULL[0], TELLING[0], DULL[1], TELLING[6])]
    assert telling_lines(lines) == [1, 3]
    assert telling_lines([]) == []
    assert telling_lines([*lines, b"raw"]) is None and telling_lines([b"", lines[0]]) is None
    hidden = as_printed("info", 'said "level":"error" himself')
    assert telling_lines([hidden]) == []
