"""`llamad status` and `top`: from what is known to lines, whatever names and sizes there are."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamad.cli.main import main
from llamad.errors import DeviceError
from llamad.hardware.device import Device
from llamad.service.overview import Overview
from llamad.service.picture import KEYS, ORDERS, View, as_text, moved, picture, sorted_rows
from llamad.service.scene import Looker, Scene, device_views
from llamad.service.table import age, row_of, table_lines
from llamad.units import GIB
from tests.support.terminal import on_terminal

AT_S = time.mktime((2026, 3, 1, 12, 0, 0, 0, 0, -1))
READY = "ready: ctx 16384 of 16384, 41/41 layers on CUDA0, 11.9 of 15.6 GiB, 4 slots"


def device(name: str = "CUDA0", gib: float = 8.0, total_gib: float = 16.0, free_gib: float = 14.0) -> dict[str, object]:
    return {
        "name": name, "uuid": f"GPU-{name}", "weights_mib": gib * 512, "context_mib": gib * 256,
        "compute_mib": gib * 128, "margin_mib": 100.0, "planned_mib": gib * 1024 + 100.0,
        "total_mib": total_gib * 1024, "free_at_start_mib": free_gib * 1024,
    }  # fmt: skip


def model(name: str, state: str = "ready", text: str = READY, **more: object) -> Overview:
    content: dict[str, object] = {"name": name, "state": state, "restarts": 0, **more}
    if state == "ready":
        activity = {"active_requests": 1, "waiting_requests": 2, "tokens_per_s": 38.24}
        content = {"context_tokens": 16384, "slots": 4, "activity": activity, "devices": [device()], **content}
    return Overview(name, state, text, int(AT_S) - 600, content)


def scene(*models: Overview, driven: list[Device] | None = None) -> Scene:
    return Scene(AT_S, models, [], device_views(models, driven or []))


def test_a_line_says_all_of_a_model() -> None:
    death = {"at": AT_S - 3 * 3600, "cause": "gpu-out-of-memory-load", "text": "x"}
    ready = model("phi4", text=f"{READY}; running b1, installed b2", restarts=3, last_death=death)
    failed = model("qwen", "failed", "failed: no such file")
    heading, first, second = (" ".join(" ".join(cells).split()) for cells in table_lines([row_of(one, AT_S) for one in (ready, failed)]))
    assert heading == "NAME STATE SINCE CONTEXT MEMORY BUSY WAITING TOKENS/S RESTARTS NOTE"
    assert first == (
        "phi4 ready 10 min 16384 CUDA0 8.0 GiB 1/4 2 38.2 3 running b1, installed b2; last: gpu-out-of-memory-load 3 h ago"
    )
    assert second == "qwen failed 10 min - - - - - 0 no such file"


def test_what_is_not_known_is_not_made_up() -> None:
    row = row_of(Overview("old", "ready", "ready", 0, {"name": "old", "context_tokens": 4096, "slots": 2}), AT_S)
    assert row.cells == ("old", "ready", "", "4096", "-", "-", "-", "-", "-", "")


@pytest.mark.parametrize(("seconds", "text"), [(-5, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 d")])
def test_ages(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_memory_of_a_device_by_what_it_is_for() -> None:
    one, two = model("a"), model("b", devices=[device(gib=4.0)])
    [seen] = device_views([one, two], [])
    assert (seen.name, seen.total_bytes, seen.is_live) == ("CUDA0", 16 * GIB, False)
    assert seen.parts == {"weights": 6 * GIB, "context": 3 * GIB, "compute": 3 * GIB}
    assert (seen.others_bytes, seen.free_bytes) == (2 * GIB, 2 * GIB)
    live = Device("CUDA0", 16 * GIB, 1 * GIB, uuid="GPU-CUDA0")
    idle = Device("CUDA1", 8 * GIB, 8 * GIB, uuid="GPU-2")
    first, second = device_views([one, two], [live, idle])
    assert (first.others_bytes, first.free_bytes, first.is_live) == (3 * GIB, 1 * GIB, True)
    assert (second.name, second.parts, second.free_bytes) == ("CUDA1", {}, 8 * GIB)


def test_the_picture() -> None:
    text = as_text(picture(scene(model("phi4"), model("qwen", "unloaded", "idle for 1800 s")), View(), 110, 9))
    lines = text.splitlines()
    assert lines[0] == "llamad top 12:00:00  1 of 2 models ready  1 requests  2 waiting  38.2 tokens/s"
    assert lines[1].startswith("CUDA0 [####") and lines[1].endswith("] 10.0 GiB of 16.0 GiB (others as at the load)")
    assert lines[2:] == [
        "       # weights   = context   - compute   x others   . free",
        "",
        "  NAME  STATE      SINCE  CONTEXT  MEMORY         BUSY  WAITING  TOKENS/S  RESTARTS  NOTE",
        "> phi4  ready     10 min    16384  CUDA0 8.0 GiB   1/4        2      38.2         0",
        "  qwen  unloaded  10 min        -  -                 -        -         -         0  idle for 1800 s",
        "",
        f"{KEYS}   (by name)",
    ]
    bar = lines[1].partition("[")[2].partition("]")[0]
    share = {sign: bar.count(sign) / len(bar) for sign in "#=-x."}
    assert share["#"] == pytest.approx(4 / 16, abs=0.05) and share["x"] == pytest.approx(2 / 16, abs=0.05)
    assert share["."] == pytest.approx(6 / 16, abs=0.05)


def test_sorting_and_choosing() -> None:
    busy = model("a", activity={"active_requests": 4, "waiting_requests": 9, "tokens_per_s": 1.0}, devices=[device(gib=1)])
    fast = model("b", activity={"active_requests": 1, "waiting_requests": 0, "tokens_per_s": 90.0}, devices=[device(gib=2)])
    down = model("c", "failed", "x")
    found = {key: "".join(row.name for row in sorted_rows(scene(down, busy, fast), key)) for key in ORDERS}
    assert found == {"n": "abc", "s": "abc", "m": "bac", "t": "bac", "w": "abc"}
    rows = sorted_rows(scene(busy, fast, down), "n")
    assert [moved(rows, "b", step) for step in (-1, 0, 1, 5, -5)] == ["a", "b", "c", "c", "a"]
    assert (moved(rows, "gone", 1), moved([], "a", 1)) == ("b", "")


def test_the_chosen_model_and_the_keys_are_always_seen() -> None:
    many = [model(f"m{number:02}") for number in range(40)]
    for chosen in (0, 5, 20, 39):
        lines = as_text(picture(scene(*many), View(chosen=f"m{chosen:02}"), 100, 12)).splitlines()
        assert len(lines) == 12 and lines[-1].startswith("q quit")
        assert [line.split()[1] for line in lines if line.startswith("> ")] == [f"m{chosen:02}"]
    asked = as_text(picture(scene(*many), View(question="unload m01?"), 100, 12)).splitlines()
    assert asked[-1] == "unload m01? (y/n)"


HOSTILE = st.text(st.characters(codec="utf-8", categories=("Cc", "Cf", "Zl", "Co", "Lo", "Mn", "Lu", "So")), max_size=20)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(HOSTILE, HOSTILE, HOSTILE, st.integers(0, 200), st.integers(0, 50))
def test_no_name_or_size_breaks_the_terminal(name: str, text: str, cause: str, width: int, height: int) -> None:
    death = {"at": AT_S, "cause": cause}
    rows = [model(name, text=text, last_death=death, devices=[{**device(), "name": text}, {"name": None}, {}]), model("b", cause, text)]
    view = View(chosen=name, message=text, question=cause)
    lines = picture(Scene(AT_S, rows, [], device_views(rows, []), [text]), view, width, height)
    assert len(lines) == (height if width >= 40 and height >= 6 else min(1, height))
    for line in lines:
        drawn = "".join(span.text for span in line)
        assert len(drawn) <= width and (drawn.isascii() and drawn.isprintable())
    for cells in table_lines([row_of(one, AT_S) for one in rows]):
        assert all(cell.isprintable() for cell in cells)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.dictionaries(
    st.sampled_from(["devices", "activity", "slots", "context_tokens", "last_death", "restarts", "host"]),
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                 lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                     st.sampled_from(["name", "uuid", "total_mib", "planned_mib", "tokens_per_s", "at", "cause"]), inner, max_size=4),
                 max_leaves=12),
))  # fmt: skip
def test_a_status_of_any_form_is_shown(content: dict[str, object]) -> None:
    one = Overview("x", "ready", "ready", 0, content)
    assert len(picture(scene(one), View(), 80, 20)) == 20


class Driver:
    def __init__(self, *found: Device) -> None:
        self.found = found

    def devices(self) -> list[Device]:
        if not self.found:
            raise DeviceError("the driver\x1b[2J does not answer")
        return list(self.found)


def test_looking_asks_systemd_now_and_then_and_a_dead_driver_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "phi4.toml").write_text("")
    asked: list[list[str]] = []
    clock = [0.0]

    def ask(names: list[str]) -> dict[str, dict[str, str]]:
        asked.append(names)
        return {"phi4": {"ActiveState": "failed", "StatusText": "no file"}}

    looker = Looker(tmp_path, drivers=[Driver(Device("CUDA0", GIB, GIB)), Driver()], now=lambda: clock[0], ask=ask)
    for clock[0] in (0.0, 1.0, 4.9):
        seen = looker.look()
    assert asked == [["phi4"]]
    assert [(one.state, one.text) for one in seen.models] == [("failed", "no file")]
    assert [one.name for one in seen.devices] == ["CUDA0"] and seen.notes == ["the driver?[2J does not answer"]
    clock[0] = 5.0
    looker.look()
    (tmp_path / "new.toml").write_text("")
    looker.look()
    looker.forget_units()
    looker.look()
    assert asked == [["phi4"], ["phi4"], ["new", "phi4"], ["new", "phi4"]]


def test_status_colours_only_a_terminal_that_wants_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "phi4.toml").write_text("")
    assert main(["--config", str(tmp_path), "status"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    command = [sys.executable, "-m", "llamad", "--config", str(tmp_path), "status"]
    home = {"PYTHONPATH": os.getcwd()}
    # A unit of that name is stopped here, which has no colour: the state of a file that names this process has.
    run = tmp_path / "run" / "llamad" / "model" / "phi4"
    run.mkdir(parents=True)
    (run / "status.json").write_text(json.dumps({"name": "phi4", "state": "ready", "text": "", "pid": os.getpid()}))
    home["XDG_RUNTIME_DIR"] = str(tmp_path / "run")
    for environ, coloured in ((home, True), ({**home, "NO_COLOR": "1"}, False), ({**home, "TERM": "dumb"}, False)):
        with on_terminal(command, **environ) as terminal:
            assert terminal.wait() == 0, terminal.output
            assert (b"\x1b[32mready" in terminal.output) is coloured, terminal.output
            assert b"ready" in terminal.output


def test_top_on_a_terminal(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text("")
    command = [sys.executable, "-m", "llamad", "--config", str(tmp_path), "top", "--every", "0.1"]
    with on_terminal(command, columns=90, lines=12, PYTHONPATH=os.getcwd()) as top:
        assert "> one" in top.until(lambda text: "two" in text, "the models")
        assert len(top.picture) == 12
        top.type("\x1b[B")
        top.until(lambda text: "> two" in text, "the second one chosen")
        top.type("m")
        top.until(lambda text: "(by memory)" in text, "another order")
        top.resize(50, 8)
        top.until(lambda _: len(top.picture) == 8 and max(map(len, top.picture)) <= 50, "the new size")
        (tmp_path / "two.toml").unlink()
        top.until(lambda text: "> one" in text and "two" not in text, "that one is gone")
        top.type("q")
        assert top.wait() == 0
        assert top.output.rstrip().endswith(b"\x1b[?25h\x1b[?1049l")


def test_top_without_a_terminal_says_what_to_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(tmp_path), "top"]) == 64
    assert "--once" in capsys.readouterr().err
    assert main(["--config", str(tmp_path), "top", "--once"]) == 0
    assert capsys.readouterr().out.startswith("llamad top ")
