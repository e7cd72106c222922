"""Edits of the router's definitions, found by the watch or asked for: played lives, real files, a real front."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamad.config.apart import Apart
from llamad.config.watched import AllDefinitions
from llamad.errors import BusyError, ChildError
from llamad.service.status import read_status
from llamad.supervision.reload import Reverted
from tests.support.fake_upstream import answer_when
from tests.support.router import RouterBench, routing
from tests.unit.test_config_watch import EXECUTOR_THREADS, STYLES, back_to, open_fds
from tests.unit.test_router import scene, two


async def loaded(bench: RouterBench, *names: str) -> None:
    for name in names:
        assert (await bench.chat(name)).status == 200


def told(bench: RouterBench, event: str, name: str) -> list[str]:
    return [message for model, message in bench.journal.of(event) if model == name]


def status(bench: RouterBench) -> str:
    return str([fields["STATUS"] for fields in bench.notifier.sent if "STATUS" in fields][-1])


def names(bench: RouterBench) -> set[str]:
    return set(bench.router.residents)


@scene
async def test_edits_are_found_by_themselves_and_touch_only_their_model() -> None:
    async with routing(two) as bench:
        await loaded(bench, "one", "two")
        await bench.until(lambda: (bench.state("one"), bench.state("two")) == ("ready", "ready"))
        bench.define("one", 'aliases = ["mine"]')
        await bench.until(lambda: told(bench, "reload-applied", "one"), "it is said")
        assert "aliases" in told(bench, "reload-applied", "one")[0]
        assert (await bench.chat("mine")).status == 200 and (await bench.chat("gpt-4o")).code == "model_not_found"
        bench.define("one", 'aliases = ["mine"]\n# a comment')
        await bench.until(lambda: len(bench.world.adopted) == 2, "taken in silence")
        assert len(bench.journal.of("reload-applied")) == 1
        bench.define("one", 'aliases = ["mine"]\n[placement]\ncontext = 512')
        await bench.until(lambda: bench.world.reloads == ["one: placement.context"])
        bench.define("three")
        await bench.until(lambda: "three" in names(bench), "a new model")
        assert (await bench.chat("three")).status == 200
        assert [one for one in bench.world.adopted + bench.world.reloads + bench.world.renewed if "two" in one] == []
        assert not any("RELOADING" in fields for fields in bench.notifier.sent), "nobody waits for an answer"


@scene
async def test_a_mistake_keeps_the_old_one_and_says_where() -> None:
    async with routing(two) as bench:
        await loaded(bench, "one")
        for name in ("one", "two"):  # loaded, and not
            bench.define(name, "contxt = 5")
            await bench.until(lambda name=name: told(bench, "reload-refused", name), "it is said")  # type: ignore[misc]
            assert f"{name}.toml:2:1" in told(bench, "reload-refused", name)[0]
        await bench.until(lambda: "one.toml:2:1" in status(bench) and "and 1 more" in status(bench), "in the status")
        assert "one.toml:2:1" in bench.world.remarks["one"]
        await loaded(bench, "one", "two")
        bench.define("one", "\ncontxt = 5")
        await bench.until(lambda: len(told(bench, "reload-refused", "one")) == 2)
        bench.define("one", 'aliases = ["gpt-4o"]')
        bench.define("two")
        await bench.until(lambda: "refused" not in status(bench), "all is well")
        assert bench.world.remarks["one"] == "" and bench.world.reloads == []


@scene
async def test_settings_of_the_host_with_a_mistake_are_told_once_and_change_nothing() -> None:
    async with routing(two) as bench:
        await loaded(bench, "one")
        (bench.etc / "llamad.toml").write_text("[host]\nresident = 5\n")
        bench.define("three")
        await bench.until(lambda: told(bench, "reload-refused", "llamad"), "it is said")
        assert "llamad.toml:2:1" in told(bench, "reload-refused", "llamad")[0]
        await bench.until(lambda: "llamad.toml:2:1" in status(bench), "in the status")
        assert len(bench.journal.of("reload-refused")) == 1 and bench.journal.of("config-refused") == []
        (bench.etc / "llamad.toml").write_text("[host]\nresident_s = 5\n")
        await bench.until(lambda: "three" in names(bench) and "llamad.toml" not in status(bench), "all is well")
        assert "resident_s" in told(bench, "reload-applied", "llamad")[0]


@scene
async def test_a_definition_that_cannot_be_put_into_force_leaves_the_old_one() -> None:
    async with routing(two) as bench:
        await loaded(bench, "one")
        first = bench.router.residents["one"].loaded
        failures = [BusyError("no room"), Reverted("it could not be started", why="a template is wrong")]
        for number, failure in enumerate(failures):
            bench.world.reload_failures["one"] = failure
            bench.define("one", f'aliases = ["new"]\n[placement]\ncontext = {512 + number}')
            await bench.until(lambda failure=failure: (failure.why or failure.what) in bench.world.remarks["one"])  # type: ignore[misc]
            assert bench.router.residents["one"].loaded == first
            assert (await bench.chat("new")).code == "model_not_found" and (await bench.chat("gpt-4o")).status == 200
        assert len(told(bench, "reload-refused", "one")) == 1, "what is reverted the supervisor tells"
        bench.world.reload_failures.clear()
        bench.world.refusals["one"] = ChildError("its file is gone")
        bench.define("one", "# again")
        await bench.until(lambda: "its file is gone" in status(bench))
        assert bench.world.reloads == ["one: aliases, placement.context"] * 2


@scene
async def test_a_life_that_ends_while_its_definition_changes_comes_back_with_the_new_one() -> None:
    async with routing(two) as bench:
        await loaded(bench, "one")
        bench.world.reload_gates["one"] = asyncio.Event()
        bench.define("one", "[placement]\ncontext = 512")
        await bench.until(lambda: bench.world.reloads)
        bench.router.residents["one"].unload("for the test")
        await bench.until(lambda: bench.state("one") == "unloaded")
        await loaded(bench, "one")
        assert bench.world.lived["one"][-1].definition.placement.context == 512


@scene
async def test_what_is_only_being_loaded_goes_on_with_the_new_definition() -> None:
    def prepare(bench: RouterBench) -> None:
        two(bench)
        bench.world.gates["one"] = asyncio.Event()

    async with routing(prepare) as bench:
        waiting = asyncio.ensure_future(bench.chat("one"))
        await bench.until(lambda: bench.state("one") == "loading")
        bench.define("one", "[placement]\ncontext = 512")
        await bench.until(lambda: bench.world.renewed == ["one"])
        bench.world.gates["one"].set()
        assert (await waiting).status == 200
        assert bench.world.lived["one"][-1].definition.placement.context == 512


@scene
async def test_a_removed_model_answers_what_it_has_and_is_not_found_any_more() -> None:
    go_on = asyncio.Event()

    def prepare(bench: RouterBench) -> None:
        two(bench)
        bench.world.handlers["one"] = answer_when(go_on)

    async with routing(prepare) as bench:
        answer = asyncio.ensure_future(bench.chat("one"))
        await bench.until(lambda: bench.state("one") == "ready")
        (bench.etc / "one.toml").unlink()
        await bench.until(lambda: "one" not in names(bench), "it is gone")
        assert (await bench.chat("one")).code == "model_not_found"
        assert [entry["id"] for entry in (await bench.get("/v1/models")).json["data"]] == ["two"]
        assert not answer.done()
        bench.define("one")  # it comes back before it is gone
        await asyncio.sleep(1.0)
        assert "one" not in names(bench) and not answer.done()
        go_on.set()
        assert (await answer).status == 200
        await bench.until(lambda: "one" in names(bench), "it is back")
        assert told(bench, "unloading", "one") == ["Unloading: its definition is gone"]
        assert (await bench.chat("one")).status == 200


@scene
async def test_a_folder_that_is_gone_is_no_reason_to_unload_everything() -> None:
    async with routing(two) as bench:
        await loaded(bench, "one")
        kept = {path.name: path.read_text() for path in bench.etc.iterdir()}
        shutil.rmtree(bench.etc)
        await bench.until(lambda: told(bench, "reload-refused", "llamad"), "it is said")
        await bench.until(lambda: str(bench.etc) in status(bench), "in the status")
        assert names(bench) == {"one", "two"}
        bench.etc.mkdir()
        for name, text in kept.items():
            (bench.etc / name).write_text(text)
        await bench.until(lambda: "refused" not in status(bench) and str(bench.etc) not in status(bench), "all is well")
        assert bench.journal.of("unloading") == [] and bench.world.lives == ["one"]


@scene
async def test_without_a_watch_edits_wait_for_a_hang_up_which_waits_for_them() -> None:
    async with routing(two, "watch = false") as bench:
        await loaded(bench, "one")
        bench.world.reload_gates["one"] = asyncio.Event()
        bench.define("one", "[placement]\ncontext = 512")
        await asyncio.sleep(1.0)
        assert bench.world.reloads == []
        readies = sum("READY" in fields for fields in bench.notifier.sent)
        bench.router.reload()
        await bench.until(lambda: bench.world.reloads)
        await asyncio.sleep(0.3)
        assert any("RELOADING" in fields for fields in bench.notifier.sent)
        assert sum("READY" in fields for fields in bench.notifier.sent) == readies, "systemd waits for the model"
        bench.world.reload_gates["one"].set()
        await bench.until(lambda: sum("READY" in fields for fields in bench.notifier.sent) == readies + 1)


@scene
async def test_a_replaced_file_is_loaded_at_a_hang_up_and_not_before() -> None:
    async with routing(two) as bench:
        await loaded(bench, "one", "two")
        bench.world.replaced = {"one"}
        bench.define("one", 'aliases = ["gpt-4o"]\n# an edit')
        await bench.until(lambda: bench.world.adopted == ["one"])
        assert bench.world.reloads == []
        bench.router.reload()
        await bench.until(lambda: bench.world.reloads == ["one: the files of the model"])


def with_keys(bench: RouterBench) -> None:
    for name in ("all", "own"):
        (bench.folder / f"{name}.keys").write_text(f"{name}-1\n")
    bench.define("one")
    bench.define("two", f'api_keys_file = "{bench.folder}/own.keys"')


@scene
async def test_rotated_keys_are_in_force_by_themselves_and_stay_where_their_file_is_gone() -> None:
    folder = Path()

    def prepare(bench: RouterBench) -> None:
        nonlocal folder
        folder = bench.folder
        with_keys(bench)
        (bench.etc / "llamad.toml").write_text(f'[host]\napi_keys_file = "{folder}/all.keys"\n')

    async with routing(prepare) as bench:
        async def opens(model: str, key: str) -> bool:
            answer = await bench.ask_with_key(model, key)
            assert answer.status in (200, 401)
            return answer.status == 200

        for name, model in (("all", "one"), ("own", "two")):
            assert await opens(model, f"{name}-1")
            new = folder / "new"
            new.write_text(f"{name}-2\n")
            new.replace(folder / f"{name}.keys")
            who = "llamad" if name == "all" else model
            await bench.until(lambda who=who: told(bench, "reload-applied", who), "in force")  # type: ignore[misc]
            assert await opens(model, f"{name}-2") and not await opens(model, f"{name}-1")
            (folder / f"{name}.keys").unlink()
            await bench.until(lambda who=who: told(bench, "reload-refused", who), "a warning")  # type: ignore[misc]
            assert f"{name}.keys" in told(bench, "reload-refused", who)[0]
            assert await opens(model, f"{name}-2") and not await opens(model, f"{name}-1")
            (folder / f"{name}.keys").write_text(f"{name}-2\n")
            await bench.until(lambda: ".keys" not in status(bench), "all is well")
        assert bench.world.reloads == []


@scene
async def test_a_file_of_keys_that_comes_late_is_found_though_nothing_else_changes() -> None:
    def prepare(bench: RouterBench) -> None:
        (bench.folder / "later").mkdir()
        bench.define("one", f'api_keys_file = "{bench.folder}/later/one.keys"')

    async with routing(prepare) as bench:
        await bench.until(lambda: bench.state("one") == "broken", "its keys are missing")
        (bench.folder / "later/one.keys").write_text("one-1\n")
        await bench.until(lambda: bench.state("one") == "unloaded", "found")
        shown = read_status("one", bench.paths.of_model("one").runtime.parent)
        assert shown is not None and shown["state"] == "unloaded" and "keys" not in str(shown["text"])
        assert (await bench.ask_with_key("one", "one-1")).status == 200
        assert (await bench.ask_with_key("one", "none")).status == 401
        (bench.etc / "llamad.toml").write_text(f'[host]\napi_keys_file = "{bench.folder}/later/all.keys"\n')
        await bench.until(lambda: told(bench, "reload-refused", "llamad"), "its keys are missing")
        (bench.folder / "later/all.keys").write_text("all-1\n")
        await bench.until(lambda: told(bench, "reload-applied", "llamad"), "found")


@scene
async def test_a_model_whose_definition_goes_is_on_its_way_out_at_once() -> None:
    async with routing(two) as bench:
        await loaded(bench, "one")
        resident = bench.router.residents["one"]
        await bench.until(lambda: bench.state("one") == "ready")
        (bench.etc / "one.toml").unlink()
        bench.router.remove("one")
        held = resident.residency({"GPU": 1})
        assert held is not None and held.leaving, "nobody chooses it to make room for another"


@scene
async def test_the_address_moves_and_nobody_is_lost() -> None:
    go_on = asyncio.Event()

    def prepare(bench: RouterBench) -> None:
        two(bench)
        bench.world.handlers["one"] = answer_when(go_on)

    with socket.create_server(("127.0.0.1", 0)) as probe:
        taken = probe.getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
        async with routing(prepare) as bench:
            answer = asyncio.ensure_future(bench.chat("one"))
            await bench.until(lambda: bench.state("one") == "ready")
            (bench.etc / "llamad.toml").write_text(f'[host]\nlisten = "127.0.0.1:{taken}"\n')
            await bench.until(lambda: told(bench, "reload-refused", "llamad"), "a taken one is refused")
            assert (await bench.chat("two")).status == 200
            (bench.etc / "llamad.toml").write_text(f'[host]\nlisten = "127.0.0.1:{port}"\n')
            await bench.until(lambda: told(bench, "reload-applied", "llamad"), "in force")
            await bench.until(lambda: status(bench).startswith(f"127.0.0.1:{port}: "), "in the status")
            with pytest.raises(OSError):
                await bench.chat("two")
            bench.address = ("127.0.0.1", port)
            assert (await bench.chat("two")).status == 200
            go_on.set()
            assert (await answer).status == 200, "a connection outlives its address"


def test_all_definitions_are_looked_at_as_one(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    subject = AllDefinitions(tmp_path, lambda: ["one"], lambda: [str(keys)])
    seen = [subject.look()]
    for path in (tmp_path / "one.toml", keys, tmp_path / "llamad.toml", tmp_path / "two.toml"):
        path.write_text("# something\n")
        seen.append(subject.look())
    (tmp_path / "one.toml.d").mkdir()
    (tmp_path / "one.toml.d/1.toml").write_text("# more\n")
    seen.append(subject.look())
    assert len({one.digest for one in seen}) == len(seen)
    assert [one.present for one in seen] == [False, False, True, True, True, True]
    assert str(tmp_path / "one.toml.d") in subject.folders()
    keys.chmod(0)
    if os.geteuid():
        assert subject.look().digest != seen[-1].digest


def judging_s(bench: RouterBench) -> float:
    """How long it takes now to judge one definition in a process of its own; 0.3 s on an idle machine."""
    began_s = time.monotonic()
    with Apart() as judge:
        file = bench.etc / "m0.toml"
        judge("m0", file, bench.etc, {file: file.read_bytes()})
    return time.monotonic() - began_s


def test_a_thousand_edits_by_eight_writers_end_in_the_last_and_leak_nothing() -> None:
    """Of four models that are served, comments and drop-ins in every style; the last contents win within 3 s."""
    models = [f"m{number}" for number in range(4)]

    def prepare(bench: RouterBench) -> None:
        for name in models:
            bench.define(name)

    def churn(writer: int, bench: RouterBench) -> None:
        choose = random.Random(writer)
        for number in range(125):
            style: Callable[[Path, str], None] = choose.choice(STYLES)
            name = choose.choice(models)
            with contextlib.suppress(OSError):  # another writer was quicker
                style(bench.etc / f"{name}.toml", f'model = "/m/{name}.gguf"\n# {writer} {number}\n')

    async def play(bench: RouterBench) -> Any:
        writers = [threading.Thread(target=churn, args=(writer, bench)) for writer in range(8)]
        for writer in writers:
            writer.start()
        for writer in writers:
            await asyncio.to_thread(writer.join)
        for name in models:
            (bench.etc / f"{name}.toml").unlink(missing_ok=True)
            bench.define(name, f'aliases = ["last-{name}"]')
        began_s = time.monotonic()
        await bench.until(
            lambda: all(
                (one := bench.router.residents[name].loaded) and one.definition.aliases == (f"last-{name}",)
                for name in models
            )
        )
        return time.monotonic() - began_s

    async def go() -> None:
        async with routing(prepare) as bench:
            await loaded(bench, *models)
            bench.define("m0", "# warm")
            await bench.until(lambda: bench.world.adopted)
            await asyncio.sleep(0.5)
            gc.collect()
            fds, threads, objects = open_fds(), threading.active_count(), len(gc.get_objects())
            took_s = await play(bench)
            assert took_s < max(3.0, 8 * judging_s(bench)), "or as much longer as this machine is busy"
            await asyncio.gather(*(resident.rest() for resident in bench.router.residents.values()))
            assert (await bench.chat("last-m3")).status == 200
            gc.collect()
            await back_to(fds, threads + EXECUTOR_THREADS)
            assert len(gc.get_objects()) < objects + 5000
            assert bench.world.reloads == [] and bench.world.lives == models, "no model was touched"

    asyncio.run(asyncio.wait_for(go(), 60))
