"""Prompt caches over a change of llama-server: kept within bounds, given back where they fit, never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamad.config.definition import Lora, Placement, Rope
from llamad.service.slots import FLAG, SlotKeeper, slot_key
from llamad.supervision.launch import Launch
from llamad.units import MIB
from tests.support.fakes import a_plan, loaded_of


class Server:
    """Slots of a llama-server that can be saved and restored, each with a few tokens."""

    def __init__(self, path: Path, folder: Path, *tokens: int, busy: tuple[int, ...] = ()) -> None:
        self.path, self.folder = path, folder
        self.slots = dict(enumerate(tokens))
        self.busy = busy
        self.refuse: set[int] = set()
        self.hang = False
        self.asked: list[str] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        server = await asyncio.start_unix_server(self._serve, str(self.path))
        yield self
        server.close()
        self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = head.split(" ", 2)
        length = int(head.lower().split("content-length:")[1].split("\r\n")[0])
        body = json.loads(await reader.readexactly(length) or b"null")
        status, answer = await self._answer(method, target, body)
        payload = json.dumps(answer).encode()
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(payload), payload))
        writer.close()

    async def _answer(self, method: str, target: str, body: Any) -> tuple[int, Any]:
        if method == "GET":
            return 200, [
                {"id": slot, "is_processing": slot in self.busy, **({"n_prompt_tokens": tokens} if tokens else {})}
                for slot, tokens in self.slots.items()
            ]
        self.asked.append(target)
        if self.hang:
            await asyncio.sleep(60)
        slot, action = int(target.split("/")[2].split("?")[0]), target.rpartition("=")[2]
        file = self.folder / body["filename"]
        if slot in self.refuse:
            return 400, {"error": {"message": "it does not fit"}}
        if action == "save":
            file.write_text(str(self.slots[slot]) + "x" * 100)
            return 200, {"n_saved": self.slots[slot]}
        self.slots[slot] = int(file.read_text().rstrip("x"))
        return 200, {"n_restored": self.slots[slot]}


def launch_of(server: Server, **changes: Any) -> Launch:
    argv = ("llama-server", FLAG, str(server.folder))
    launch = Launch(loaded_of(), a_plan(), argv, {}, str(server.path), 300, "completion", "fake", model_key="m")
    return replace(launch, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "slots"
    path.mkdir(mode=0o700)
    return path


def test_idle_slots_are_handed_over_and_nothing_is_left(tmp_path: Path, folder: Path) -> None:
    async def go() -> None:
        keeper = SlotKeeper(folder)
        async with Server(tmp_path / "a", folder, 100, 0, 300, 50, busy=(3,)).running() as old:
            await keeper.save(launch_of(old))
            assert old.asked == ["/slots/2?action=save", "/slots/0?action=save"], "most tokens first, no busy one"
        files = list(folder.iterdir())
        assert len(files) == 2 and {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        async with Server(tmp_path / "b", folder, 0, 0, 0, 0).running() as new:
            smaller = replace(a_plan(), context_tokens=2048)
            assert await keeper.restore(launch_of(new, plan=smaller)) == 400
            assert new.slots == {0: 100, 1: 0, 2: 300, 3: 0}
            assert list(folder.iterdir()) == []
            assert await keeper.restore(launch_of(new)) == 0

    asyncio.run(go())


CHANGES: list[dict[str, Any]] = [
    {"model_key": "another model, or another LoRA"},
    {"engine_key": "another engine"},
    {"plan": replace(a_plan(), cache_type_k="q8_0")},
    {"plan": replace(a_plan(), cache_type_v="q8_0")},
    {"plan": replace(a_plan(), flash_attention=False)},
    {"plan": replace(a_plan(), unified_cache=False)},
]


def with_table(**tables: Any) -> dict[str, Any]:
    loaded = loaded_of()
    return {"loaded": replace(loaded, definition=replace(loaded.definition, **tables))}


CHANGES += [with_table(lora=Lora(adapters={"/l": 1.0})), with_table(rope=Rope(freq_scale=0.5)),
            with_table(placement=Placement(swa_full=True))]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_cache_of_another_kind_is_not_given_back(tmp_path: Path, folder: Path, change: dict[str, Any]) -> None:
    async def go() -> None:
        keeper = SlotKeeper(folder)
        async with Server(tmp_path / "a", folder, 100).running() as server:
            assert slot_key(launch_of(server)) != slot_key(launch_of(server, **change))
            await keeper.save(launch_of(server))
            server.asked.clear()
            assert await keeper.restore(launch_of(server, **change)) == 0
            assert server.asked == [] and list(folder.iterdir()) == []

    asyncio.run(go())


def test_what_is_refused_is_passed_over(tmp_path: Path, folder: Path) -> None:
    async def go() -> None:
        keeper = SlotKeeper(folder)
        async with Server(tmp_path / "a", folder, 100, 200).running() as server:
            await keeper.save(launch_of(server))
            server.refuse = {1}
            assert await keeper.restore(launch_of(server)) == 100
            assert list(folder.iterdir()) == []

    asyncio.run(go())


def test_a_slot_that_is_no_more_is_left_out(tmp_path: Path, folder: Path) -> None:
    async def go() -> None:
        keeper = SlotKeeper(folder)
        async with Server(tmp_path / "a", folder, 100, 200).running() as server:
            await keeper.save(launch_of(server))
            assert await keeper.restore(launch_of(server, plan=replace(a_plan(), slots=1))) == 100

    asyncio.run(go())


def test_a_server_that_does_not_answer_costs_the_deadline_and_no_more(tmp_path: Path, folder: Path) -> None:
    async def go() -> None:
        loop = asyncio.get_running_loop()
        keeper = SlotKeeper(folder, save_s=0.2, restore_s=0.2)
        async with Server(tmp_path / "a", folder, 100, 200).running() as server:
            server.hang = True
            began_s = loop.time()
            await keeper.save(launch_of(server))
            assert await keeper.restore(launch_of(server)) == 0
            server.hang = False
            await keeper.save(launch_of(server))
            server.hang = True
            assert await keeper.restore(launch_of(server)) == 0
            assert loop.time() - began_s < 2.0 and list(folder.iterdir()) == []
        await keeper.save(launch_of(server))  # gone altogether
        assert await keeper.restore(launch_of(server)) == 0

    asyncio.run(go())


def test_what_is_written_is_bounded(tmp_path: Path, folder: Path) -> None:
    """20 MiB of context for 4096 tokens: 2048 tokens are about 10 MiB."""

    async def go() -> None:
        keeper = SlotKeeper(folder, most_bytes=12 * MIB)
        async with Server(tmp_path / "a", folder, 2048, 4000, 100).running() as server:
            await keeper.save(launch_of(server))
            assert server.asked == ["/slots/0?action=save", "/slots/2?action=save"]

    asyncio.run(go())


def test_what_a_killed_llamad_left_is_removed(tmp_path: Path, folder: Path) -> None:
    async def go() -> None:
        (folder / "old").write_text("x")
        async with Server(tmp_path / "a", folder, 100).running() as server:
            assert await SlotKeeper(folder).restore(launch_of(server)) == 0
        assert list(folder.iterdir()) == []

    asyncio.run(go())


def test_without_the_flag_nothing_is_asked(tmp_path: Path, folder: Path) -> None:
    async def go() -> None:
        keeper = SlotKeeper(folder)
        async with Server(tmp_path / "a", folder, 100).running() as server:
            await keeper.save(launch_of(server, argv=("llama-server",)))
            assert server.asked == [] and await keeper.restore(launch_of(server)) == 0
        assert os.listdir(folder) == []

    asyncio.run(go())
