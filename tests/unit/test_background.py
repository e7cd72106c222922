"""The planner's threads: one plan at a time, whoever still waits for it, and no cancellation is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamad.config.definition import Definition, Placement
from llamad.errors import BusyError
from llamad.front.keys import KeySet
from llamad.service import background
from llamad.service.background import BackgroundPlanner
from llamad.service.direct import endpoint_of, write_keys
from llamad.service.paths import Paths
from llamad.supervision.launch import Launch
from tests.support.fakes import FakeReporter, a_plan, loaded_of


class Booking:
    """A ledger that is not asked."""

    problems: tuple[str, ...] = ()
    promise_id = ""
    start_wait_s = 0.0

    def onlooker(self) -> Booking:
        return self


class Planner(BackgroundPlanner):
    """Plans take as long as a test wants."""

    def __init__(self, folder: Path) -> None:
        booking, reporter, nothing = Booking(), FakeReporter(), None
        words: Any = (Paths(folder, folder, folder, folder, folder, None), reporter, nothing, nothing, nothing, booking)
        reporter.planned = lambda plan: None  # type: ignore[attr-defined]
        super().__init__(*words)
        self.begun: list[str] = []
        self.at_once = self.most_at_once = 0
        self.may_end = threading.Event()

    def _make(self, loaded: Any, previous: Any, most_tokens: Any) -> Launch:
        self.begun.append(loaded.digest)
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        self.may_end.wait(20)
        self.at_once -= 1
        return Launch(loaded, a_plan(), (), {}, "/s", 300, "completion", "1")


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_a_plan_that_nobody_waits_for_ends_before_the_next_and_one_in_between_is_never_made(tmp_path: Path) -> None:
    """It would promise, and take away the socket of, what the next one has started by then."""

    async def scene() -> None:
        planner = Planner(tmp_path)
        first = asyncio.create_task(planner.plan(loaded_of(digest="1"), None))
        await until(lambda: planner.begun)
        first.cancel()
        second = asyncio.create_task(planner.plan(loaded_of(digest="2"), None))
        await asyncio.sleep(0.05)
        second.cancel()
        third = asyncio.create_task(planner.plan(loaded_of(digest="3"), None))
        await asyncio.sleep(0.05)
        planner.may_end.set()
        launch = await third
        assert launch.loaded.digest == "3"
        assert planner.most_at_once == 1
        assert planner.begun == ["1", "3"]

    asyncio.run(scene())


def test_a_cancellation_that_comes_with_the_answer_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of a state that was left would go on for ever."""

    async def scene() -> None:
        async def answer(*_words: object) -> int:
            job.cancel()
            return 1

        async def work() -> None:
            await background._off_the_loop(lambda: 1, what="looking")
            await asyncio.sleep(0)

        monkeypatch.setattr(background, "in_thread", answer)
        job = asyncio.create_task(work())
        await asyncio.wait([job])
        assert job.cancelled()

    asyncio.run(scene())


def test_a_lease_that_cannot_be_given_back_now_is_told_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async def none(*_words: object) -> None:
            raise BusyError("no thread can be started")

        planner = Planner(tmp_path)
        monkeypatch.setattr(background, "in_thread", none)
        planner.dismissed()
        (task,) = planner._proving
        await asyncio.wait([task])
        assert task.exception() is None
        reporter: Any = planner._reporter
        assert reporter.names() == ["ledger-problem"]

    asyncio.run(scene())


@pytest.mark.parametrize("asked", [False, True])
def test_a_llama_server_that_owns_its_address_is_started_again_with_the_keys_in_force(tmp_path: Path, asked: bool) -> None:
    """Its last command would do, but for the keys: it names their file, or none."""

    async def scene() -> None:
        planner = Planner(tmp_path)
        planner.may_end.set()
        planner._booking.returning = lambda _id: None  # type: ignore[method-assign]
        planner._is_back = lambda _loaded, _previous: True  # type: ignore[method-assign,assignment]
        loaded = loaded_of()
        loaded = replace(loaded, definition=Definition(model="/m/tiny.gguf", front="direct", placement=Placement(allow_cpu=True)))
        engine = planner._paths.engine
        engine.mkdir()
        write_keys(loaded.definition, KeySet(["one"] if asked else []), engine)
        before = Launch(loaded, a_plan(), (), {}, endpoint_of(loaded.definition, engine, ""), 300, "completion", "1")
        await planner.plan(loaded, before, 4096)
        assert planner.begun == [], "the same again"
        write_keys(loaded.definition, KeySet([] if asked else ["one"]), engine, runs=True)
        await planner.plan(loaded, before, 4096)
        assert planner.begun == ["1"]

    asyncio.run(scene())
