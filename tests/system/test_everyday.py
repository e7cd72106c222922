"""What an admin types every day, before the real systemd, service and llama-server: add, edit, enable, status, top."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.terminal import on_terminal
from tests.system.conftest import ETC, Bed, chat, run, wait_for

NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]
ADDED = ["--context", "2048", "--parallel", "2"]
ON_CPU = ["--allow-cpu"]
ON_GPU = ["environment.GGML_VK_VISIBLE_DEVICES='0'", "ubatch=32"]  # its warm-up is one micro-batch


def added(bed: Bed, *words: str) -> str:
    """Written by the verb, without a plan, for the CPU, which is quick here; the URL."""
    run("llamad", "add", "tiny", str(bed.tiny), *ADDED, *(words or ON_CPU), "--no-plan")
    found = re.search(r"127\.0\.0\.1:\d+", (ETC / "tiny.toml").read_text())
    assert found
    return f"http://{found[0]}"


def models(*words: str) -> dict[str, dict[str, object]]:
    return {one["name"]: one for one in json.loads(run(*words, "llamad", "status", "--json").stdout)["models"]}


@pytest.fixture
def editor(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """An editor that is a sed script, a line of which is used a time: the environment that names it."""

    def make(*scripts: str) -> dict[str, str]:
        lines = tmp_path / "scripts"
        lines.write_text("\n".join(scripts) + "\n")
        program = tmp_path / "editor"
        program.write_text(
            f'#!/bin/sh\nset -e\nscript=$(head -n 1 {lines}); sed -i 1d {lines}\n[ -z "$script" ] || sed -i "$script" "$1"\n'
        )
        program.chmod(0o755)
        return {"VISUAL": str(program)}

    return make


def test_add_explains_every_value_and_never_clobbers(bed: Bed) -> None:
    out = run("llamad", "add", "tiny", str(bed.tiny), *ADDED, *ON_GPU, "--alias", "gpt-4o-mini").stdout
    assert "wrote /etc/llamad/tiny.toml" in out and "Vulkan0" in out and "weights" in out
    file = ETC / "tiny.toml"
    text, status = file.read_text(), file.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o644, 0, 0)
    assert re.search(r"^context = 2048 +# now 2048", text, re.M) and re.search(r"^# gpus = .*now Vulkan0", text, re.M)
    again = run("llamad", "add", "tiny", str(bed.tiny), check=False)
    assert again.returncode == 78 and "llamad edit tiny" in again.stderr and file.read_text() == text
    assert run("llamad", "check", "tiny").returncode == 0
    assert not list(Path("/run").glob("llamad-staged-*"))


def test_edit_is_checked_like_visudo_and_the_unit_follows(bed: Bed, editor: Callable[..., dict[str, str]]) -> None:
    url = added(bed)
    out = run("llamad", "enable", "tiny").stdout
    assert f"served on {url.removeprefix('http://')}" in out
    assert bed.show("llamad@tiny", "UnitFileState") == "enabled"
    child = bed.child_pid("tiny")
    file, before = ETC / "tiny.toml", (ETC / "tiny.toml").read_text()

    with on_terminal(["llamad", "edit", "tiny"], **editor("s/^parallel/paralel/", "s/^paralel = 2/parallel = 1/")) as tty:
        wait_for(lambda: (tty.read(), b"What now?" in tty.output)[1], "the question")
        assert re.search(rb"/etc/llamad/tiny\.toml:\d+:1: placement\.paralel: unknown key; did you mean parallel\?", tty.output)
        assert file.read_text() == before
        with on_terminal(["llamad", "edit", "tiny"], **editor("")) as second:
            assert second.wait() == 75 and b"is being edited" in second.output
        editor("s/^paralel = 2/parallel = 1/")
        tty.type("e\n")
        assert tty.wait() == 0, tty.output
    assert "parallel = 1" in file.read_text() and stat.S_IMODE(file.stat().st_mode) == 0o644
    wait_for(lambda: models()["tiny"].get("slots") == 1 and bed.child_pid("tiny") not in (0, child), "the edit in force")

    left = run("llamad", "edit", "tiny", check=False, env={**os.environ, **editor("s/^context = 2048/context = 99999999/")})
    assert left.returncode == 78 and "trained" in left.stderr and "not saved" in left.stderr
    assert run("llamad", "edit", "tiny", env={**os.environ, **editor("")}).stdout == f"{file} is unchanged\n"


def test_a_plan_that_is_not_possible_is_refused_and_a_drop_in_counts(bed: Bed, editor: Callable[..., dict[str, str]]) -> None:
    added(bed, *ON_GPU)
    env = {**os.environ, **editor('$a [placement]\\nmemory = "1MiB"')}
    refused = run("llamad", "edit", "tiny", "--drop-in", "10-small", check=False, env=env)
    assert refused.returncode == 78 and "not saved" in refused.stderr and "llamad-staged" not in refused.stderr
    assert not (ETC / "tiny.toml.d" / "10-small.toml").exists()
    run("llamad", "edit", "tiny", "--drop-in", "10-small", env={**os.environ, **editor("$a [limits]\\ndrain_s = 7")})
    assert "limits.drain_s = 7.0" in run("llamad", "show", "tiny").stdout


def test_status_shows_what_everybody_may_see(bed: Bed) -> None:
    url = added(bed)
    bed.ctl("start", "llamad@tiny")
    for _ in range(3):
        assert chat(url, tokens=32)[0] == 200
    seen = wait_for(
        lambda: (one := models(*NOBODY)["tiny"]) and one["activity"]["tokens_per_s"] > 0 and one, "tokens/s"  # type: ignore[index]
    )
    activity = seen["activity"]
    assert (activity["active_requests"], activity["requests"], activity["output_tokens"]) == (0, 3, 96)
    assert seen["restarts"] == 0 and seen["served_by"] == "unit"
    os.kill(bed.child_pid("tiny"), 9)
    wait_for(lambda: (one := models(*NOBODY)["tiny"]) and one["restarts"] == 1 and one["state"] == "ready", "a restart")
    heading, line, *_ = run(*NOBODY, "llamad", "status").stdout.splitlines()
    assert heading.split() == ["NAME", "STATE", "SINCE", "CONTEXT", "MEMORY", "BUSY", "WAITING", "TOKENS/S", "RESTARTS", "NOTE"]
    assert re.match(r"tiny +ready +\d+ s +2048 +host [\d.]+ MiB +0/2 +0 +[\d.]+ +1 +last: killed \d+ s ago$", line), line
    watch = subprocess.Popen(["llamad", "status", "tiny", "--json", "--watch", "0.2"], stdout=subprocess.PIPE)
    assert watch.stdout is not None
    assert [json.loads(watch.stdout.readline())["models"][0]["name"] for _ in range(3)] == ["tiny"] * 3
    watch.send_signal(signal.SIGINT)
    assert watch.wait(20) == 0


def test_top_shows_loads_and_unloads_and_survives_the_daemon(bed: Bed) -> None:
    url = added(bed, *ON_GPU)
    bed.ctl("start", "llamad@tiny")
    with in_tmux("llamad top --every 0.3; echo ended $?; exec cat", 120, 20) as top:
        text = top.until(lambda text: re.search(r"> tiny +ready", text), "the model")
        assert re.search(r"^Vulkan0 \[[x#=.-]+\] [\d.]+ [MG]iB of", text, re.M) and "1 of 1 models ready" in text
        assert chat(url, tokens=64)[0] == 200
        top.until(lambda text: re.search(r"[1-9][\d.]* tokens/s", text), "tokens")
        top.resize(60, 10)
        top.until(lambda text: text.splitlines()[-1].startswith("q quit") and text.count("\n") <= 9, "the new size")
        top.resize(120, 20)
        bed.ctl("restart", "llamad@tiny")
        top.until(lambda text: re.search(r"> tiny +ready +\d s", text), "the model after a restart")
        top.type("u")
        top.until(lambda text: "unload tiny? (y/n)" in text, "the question")
        top.type("n")
        top.until(lambda text: text.splitlines()[-1].startswith("q quit"), "the keys again")
        assert bed.show("llamad@tiny", "ActiveState") == "active"
        order(top, "u", "unload tiny: done")
        assert bed.show("llamad@tiny", "ActiveState") == "inactive"
        top.until(lambda text: re.search(r"> tiny +stopped", text), "that it is stopped")
        order(top, "l", "load tiny: done")
        top.until(lambda text: re.search(r"> tiny +ready", text), "that it is ready")
        top.type("q")
        assert top.until(lambda text: "ended" in text, "the end").split() == ["ended", "0"], "the screen is as before"


class Tmux:
    """A program in a terminal of tmux's."""

    def resize(self, columns: int, lines: int) -> None:
        run("tmux", "resize-window", "-t", "top", "-x", str(columns), "-y", str(lines))

    def type(self, keys: str) -> None:
        run("tmux", "send-keys", "-t", "top", "-l", keys)

    def until(self, condition: Callable[[str], object], what: str) -> str:
        """Wait for a screen of which this is true; it."""

        def look() -> str:
            text = run("tmux", "capture-pane", "-p", "-t", "top").stdout.rstrip()
            return text if text and condition(text) else ""

        return str(wait_for(look, what))


@contextmanager
def in_tmux(command: str, columns: int, lines: int) -> Iterator[Tmux]:
    size = ["-x", str(columns), "-y", str(lines)]
    env = {**os.environ, "LC_ALL": "C.UTF-8", "TERM": "xterm"}
    run("tmux", "new-session", "-d", "-s", "top", *size, command, env=env)
    try:
        yield Tmux()
    finally:
        run("tmux", "kill-session", "-t", "top", check=False)


def order(top: Tmux, key: str, done: str) -> None:
    top.type(key)
    top.until(lambda text: "(y/n)" in text, "the question")
    top.type("y")
    top.until(lambda text: done in text, done)


def test_the_routers_models_are_loaded_and_unloaded_by_name(bed: Bed) -> None:
    added(bed)
    bed.ctl("start", "llamad")
    try:
        assert "the router loads tiny" in run("llamad", "load", "tiny").stdout
        seen = models()["tiny"]
        assert (seen["state"], seen["served_by"]) == ("ready", "router")
        assert "is unloaded" in run("llamad", "unload", "tiny").stdout
        assert "the admin wants it unloaded" in bed.events("tiny", "unloading")[0]["LLAMAD_CAUSE"]
        assert models()["tiny"]["state"] == "unloaded"
        assert not list(Path("/run/llamad/ledger").glob("*.wanted"))
        assert "is not loaded" in run("llamad", "unload", "tiny").stdout
        out = run("llamad", "remove", "tiny", "--yes").stdout
        assert "moved to /etc/llamad/tiny.toml.removed" in out and str(bed.tiny) in out
        wait_for(lambda: models() == {}, "a router that knows it no more")
    finally:
        bed.ctl("stop", "llamad")
        (ETC / "tiny.toml.removed").unlink(missing_ok=True)


def test_disable_and_remove_leave_what_they_say(bed: Bed) -> None:
    added(bed)
    run("llamad", "enable", "tiny")
    out = run("llamad", "disable", "tiny").stdout
    assert "the definition stays" in out and bed.show("llamad@tiny", "ActiveState") == "inactive"
    assert bed.show("llamad@tiny", "UnitFileState") == "disabled"
    run("llamad", "enable", "tiny")
    refused = run("llamad", "remove", "tiny", check=False, stdin=-3)
    assert refused.returncode == 64 and "--yes" in refused.stderr and bed.show("llamad@tiny", "ActiveState") == "active"
    run("llamad", "remove", "tiny", "--yes", "--purge")
    assert bed.show("llamad@tiny", "ActiveState") == "inactive" and bed.tiny.exists()
    assert not [place for place in ("/var/lib/llamad/state/tiny", "/var/cache/llamad/tiny", "/etc/llamad/tiny.toml")
                if Path(place).exists()]  # fmt: skip
