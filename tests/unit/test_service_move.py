"""A `listen` that changes while there are clients: real sockets, the real relay, a recording service manager."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamad.config.definition import Definition
from llamad.config.listen import parse_listen
from llamad.errors import AccessError, BusyError
from llamad.service import move
from llamad.service.move import Move
from llamad.service.sockets import Listening, listen_on
from tests.support.front import Bench, running
from tests.support.http import Client, scenario


class Store:
    """A service manager that keeps descriptors, as systemd does: duplicates, by name."""

    def __init__(self) -> None:
        self.kept: dict[str, list[int]] = {}

    def send(self, **fields: str | int) -> None:
        raise AssertionError("nothing is to be said")

    def store(self, name: str, fds: list[int]) -> None:
        mine = {os.fstat(fd).st_ino for fds in self.kept.values() for fd in fds}
        new = [os.dup(fd) for fd in fds if os.fstat(fd).st_ino not in mine]  # one that it has is not taken again
        if new:
            self.kept[name] = new

    def drop(self, name: str) -> None:
        for fd in self.kept.pop(name, []):
            os.close(fd)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Place:
    """A definition that is served at an address, and what it takes to move it."""

    def __init__(self, folder: Path, listen: str, mode: str = "0600") -> None:
        self.runtime, self.public = folder / "run", folder / "api"
        self.runtime.mkdir()
        self.public.mkdir()
        self.store = Store()
        self.place = move_to(listen, mode)
        parsed = parse_listen(listen)
        self.listening: Listening = listen_on(parsed, int(mode, 8), {}, self.store, self.runtime, self.public)

    def move(self, listen: str, mode: str = "0600") -> Move:
        return Move(self.listening, self.place, move_to(listen, mode), self.store, self.runtime, self.public)

    def address(self, listen: str) -> Any:
        parsed = parse_listen(listen)
        return str(self.public / parsed.path) if parsed.kind == "unix" else ("127.0.0.1", parsed.port)

    async def serve(self, bench: Bench) -> None:
        await bench.front.start(self.listening.sockets)


def move_to(listen: str, mode: str) -> move.Place:
    return move.place_of(replace(Definition(model="/m"), listen=listen, listen_mode=mode))


def refused(address: Any) -> bool:
    kind = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(kind) as sock:
        return sock.connect_ex(address) != 0


PORTS = ["127.0.0.1:{0}", "127.0.0.1:{1}", "0.0.0.0:{0}", "unix:a.sock", "unix:b.sock"]


@pytest.mark.parametrize(("old", "new"), [(a, b) for a in PORTS for b in PORTS if a != b])
@scenario
async def test_a_moved_address_loses_nobody(tmp_path: Path, old: str, new: str) -> None:
    ports = (free_port(), free_port())
    old, new = old.format(*ports), new.format(*ports)
    async with running("unix", handler=None) as bench:
        place = Place(tmp_path, old)
        await place.serve(bench)
        idle = await Client.open(place.address(old))
        held = await Client.open(place.address(old))
        held.request("POST", "/v1/completions", b'{"prompt": "x"}')
        move = place.move(new)
        new_name = await Client.open(place.address(new)) if not new.startswith("unix") else None
        late = await Client.open(place.address(old))  # in the queue when the old address ends, or just accepted
        late.request("GET", "/health")
        await move.carry_out(bench.front)
        await bench.serve()
        assert (await held.answer()).status == 200, "held over the move"
        assert (await late.answer()).status in (200, 503)
        assert (await idle.ask("GET", "/v1/models")).status == 200, "a connection outlives its address"
        async with await Client.open(place.address(new)) as client:
            assert (await client.ask("GET", "/v1/models")).status == 200
        same_address = place.address(old) == place.address(new)
        assert same_address or refused(place.address(old)), "nobody waits in a queue that nobody reads"
        (kept,) = place.store.kept.values()
        assert [os.fstat(fd).st_ino for fd in kept] == [os.fstat(s.fileno()).st_ino for s in place.listening.sockets]
        assert list(place.store.kept) == ["listen-" + new.replace(":", "_")]
        for sock in place.listening.sockets:
            if sock.family == socket.AF_INET:
                assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT), "the port is ours alone again"
        for client in (idle, held, late, *([new_name] if new_name else [])):
            await client.__aexit__()
        bench.sockets += place.listening.sockets
        place.store.drop(next(iter(place.store.kept)))


@pytest.mark.parametrize(("old", "new"), [(a, b) for a in PORTS for b in PORTS if a != b])
@scenario
async def test_a_move_that_is_given_up_leaves_all_as_it_was(tmp_path: Path, old: str, new: str) -> None:
    ports = (free_port(), free_port())
    old, new = old.format(*ports), new.format(*ports)
    async with running("unix") as bench:
        place = Place(tmp_path, old)
        await place.serve(bench)
        before = sorted(os.listdir(place.public)), sorted(os.listdir(place.runtime)), dict(place.store.kept)
        place.move(new).give_up()
        assert (sorted(os.listdir(place.public)), sorted(os.listdir(place.runtime)), place.store.kept) == before
        async with await Client.open(place.address(old)) as client:
            assert (await client.ask("GET", "/v1/models")).status == 200
        assert place.address(old) == place.address(new) or refused(place.address(new))
        bench.sockets += place.listening.sockets


@scenario
async def test_a_new_mode_is_set_where_it_is(tmp_path: Path) -> None:
    async with running("unix") as bench:
        place = Place(tmp_path, "unix:a.sock")
        await place.serve(bench)
        await place.move("unix:a.sock", "0666").carry_out(bench.front)
        assert stat.S_IMODE((place.public / "a.sock").stat().st_mode) == 0o666
        async with await Client.open(place.address("unix:a.sock")) as client:
            assert (await client.ask("GET", "/v1/models")).status == 200
        bench.sockets += place.listening.sockets


def test_an_address_that_is_taken_refuses_the_move(tmp_path: Path) -> None:
    place = Place(tmp_path, f"127.0.0.1:{free_port()}")
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(BusyError):
        place.move(f"127.0.0.1:{other.getsockname()[1]}")
    place.public.rmdir()
    with pytest.raises(AccessError):
        place.move("unix:a.sock")
    assert not (place.runtime / "api.sock").exists()
    asyncio.run(asyncio.sleep(0))
    place.listening.sockets[0].close()
