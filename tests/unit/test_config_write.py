"""New definitions: right when written, and never over another."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

from llamad.config.compose import choices_of, definition_text, parse_assignment
from llamad.config.load import load_definition
from llamad.config.write import free_listen, replace_definition, write_definition
from llamad.errors import ConfigError, UsageError


def text_of(name: str = "phi4", listen: str = "127.0.0.1:8081", model: str = "/srv/m.gguf") -> str:
    return definition_text(name, {("model",): model, ("listen",): listen})


def test_what_is_written_can_be_loaded(tmp_path: Path) -> None:
    odd = '/srv/a "b" \\ #ä'
    words = ["allow_cpu=true", 'aliases=["x\\"y", "z"]', "environment.GGML_X=a b", "keep_alive=1h", "context=8192", "threads=4"]
    values = {("model",): odd, ("listen",): "[::1]:8081", **dict(map(parse_assignment, words))}
    path = write_definition("phi4", definition_text("phi4", values), tmp_path)
    definition = load_definition("phi4", tmp_path).definition
    assert path == tmp_path / "phi4.toml"
    assert (definition.model, definition.listen, definition.aliases) == (odd, "[::1]:8081", ('x"y', "z"))
    assert (definition.placement.allow_cpu, definition.placement.context) == (True, 8192)
    assert (definition.placement.threads, definition.draft.threads) == (4, "auto")
    assert (definition.environment, definition.idle.keep_alive) == ({"GGML_X": "a b"}, "1h")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_the_defaults_of_a_new_definition_promise_nothing(tmp_path: Path) -> None:
    write_definition("phi4", text_of(), tmp_path)
    loaded = load_definition("phi4", tmp_path)
    assert loaded.written == {"model", "listen", "placement.context"}
    assert loaded.definition.placement.context == "auto"


def test_what_stands_there_as_a_comment_is_right_too(tmp_path: Path) -> None:
    keys = tmp_path / "phi4.keys"
    keys.write_text("k\n")
    lines = text_of().splitlines()[1:]
    text = "\n".join(line.removeprefix("# ") for line in lines).replace("/etc/llamad/phi4.keys", str(keys))
    write_definition("all", text + "\n", tmp_path)
    written = load_definition("all", tmp_path).written
    assert {"aliases", "start", "api_keys_file", "placement.gpus", "placement.memory", "idle.keep_alive"} <= written


def test_every_value_says_what_it_is_and_what_the_planner_made_of_it() -> None:
    plan = {"context_tokens": 16384, "slots": 4, "devices": [{"name": "CUDA0"}],
            "reasons": ["context: all that it was trained for", "batch: x"]}  # fmt: skip
    values = {("model",): "/m.gguf", ("placement", "parallel"): 2}
    lines = definition_text("phi4", values, choices_of(plan)).splitlines()
    assert next(line for line in lines if line.startswith("context = ")) == (
        'context = "auto"          # now 16384 (all that it was trained for); as much as fits, at most what it was'
        " trained for; or a number of tokens"
    )
    assert "parallel = 2              # now 4; requests at the same time" in lines
    assert '# gpus = "auto"           # now CUDA0; or for example [0, 1]' in lines


@pytest.mark.parametrize("value", ["\x1b[31m\n", {"a": 1}, None])
def test_what_a_plan_says_cannot_leave_its_comment(value: object) -> None:
    plan = {"context_tokens": value, "slots": value, "devices": [{"name": value}], "reasons": [f"context: {value}"]}
    text = definition_text("phi4", {("model",): "/m.gguf"}, choices_of(plan))
    assert all(line.isprintable() for line in text.splitlines())
    assert tomllib.loads(text)["placement"] == {"context": "auto"}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("context", r'"context" sets nothing; write KEY=VALUE'),
        ("=5", r'"=5" sets nothing'),
        ("contxt=5", r'"contxt" is no key of a definition; did you mean placement\.context\?'),
        ("backend_sampling=true", r'is in several tables; write sampling\.backend_sampling or draft\.backend_sampling'),
        ("\x1b[31m=1", r'"\\x1b\[31m" is no key'),
    ],
)
def test_an_assignment_that_cannot_be_meant(word: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse_assignment(word)
    assert str(caught.value).isprintable()


def test_a_definition_is_never_overwritten(tmp_path: Path) -> None:
    write_definition("phi4", text_of(), tmp_path)
    with pytest.raises(ConfigError, match=r"phi4\.toml: is there already; `llamad edit phi4`, or choose another name"):
        write_definition("phi4", text_of(listen="127.0.0.1:9"), tmp_path)
    assert "8081" in (tmp_path / "phi4.toml").read_text()
    assert os.listdir(tmp_path) == ["phi4.toml"]


def test_of_two_writers_one_wins_and_the_text_is_whole(tmp_path: Path) -> None:
    outcomes: list[str] = []

    def write(port: int) -> None:
        try:
            write_definition("phi4", text_of(listen=f"127.0.0.1:{port}"), tmp_path)
            outcomes.append(str(port))
        except ConfigError:
            outcomes.append("refused")

    writers = [threading.Thread(target=write, args=(port,)) for port in range(9000, 9008)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    (winner,) = [outcome for outcome in outcomes if outcome != "refused"]
    assert load_definition("phi4", tmp_path).definition.listen == f"127.0.0.1:{winner}"
    assert os.listdir(tmp_path) == ["phi4.toml"]


def test_a_wrong_text_or_name_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'listen: "8081" is a port alone; write "127\.0\.0\.1:8081"'):
        write_definition("phi4", text_of(listen="8081"), tmp_path)
    with pytest.raises(ConfigError, match="no name of a definition"):
        write_definition("../phi4", text_of(), tmp_path)
    with pytest.raises(ConfigError, match="is no full path"):
        write_definition("phi4", text_of(model="m.gguf"), tmp_path)
    assert os.listdir(tmp_path) == []


def test_folders_that_are_missing_or_closed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such folder"):
        write_definition("phi4", text_of(), tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/phi4\.toml: cannot be written: Not a directory"):
        write_definition("phi4", text_of(), tmp_path / "file")


def test_the_next_free_address(tmp_path: Path) -> None:
    assert free_listen(tmp_path / "none") == "127.0.0.1:8081"
    for name, listen in (("a", "127.0.0.1:8081"), ("b", "0.0.0.0:8082"), ("c", "unix:c.sock")):
        write_definition(name, text_of(name, listen), tmp_path)
    (tmp_path / "broken.toml").write_text("[")
    assert free_listen(tmp_path) == "127.0.0.1:8083"
    assert free_listen(tmp_path, lambda port: port in (8083, 8084)) == "127.0.0.1:8085"


def test_a_replaced_file_keeps_owner_mode_attributes_and_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.toml", tmp_path / "phi4.toml"
    real.write_bytes(b"old")
    real.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(real, 1234, 4321)
    os.setxattr(real, "user.note", b"kept")
    link.symlink_to(real)
    inode = real.stat().st_ino
    replace_definition(link, b"new", b"old")
    assert link.is_symlink() and real.read_bytes() == b"new" and real.stat().st_ino != inode
    assert stat.S_IMODE(real.stat().st_mode) == 0o640 and os.getxattr(real, "user.note") == b"kept"
    if os.geteuid() == 0:
        assert (real.stat().st_uid, real.stat().st_gid) == (1234, 4321)
    assert sorted(os.listdir(tmp_path)) == ["phi4.toml", "real.toml"]


def test_a_file_that_was_changed_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "phi4.toml"
    file.write_bytes(b"theirs")
    with pytest.raises(ConfigError, match="was changed by somebody else meanwhile"):
        replace_definition(file, b"new", b"old")
    with pytest.raises(ConfigError, match="is there already"):
        replace_definition(file, b"new", None)
    assert file.read_bytes() == b"theirs" and os.listdir(tmp_path) == ["phi4.toml"]


_WATCHED = """
import os, sys
from pathlib import Path
from llamad.config.write import replace_definition
file = Path(sys.argv[1])

def look(event, args):
    if event == "os.chmod" and str(args[0]).startswith(f"{file.parent}/.phi4"):
        print(oct(os.stat(args[0]).st_mode & 0o777), flush=True)

sys.addaudithook(look)
replace_definition(file, b"new", b"old")
"""


def test_what_others_may_not_read_they_cannot_read_while_it_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "phi4.toml"
    file.write_bytes(b"old")
    file.chmod(0o640)
    words = [sys.executable, "-c", _WATCHED, str(file)]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0o600"]
