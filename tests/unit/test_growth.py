"""Contexts that grow back: a quarter more, for ten minutes, in a pause; and never again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from llamad.supervision.growth import LONGEST_GAP_S, LOOK_S, QUIET_S, STABLE_S, Growth, Offer, can_grow
from llamad.supervision.launch import Launch, Seams
from llamad.supervision.lookout import watch_memory
from llamad.supervision.machine import Event
from llamad.supervision.words import loading_text, offered_text
from llamad.units import GIB
from tests.support.fakes import FakeEngine, FakeFront, FakeReporter, a_plan, loaded_of

LARGER = Offer(8192, {"CUDA0": 8 * GIB})


def serving(tokens: int = 4096) -> Growth:
    growth = Growth()
    growth.note(Event.START)
    growth.planned(tokens)
    growth.serves(tokens)
    return growth


def due_after_s(growth: Growth, offers: Iterator[Offer | None], step_s: float = LOOK_S, from_s: float = 0.0) -> float | None:
    """When it is first time to grow, looking every `step_s`; None if not within a day."""
    now_s = from_s
    while now_s < from_s + 86_400:
        if growth.sees(next(offers), now_s):
            return now_s - from_s
        now_s += step_s
    return None


def always(offer: Offer | None) -> Iterator[Offer | None]:
    while True:
        yield offer


def now_and_then(*offers: Offer | None) -> Iterator[Offer | None]:
    while True:
        yield from offers


@pytest.mark.parametrize(("tokens", "grows"), [(5120, True), (5119, False), (4096, False), (2048, False)])
def test_a_quarter_more_for_ten_minutes(tokens: int, *, grows: bool) -> None:
    due_s = due_after_s(serving(), always(Offer(tokens, {"CUDA0": 8 * GIB})))
    assert due_s == (STABLE_S if grows else None)


@pytest.mark.parametrize("gap", [None, Offer(4096, {"CUDA0": 8 * GIB})])
def test_memory_that_comes_and_goes_is_none(gap: Offer | None) -> None:
    assert due_after_s(serving(), now_and_then(*[LARGER] * 9, gap)) is None
    assert due_after_s(serving(), now_and_then(*[LARGER] * 11, gap)) == STABLE_S


def test_a_time_without_a_look_is_no_time_of_rest() -> None:
    assert due_after_s(serving(), always(LARGER), step_s=LONGEST_GAP_S + 1) is None


def test_a_new_child_begins_anew() -> None:
    growth = serving()
    assert due_after_s(growth, iter([LARGER] * 9 + [None] * 2000)) is None
    growth.sees(LARGER, 86_500)
    growth.serves(4096)
    assert due_after_s(growth, always(LARGER), from_s=86_560) == STABLE_S


def grown(growth: Growth, offer: Offer = LARGER) -> None:
    """The growth is taken: the next plan may be larger, and what is planned then is the bound again."""
    growth.takes(offer)
    growth.note(Event.GROW)
    assert growth.most_tokens is None
    growth.planned(offer.context_tokens)
    assert growth.most_tokens == offer.context_tokens


@pytest.mark.parametrize("short", [True, False])
def test_a_growth_that_fails_gives_the_former_context_back_and_waits_for_more_memory(*, short: bool) -> None:
    growth = serving()
    grown(growth)
    assert growth.died(short=short), "it is tried again with the former context, whatever the cause was"
    assert growth.most_tokens == 4096
    growth.planned(4096)
    growth.serves(4096)
    assert due_after_s(growth, always(LARGER)) is None
    assert due_after_s(growth, always(Offer(8192, {"CUDA0": 10 * GIB - 1}))) is None
    assert due_after_s(growth, always(Offer(8192, {"CUDA0": 10 * GIB})), from_s=1e6) == STABLE_S


def test_a_growth_that_brought_nothing_counts_as_failed() -> None:
    growth = serving()
    grown(growth, LARGER)
    growth.planned(4200)
    growth.serves(4200)
    assert due_after_s(growth, always(LARGER)) is None


def test_a_grown_child_that_dies_of_something_else_later_keeps_its_context() -> None:
    growth = serving()
    grown(growth)
    growth.serves(8192)
    growth.note(Event.STABLE)
    assert not growth.died(short=False)
    assert growth.most_tokens == 8192
    growth.serves(8192)
    assert due_after_s(growth, always(Offer(16384, {"CUDA0": 9 * GIB}))) == STABLE_S


def test_a_grown_child_that_lacks_memory_later_has_failed_too() -> None:
    growth = serving()
    grown(growth)
    growth.serves(8192)
    growth.note(Event.STABLE)
    assert not growth.died(short=True), "the lesson says how much smaller"
    growth.planned(4096)
    growth.serves(4096)
    assert due_after_s(growth, always(LARGER)) is None


@pytest.mark.parametrize("event", [Event.RELOAD, Event.REVERT])
def test_another_definition_is_a_new_start(event: Event) -> None:
    growth = serving()
    grown(growth)
    growth.died(short=True)
    growth.note(event)
    assert growth.most_tokens is None
    growth.planned(4096)
    growth.serves(4096)
    assert due_after_s(growth, always(LARGER)) == STABLE_S


def test_memory_that_swings_for_a_week_costs_one_failed_start() -> None:
    """The larger context never loads though the driver shows room for it; the free bytes move by a tenth."""
    growth, attempts, now_s = serving(), 0, 0.0
    for look in range(7 * 24 * 60):
        now_s += LOOK_S
        free = 8 * GIB + (look % 97) * GIB // 120
        if growth.sees(Offer(8192, {"CUDA0": free}), now_s):
            attempts += 1
            grown(growth, Offer(8192, {"CUDA0": free}))
            growth.died(short=True)
            growth.planned(4096)
            growth.serves(4096)
    assert attempts == 1


def test_only_an_open_context_with_room_to_grow_is_watched() -> None:
    assert can_grow("auto", 4096, 5120)
    assert not can_grow("auto", 4096, 5119)
    assert not can_grow(4096, 4096, 8192)


# -- the watch --------------------------------------------------------------------------------------------------


class Hours:
    """A clock whose sleeps take no time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        self.now_s += delay_s
        self.sleeps.append(delay_s)
        await asyncio.sleep(0)


class Devices:
    """A planner that only looks."""

    def __init__(self, offer: Callable[[float], Offer | None], clock: Hours) -> None:
        self.offer, self.clock = offer, clock
        self.asked: list[tuple[bool, bool]] = []

    async def look(self, launch: Launch, *, used: bool, grows: bool) -> Offer | None:
        self.asked.append((used, grows))
        return self.offer(self.clock.now_s)


def launch_of(context: int | str = "auto", **plan: Any) -> Launch:
    plan = {"context_train_tokens": 32768, **plan}
    return Launch(loaded_of(context=context), a_plan(**plan), (), {}, "/s", 300, "completion", "e")


def watch(
    offer: Callable[[float], Offer | None], launch: Launch, front: FakeFront, act: Callable[[Hours], Awaitable[None]] | None = None
) -> tuple[Offer | None, Hours, Devices]:
    clock = Hours()
    devices: Any = Devices(offer, clock)

    async def go() -> Offer | None:
        seams = Seams(devices, FakeEngine(), front, FakeReporter())
        growth = serving(launch.plan.context_tokens)
        task = asyncio.create_task(watch_memory(launch, seams, clock, growth, lambda: 0.5))
        other = asyncio.ensure_future(act(clock)) if act else None
        done = await asyncio.wait_for(task, 20)
        if other:
            await other
        return done

    return asyncio.run(go()), clock, devices


def test_one_look_a_minute_until_it_is_time() -> None:
    found, clock, devices = watch(lambda _now_s: LARGER, launch_of(), FakeFront())
    assert found == LARGER
    assert clock.sleeps == [LOOK_S] * 11
    assert devices.asked == [(False, True)] * 11


def test_it_waits_for_a_pause_between_requests() -> None:
    front = FakeFront()
    front.idle_s = 0.0

    async def come_to_rest(clock: Hours) -> None:
        while clock.now_s < 5000:  # noqa: ASYNC110 - the clock stands still unless others run
            await asyncio.sleep(0)
        front.idle_s = QUIET_S
        front.progressed = 1

    found, clock, devices = watch(lambda _now_s: LARGER, launch_of(), front, come_to_rest)
    assert found == LARGER and clock.now_s >= 5000
    assert min(clock.sleeps) >= 5.0, "no storm of wake-ups"
    assert devices.asked[0] == (False, True)


def test_a_promised_context_is_looked_after_but_never_grows_and_the_cpu_with_one_needs_no_look() -> None:
    found, clock, _ = watch(lambda _now_s: LARGER, launch_of(4096, devices=()), FakeFront())
    assert (found, clock.sleeps) == (None, [])
    found, clock, _ = watch(lambda _now_s: LARGER, launch_of(devices=(), context_train_tokens=4096), FakeFront())
    assert (found, clock.sleeps) == (None, [])

    class Enough(Exception):
        pass

    asked: list[bool] = []

    def offer(now_s: float) -> None:
        asked.append(True)
        if now_s > 3600:
            raise Enough

    with pytest.raises(Enough):
        watch(offer, launch_of(4096), FakeFront())
    assert 50 < len(asked) < 70


def test_what_status_and_journal_say() -> None:
    launch = launch_of()
    assert "8.0 GiB of CUDA0 (8.0 GiB when it was planned) can be had" in offered_text(launch.plan, LARGER)
    cpu = launch_of(devices=(), host_available_bytes=2 * GIB)
    assert "6.0 GiB of host (2.0 GiB when" in offered_text(cpu.plan, Offer(8192, {"host": 6 * GIB}))
    assert loading_text("loading", replace(launch, grown_from=2048)) == "loading: ctx 4096 on CUDA0, grown from 2048"
