"""Hostile HTTP against the front over real sockets. LLAMAD_FUZZ_S sets how long is fuzzed; bench/fuzz runs for longer."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.support.front_fuzz import fuzz, fuzzed_front, run_corpus
from tests.support.hostile_http import SLOW, Case
from tests.support.http import Client

SECONDS = float(os.environ.get("LLAMAD_FUZZ_S", "60"))


def test_every_hostile_case_gets_its_answer() -> None:
    async def run() -> list[str]:
        async with fuzzed_front() as (bench, found):
            await run_corpus(bench, found)
        return found.problems

    assert asyncio.run(run()) == []


@pytest.mark.parametrize("case", SLOW, ids=lambda case: case.name)
def test_who_stops_in_the_middle_is_told_and_others_are_served(case: Case) -> None:
    async def run() -> list[str]:
        async with fuzzed_front() as (bench, found), await Client.open(bench.address) as client:
            client.send(case.data)
            asking = asyncio.ensure_future(client.answer())
            served = 0
            while not asking.done():
                assert (await bench.ask("GET", "/health", None)).status == 200
                served += 1
                await asyncio.sleep(0.05)
            answer = await asking
            assert (answer.status, answer.code) == (408, "request_timeout") and served > 5
            assert await client.closed()
        return found.problems

    assert asyncio.run(asyncio.wait_for(run(), 30)) == []


@pytest.mark.timeout(SECONDS * 2 + 120)
def test_fuzz() -> None:
    found, figures = asyncio.run(fuzz(SECONDS, seed=1, connections=400))
    assert found.problems == []
    assert figures["fuzzed connections"] > 50 and figures["good requests"] > 10
    assert {200, 400} <= found.statuses.keys()
