"""The keys of a llama-server that owns the address: those in force, in a file that is whole at any moment."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from llamad.config.definition import Definition
from llamad.config.load import load_definition
from llamad.engine.endpoint import TcpEndpoint
from llamad.errors import BusyError
from llamad.front.keys import KeySet
from llamad.service.direct import endpoint_of, write_keys
from llamad.service.front import RelayFront
from llamad.service.in_force import InForce
from llamad.supervision.reload import Reverted
from tests.support.http import scenario
from tests.unit.test_reloads import Model, Teller

TEXT = 'model = "/m/tiny.gguf"\nlisten = "127.0.0.1:8081"\nfront = "direct"\n'
DIRECT = Definition(model="/m/tiny.gguf", front="direct")


def in_file(engine: Path, definition: Definition = DIRECT) -> list[str]:
    endpoint = endpoint_of(definition, engine, "server.sock")
    assert isinstance(endpoint, TcpEndpoint)
    if endpoint.key_file is None:
        return []
    assert endpoint.key_file.stat().st_mode & 0o777 == 0o600
    own, *keys = endpoint.key_file.read_text().split()
    assert own == endpoint.key
    return keys


def test_a_llama_server_that_starts_while_keys_are_written_asks_for_keys(tmp_path: Path) -> None:
    write_keys(DIRECT, KeySet(["0"]), tmp_path)
    own, seen, done = endpoint_of(DIRECT, tmp_path, ""), set(), threading.Event()
    assert isinstance(own, TcpEndpoint) and own.key

    def start() -> None:
        while not done.is_set():
            endpoint = endpoint_of(DIRECT, tmp_path, "")
            assert isinstance(endpoint, TcpEndpoint)
            seen.add(endpoint.key)

    starts = threading.Thread(target=start)
    starts.start()
    for number in range(300):
        write_keys(DIRECT, KeySet([str(number)]), tmp_path, runs=True)
    done.set()
    starts.join()
    assert seen == {own.key} and in_file(tmp_path) == ["299"]
    write_keys(DIRECT, KeySet(["0"]), tmp_path)
    assert endpoint_of(DIRECT, tmp_path, "").key != own.key  # type: ignore[attr-defined]
    write_keys(DIRECT, KeySet(), tmp_path)
    assert in_file(tmp_path) == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [None, BusyError("no room"), Reverted("it could not be started", why="a flag")])
def test_what_is_not_put_into_force_leaves_the_keys_that_were(tmp_path: Path, failure: Any) -> None:
    @scenario
    async def play() -> None:
        file = tmp_path / "tiny.toml"
        file.write_text(TEXT)
        model = Model(load_definition("tiny", tmp_path))
        engine, keys = tmp_path / "engine", KeySet(["one"])
        engine.mkdir()
        write_keys(model.loaded.definition, keys, engine)
        front = RelayFront(model.loaded, keys)
        front.tell_keys = lambda loaded, told: write_keys(loaded.definition, told, engine, runs=True)
        force = InForce(model, front, Teller(), keys)
        model.refuse = failure
        await force.change(model.loaded, KeySet(["two"]))
        assert model.reloaded == ["the API keys"]
        now = ["one"] if failure else ["two"]
        assert in_file(engine) == now
        file.write_text(TEXT.replace("direct", "relay"))
        await force.change(load_definition("tiny", tmp_path), KeySet(["three"]))
        assert "systemctl restart" in model.said
        assert in_file(engine) == now
        await front.close()

    play()
