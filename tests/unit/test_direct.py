"""The keys of a llama-server that owns the address: those in force, in a file that is whole at any moment."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamad.config.apart import Apart
from llamad.config.definition import Definition
from llamad.config.load import load_definition
from llamad.engine.endpoint import TcpEndpoint
from llamad.errors import BusyError
from llamad.front.keys import KeySet
from llamad.service.definitions import read_one
from llamad.service.direct import endpoint_of, write_keys
from llamad.service.front import RelayFront
from llamad.service.in_force import InForce
from llamad.supervision.reload import Reverted
from tests.support.fakes import a_plan, loaded_of
from tests.support.http import ask, scenario
from tests.support.router import RouterBench
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


async def asked(slots: int, seen: list[str]) -> asyncio.Server:
    """A llama-server at an address of its own; busy for so many questions about its slots."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal slots
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        seen.append(head)
        busy, slots = slots > 0, slots - 1
        body = json.dumps([{"id": 0, "is_processing": busy}]).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", 0)


@scenario
async def test_its_clients_are_waited_for_and_the_routers_requests_passed_on_with_their_keys() -> None:
    seen: list[str] = []
    server = await asked(3, seen)
    endpoint = TcpEndpoint("127.0.0.1", server.sockets[0].getsockname()[1], "own", Path("/run/keys"))
    loaded = replace(loaded_of(), definition=DIRECT)
    front = RelayFront(loaded, KeySet(["theirs"]))
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as inner:
        inner.bind(f"{folder}/router.sock")
        inner.listen()
        await front.start([], [inner])
        launch: Any = SimpleNamespace(socket_path=endpoint, plan=a_plan(), mode="completion", definition=DIRECT, file_bytes=0)
        front.open(launch)
        assert front.quiet_s() == 0.0, "nobody can say so: those who are with llama-server are not seen"
        assert await front.drain(5.0) == 0
        assert len(seen) == 4 and all("Authorization: Bearer own" in head for head in seen)
        answer = await ask(f"{folder}/router.sock", "GET", "/slots", None, Authorization="Bearer theirs")
        assert answer.status == 200 and "Authorization: Bearer theirs" in seen[-1]
        await front.farewell(1.0)
    server.close()


def test_the_router_serves_such_a_model_behind_its_own_address(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)  # as of a folder for sockets
    bench = RouterBench(tmp_path)
    bench.define("tiny", 'front = "direct"')
    with Apart() as judge:
        read = read_one("tiny", bench.etc, bench.paths, judge)
    assert read.loaded is not None and not read.loaded.definition.is_direct
