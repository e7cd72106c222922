"""`llamad explain`: the story in sentences, from files that anybody may have written."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamad.cli.main import main
from llamad.ledger.lease import Lease, Phase
from llamad.planning.plan import NextContext, Parts
from llamad.service.deaths import FILE_NAME as DEATHS
from llamad.service.deaths import MOST_DEATHS, Death, DeathLog, keep_death, read_deaths
from llamad.service.overview import Overview
from llamad.service.status import StatusFile, read_status
from llamad.service.story import Story, read_story, story_json, story_text
from llamad.supervision.launch import Launch
from llamad.supervision.learned import FILE_NAME, Learned, LearnedFile, Load, Measured
from llamad.supervision.step_down import Step
from llamad.units import GIB, MIB
from tests.support.fakes import a_plan, loaded_of

AT_S = int(time.mktime((2026, 3, 1, 12, 0, 0, 0, 0, -1)))
STEP = Step("CUDA0", "GPU-1", 500 * MIB, "measured", "gpu-out-of-memory-context", 8192, 300 * MIB)
LEARNED = Learned(
    "k",
    loads=(Load("CUDA0", Parts(100 * MIB, 20 * MIB, 5 * MIB), Parts(100 * MIB, 20 * MIB, 9 * MIB)),),
    measured=(Measured("GPU-1", 300 * MIB, 348 * MIB, 512, used=True),),
).with_step(STEP, AT_S)
LEASES = [
    Lease("phi4", Phase.SETTLED, promised={"GPU-1": 8 * GIB}, names={"GPU-1": "CUDA0"}),
    Lease("qwen", Phase.SETTLED, promised={"GPU-1": 3 * GIB, "host": GIB}, names={"GPU-1": "CUDA0"}),
]


def overview_of(folder: Path) -> Overview:
    """What the daemon wrote into its status file."""
    plan = a_plan(context_tokens=4096, context_train_tokens=16384, next_context=NextContext(8192, "CUDA0", 512 * MIB))
    launch = Launch(loaded_of("phi4"), plan, (), {}, "/s", 300, "completion", "11669")
    folder.mkdir(parents=True)
    StatusFile(folder, "phi4").serving(launch)
    content = read_status(folder.name, folder.parent)
    assert content is not None
    return Overview("phi4", "ready", "ready: ctx 4096", AT_S, content)


def test_the_whole_story(tmp_path: Path) -> None:
    LearnedFile(tmp_path / "state").save(LEARNED.with_outcome(4096))
    keep_death(tmp_path / "state", Death(AT_S, "gpu-out-of-memory-context", "not enough memory for the context"))
    story = read_story("phi4", overview_of(tmp_path / "run" / "phi4"), LEASES, [tmp_path / "none", tmp_path / "state"])
    assert story_text(story) == (
        "phi4 is ready: ctx 4096\n"
        "The plan in force has a context of 4096 tokens of the 16384 that it was trained for, 4 slots, by llama-server 11669.\n"
        "On CUDA0: 125 MiB with margin, of that 125 MiB in buffers; 8.0 GiB were free.\n"
        "These bytes are computed from the model file.\n"
        "\n"
        "Predicted and real bytes of the last proved load\n"
        "  CUDA0: weights 100 MiB (as predicted), context 20.0 MiB (as predicted) and compute 9.0 MiB (4.0 MiB more than"
        " predicted)\n"
        "\n"
        "Beyond the buffers, as the driver shows it\n"
        "  CUDA0: 300 MiB when it was ready, 48.0 MiB more later; plans count with that\n"
        "\n"
        "What was learned from lack of memory\n"
        "  2026-03-01 12:00:00  gpu-out-of-memory-context on CUDA0 (GPU-1), an allocation of 300 MiB: the context went from 8192"
        " to 4096 tokens; 500 MiB less of the device (measured by the driver's own figures)\n"
        "  500 MiB of CUDA0 (GPU-1) are left out of every plan.\n"
        "\n"
        "Last deaths of llama-server\n"
        "  2026-03-01 12:00:00  gpu-out-of-memory-context: not enough memory for the context\n"
        "  `journalctl -u llamad@phi4 -x` has each with an explanation.\n"
        "\n"
        "What would help\n"
        "  A context of 8192 tokens needs 512 MiB more on CUDA0, of which others were promised: qwen (3.0 GiB).\n"
        "  `llamad forget phi4` has the larger context tried again, if the reason has gone.\n"
    )
    told: Any = story_json(story)
    assert told["loads"][0]["real_mib"] == {"weights": 100.0, "context": 20.0, "compute": 9.0}
    assert told["lessons"][0]["stepped_to_tokens"] == 4096
    assert told["held_by_others_mib"] == {"CUDA0": {"qwen": 3072.0}, "host": {"qwen": 1024.0}}
    assert told["deaths"] == [{"at": AT_S, "cause": "gpu-out-of-memory-context", "text": "not enough memory for the context"}]


def test_a_model_of_which_nothing_is_known(tmp_path: Path) -> None:
    story = read_story("phi4", Overview("phi4", "stopped", ""), [], [tmp_path])
    assert story_text(story) == "phi4 is stopped\n"
    assert story_json(story)["problems"] == []


def test_a_larger_context_that_lacks_nothing_is_held_back_by_what_is_written(tmp_path: Path) -> None:
    content = {"next_context": {"device": "host", "context_tokens": 8192, "missing_mib": 0}}
    text = story_text(read_story("phi4", Overview("phi4", "ready", "ready", 0, content), [], [tmp_path]))
    assert "A context of 8192 tokens would have had room: see `context` in [placement].\n" in text
    assert "0 B more" not in text


def test_what_others_may_not_read_is_said_to_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_words: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    story = read_story("phi4", Overview("phi4", "ready", "ready"), [], [tmp_path])
    assert "can be read by root only" in story_text(story)


HOSTILE = "\x1b]0;owned\x07\x1b[31m\u202edaer\nfake line\x9b2J"


def test_nothing_that_a_terminal_obeys_comes_through(tmp_path: Path) -> None:
    learned = replace_texts(LEARNED)
    LearnedFile(tmp_path).save(learned)
    keep_death(tmp_path, Death(AT_S, HOSTILE, HOSTILE))
    content: dict[str, object] = {
        "context_tokens": 4096, "slots": "x", "engine": HOSTILE, "source": [], "context_trained_tokens": -1,
        "devices": [{"name": HOSTILE, "uuid": "GPU-1", "buffers_mib": "?", "planned_mib": 1e300}, 7],
        "next_context": {"device": HOSTILE, "context_tokens": True, "missing_mib": None},
    }  # fmt: skip
    leases = [Lease("bad", Phase.SETTLED, promised={"x": 1}, names={"x": HOSTILE})]
    story = read_story("phi4", Overview("phi4", HOSTILE, HOSTILE, 0, content), leases, [tmp_path])
    text = story_text(story)
    assert all(line.isprintable() for line in text.splitlines())
    assert "\nfake line" not in text
    assert json.loads(json.dumps(story_json(story), default=str))["name"] == "phi4"


def replace_texts(learned: Learned) -> Learned:
    event = dict(learned.events[0]) | {"cause": HOSTILE, "how": HOSTILE, "at": -5, "size_mib": 1 << 60}
    return learned._replace(events=(event,), corrections={HOSTILE: 1}, rooms={HOSTILE: 1}, loads=(
        replace_device(learned.loads[0]),), measured=(Measured(HOSTILE, 1, 2, 3),))  # fmt: skip


def replace_device(load: Load) -> Load:
    return load._replace(device=HOSTILE)


@pytest.mark.parametrize("name", [FILE_NAME, DEATHS])
def test_a_pipe_or_a_link_in_place_of_a_file_holds_nobody_up(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    story = read_story("phi4", Overview("phi4", "stopped", ""), [], [tmp_path])
    assert "no regular file" in story_text(story)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/etc/passwd")
    assert "cannot be read" in story_text(read_story("phi4", Overview("phi4", "stopped", ""), [], [tmp_path]))


@pytest.mark.parametrize("data", [b"", b"\0" * 90, b"[[[", b'{"a": 1}', b"[1, [2], [3, 4, 5], [true, 1, 2]]", b"[" * 5000])
def test_garbage_has_no_story(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(data)
    (tmp_path / DEATHS).write_bytes(data)
    text = story_text(read_story("phi4", Overview("phi4", "stopped", ""), [], [tmp_path]))
    assert "what was learned is damaged" in text and "Last deaths" not in text


def test_the_last_deaths_are_kept_in_their_order(tmp_path: Path) -> None:
    async def die() -> None:
        log = DeathLog(tmp_path / "state")
        for number in range(MOST_DEATHS + 5):
            log.note("crash", f"number {number}")
        await asyncio.gather(*log._writes)

    asyncio.run(die())
    found = read_deaths(tmp_path / "state")
    assert [death.text for death in found] == [f"number {number}" for number in range(5, MOST_DEATHS + 5)]
    assert (tmp_path / "state" / DEATHS).stat().st_mode & 0o777 == 0o600


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    (tmp_path / "phi4.toml").write_text('model = "/m.gguf"\n')
    LearnedFile(tmp_path / "state").save(LEARNED)
    assert main(["--config", str(tmp_path), "explain", "phi4"]) == 0
    assert "a context of 8192 tokens failed" in capsys.readouterr().out
    assert main(["--config", str(tmp_path), "explain", "--json", "phi4"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out_mib"] == {"GPU-1": 500.0}
    assert main(["--config", str(tmp_path), "explain", "phi5"]) == 64
    assert "no definition named phi5" in capsys.readouterr().err


def test_a_larger_room_is_named(tmp_path: Path) -> None:
    tried = replace(STEP, how="tried", room_bytes=700 * MIB)
    story = Story("phi4", Overview("phi4", "ready", ""), Learned("k").with_step(tried, AT_S))
    assert "No more than 700 MiB of GPU-1 are planned on." in story_text(story)


TOML = (
    'format = 1\nkey = "k"\ncontext_tokens = 0\nargs = ""\nload = []\n{event}\n[corrections]\n[rooms]\n'
    "[host]\nweights = 0\ncontext = 0\ncompute = 0\n"
)


@pytest.mark.parametrize(
    "event",
    ["event = [{cause = 0x" + "f" * 9000 + "}]", "event = [{cause." + "a." * 30_000 + "a = 1}]", "event = [[[1979-05-27, 1]]]"],
    ids=["number", "deep", "date as key"],
)
def test_a_hostile_lesson_is_damage_and_no_traceback(tmp_path: Path, event: str) -> None:
    """What Python reads and cannot write: huge numbers, tables in tables, keys that are no text."""
    (tmp_path / FILE_NAME).write_text(TOML.format(event=event))
    story = read_story("phi4", Overview("phi4", "stopped", ""), [], [tmp_path])
    json.dumps(story_json(story), default=str, indent=2)
    assert "what was learned is damaged" in story_text(story)


def test_a_damage_is_told_in_a_line_of_a_sane_length(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(TOML.format(event="event = []").replace("weights = 0", f'weights = "{"x" * 90_000}"'))
    story = read_story("phi4", Overview("phi4", "stopped", ""), [], [tmp_path])
    assert "is damaged" in story_text(story) and len(story_text(story)) < 1000


def test_ten_long_deaths_in_any_letters_are_read_again(tmp_path: Path) -> None:
    for number in range(MOST_DEATHS):
        keep_death(tmp_path, Death(AT_S + number, "crash", "\U0001f600" * 1000))
    assert len(read_deaths(tmp_path)) == MOST_DEATHS


def test_a_death_that_cannot_be_kept_for_lack_of_threads_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that died since no thread could be had is just the case."""
    troubles: list[object] = []

    async def die() -> None:
        def none(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", none)
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: troubles.append(context))
        log = DeathLog(tmp_path)
        log.note("crash", "no thread")
        writes = list(log._writes)
        await asyncio.wait(writes)
        troubles.extend(error for task in writes if (error := task.exception()))

    asyncio.run(die())
    assert not troubles
