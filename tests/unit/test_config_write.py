"""New definitions: right when written, and never over another."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from llamad.config.load import load_definition
from llamad.config.write import definition_text, free_listen, write_definition
from llamad.errors import ConfigError


def text_of(name: str = "phi4", listen: str = "127.0.0.1:8081", model: str = "/srv/m.gguf") -> str:
    return definition_text(name, model, listen)


def test_what_is_written_can_be_loaded(tmp_path: Path) -> None:
    odd = '/srv/a "b" \\ #ä\u2028'.replace("\u2028", "")
    text = definition_text("phi4", odd, "[::1]:8081", allow_cpu=True, aliases=['x"y', "z"])
    path = write_definition("phi4", text, tmp_path)
    definition = load_definition("phi4", tmp_path).definition
    assert path == tmp_path / "phi4.toml"
    assert (definition.model, definition.listen, definition.aliases) == (odd, "[::1]:8081", ('x"y', "z"))
    assert definition.placement.allow_cpu is True
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_the_defaults_of_a_new_definition_promise_nothing(tmp_path: Path) -> None:
    write_definition("phi4", text_of(), tmp_path)
    loaded = load_definition("phi4", tmp_path)
    assert loaded.written == {"model", "listen", "placement.context"}
    assert loaded.definition.placement.context == "auto"
    uncommented = text_of().replace("\n# ", "\n").replace('gpus = "auto"', "gpus = [0]")
    write_definition("all", uncommented.partition("\n")[2], tmp_path)
    assert load_definition("all", tmp_path).definition.placement.gpus == (
        0,
    )  # the examples in it are right too


def test_a_definition_is_never_overwritten(tmp_path: Path) -> None:
    write_definition("phi4", text_of(), tmp_path)
    with pytest.raises(ConfigError, match=r"phi4\.toml: is there already; edit it, or choose another name"):
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
