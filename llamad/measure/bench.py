"""`llamad bench`: every length of prompts at every number of requests at once, within a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llamad.clock import Clock
from llamad.measure.load import Load, Speeds
from llamad.measure.results import Figure, Point

PROMPTS_TOKENS = (512, 2048, 8192)
GENERATE_TOKENS = 128
REPEATS = 5
TIMEOUT_S = 600.0
_SPARE_TOKENS = 16
"""Left free of a context: the server keeps some for itself."""
_RESERVE = 1.1
"""A round is taken to last so many times what its like took."""


@dataclass(frozen=True)
class Room:
    """What requests may take."""

    context_tokens: int
    slots: int
    request_tokens: int
    """What one request may have of the context."""

    def problem(self, prompt_tokens: int, generate_tokens: int, at_once: int) -> str:
        """Why such a round is not possible; empty where it is."""
        needed = prompt_tokens + generate_tokens + _SPARE_TOKENS
        if needed > self.request_tokens:
            return f"needs {needed} tokens of context, a request may have {self.request_tokens}"
        if needed * at_once > self.context_tokens:
            return f"needs {needed * at_once} tokens of context, there are {self.context_tokens}"
        return ""


def lengths(wanted: Sequence[int], room: Room, generate_tokens: int) -> list[int]:
    """The prompts' lengths that fit; where none does, the longest that would."""
    fit = [tokens for tokens in wanted if not room.problem(tokens, generate_tokens, 1)]
    return fit or [max(1, room.request_tokens - generate_tokens - _SPARE_TOKENS)]


@dataclass(frozen=True)
class Workload:
    """What is measured."""

    prompts_tokens: Sequence[int]
    at_once: Sequence[int]
    generate_tokens: int = GENERATE_TOKENS
    repeats: int = REPEATS
    timeout_s: float = TIMEOUT_S


class Bench:
    """Measures one model that answers."""

    def __init__(self, load: Load, room: Room, clock: Clock, say: Callable[[str], None]) -> None:
        self._load = load
        self._room = room
        self._clock = clock
        self._say = say

    async def run(self, workload: Workload) -> list[Point]:
        """A point for each combination, in order; one that has no room or no time says so. Raises LlamadError."""
        self._end_s = self._clock.monotonic() + workload.timeout_s
        self._reading_s_a_token = self._writing_s_a_token = 0.0
        points = []
        for at_once in workload.at_once:
            for prompt_tokens in workload.prompts_tokens:
                self._say(f"prompts of {prompt_tokens} tokens, {at_once} at once")
                points.append(await self._point(workload, prompt_tokens, at_once))
        return points

    async def _point(self, workload: Workload, prompt_tokens: int, at_once: int) -> Point:
        problem = self._room.problem(prompt_tokens, workload.generate_tokens, at_once)
        if problem:
            return Point(prompt_tokens=prompt_tokens, requests_at_once=at_once, note=problem)
        rounds: list[Speeds] = []
        warm = False
        while len(rounds) < workload.repeats:
            expected_s = self._expected_s(rounds, prompt_tokens, workload.generate_tokens, at_once)
            speeds = await self._round_in_time(expected_s, prompt_tokens, workload.generate_tokens, at_once)
            if speeds is None:
                break
            if warm:
                rounds.append(speeds)
            warm = True  # the first round compiles kernels and fills caches: it counts for nothing
        note = "" if len(rounds) == workload.repeats else f"{len(rounds)} of {workload.repeats} rounds: out of time"
        return point_of(prompt_tokens, at_once, rounds, note)

    def _expected_s(self, rounds: Sequence[Speeds], prompt_tokens: int, generate_tokens: int, at_once: int) -> float:
        if rounds:
            return rounds[-1].wall_s * _RESERVE
        reading_s = self._reading_s_a_token * prompt_tokens * at_once
        return reading_s + self._writing_s_a_token * generate_tokens

    async def _round_in_time(
        self, expected_s: float, prompt_tokens: int, generate_tokens: int, at_once: int
    ) -> Speeds | None:
        """None where it is not over in time, or would not be."""
        left_s = self._end_s - self._clock.monotonic()
        if left_s <= expected_s:
            return None
        try:
            async with asyncio.timeout(left_s):
                speeds = await self._load.round(prompt_tokens, generate_tokens, at_once)
        except TimeoutError:
            return None
        self._reading_s_a_token = 1 / speeds.prompt_tokens_s if speeds.prompt_tokens_s else 0.0
        if speeds.generated_tokens_s:
            self._writing_s_a_token = at_once / speeds.generated_tokens_s
        return speeds


def point_of(prompt_tokens: int, at_once: int, rounds: Sequence[Speeds], note: str = "") -> Point:
    """What the rounds of one point say. Pure."""
    generated = [one.generated_tokens_s for one in rounds if one.generated_tokens_s is not None]
    return Point(
        prompt_tokens=prompt_tokens,
        requests_at_once=at_once,
        prompt_tokens_s=Figure.of([one.prompt_tokens_s for one in rounds]) if rounds else None,
        generated_tokens_s=Figure.of(generated) if generated else None,
        first_token_s=Figure.of([one.first_token_s for one in rounds]) if rounds else None,
        note=note,
    )
