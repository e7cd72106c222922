"""The log of a child that serves: most lines are dull and cost next to nothing, and none that tells is missed."""

from __future__ import annotations

import json
import random

import pytest

from llamad.engine.log import LineSplitter, Sign
from llamad.engine.telling import telling_lines
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

    def _is_dull(self, splitter: LineSplitter, data: bytes) -> bool:
        return False


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
    if seed % 4 == 0:
        lines.insert(draw.randrange(300), as_printed("info", "x" * 9000 + " prompt processing"))
        lines.insert(draw.randrange(300), as_printed("warn", "x" * 9000))
    data = b"\n".join(lines) + b"\n"
    cuts = sorted(draw.randrange(len(data)) for _ in range(draw.choice((0, 12, 200))))
    chunks = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]
    assert fed(Intake, chunks) == fed(Slow, chunks)


def test_much_talk_is_remembered_in_little_memory() -> None:
    intake = Intake(FakeReporter(), 5, lambda: 0.0)
    intake.feed(1, as_printed("info", "first") + b"\n")
    intake.served()
    line = as_printed("info", "slot launch_slot_: id  0 | task 7 | processing task " + "y" * 150) + b"\n"
    for _ in range(50):
        intake.feed(1, line * 250)
    assert intake._ring._size <= 200 << 10
    assert intake.recent() == ["slot launch_slot_: id  0 | task 7 | processing task " + "y" * 150] * 200
    assert intake.line_count == 1 + 50 * 250


def test_which_lines_tell() -> None:
    lines = [as_printed(*line) + b"\n" for line in (DULL[0], TELLING[0], DULL[1], TELLING[6])]
    places = [len(lines[0]), sum(map(len, lines[:3]))]
    assert telling_lines(b"".join(lines)) == (4, places)
    assert telling_lines(b"".join([*lines, b"raw\n"])) is None and telling_lines(b"\n" + lines[0]) is None
    hidden = as_printed("info", 'said "level":"error" himself') + b"\n"
    assert telling_lines(hidden) == (1, [])
