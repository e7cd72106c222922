"""The load of a measurement: so many requests at once, each with a prompt that no cache knows, and what they took."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from llamad.measure.client import Answer, Target, complete
from llamad.measure.statistics import median


@dataclass(frozen=True)
class Speeds:
    """One round of requests that were sent at the same moment."""

    wall_s: float
    """From the first request to the end of the last answer."""
    first_token_s: float
    """Median of the requests."""
    prompt_tokens_s: float
    """Tokens of all prompts, from sending until each request had its first token."""
    generated_tokens_s: float | None
    """Tokens of all answers while all of them were generated; None where they never were."""
    generated_tokens: int


def random_prompt(tokens: int, vocabulary_tokens: int, source: random.Random) -> list[int]:
    """Ids from the middle of a vocabulary: special and unused tokens are at its ends."""
    low, high = vocabulary_tokens // 8, max(vocabulary_tokens // 2, vocabulary_tokens // 8 + 1)
    return [source.randrange(low, high) for _ in range(tokens)]


class Load:
    """Sends rounds of requests to one model. Each prompt is random from its first token on."""

    def __init__(self, target: Target, vocabulary_tokens: int, source: random.Random) -> None:
        self._target = target
        self._vocabulary_tokens = vocabulary_tokens
        self._source = source
        self.requests = 0
        """Sent so far."""

    async def round(self, prompt_tokens: int, generate_tokens: int, at_once: int) -> Speeds:
        """Send `at_once` requests and wait for all answers. Raises the first LlamadError; the others are cancelled."""
        prompts = [
            random_prompt(prompt_tokens, self._vocabulary_tokens, self._source) for _ in range(at_once)
        ]
        self.requests += at_once
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(complete(self._target, one, generate_tokens)) for one in prompts]
        except BaseExceptionGroup as errors:
            raise _first(errors) from errors
        return speeds_of([task.result() for task in tasks])


def speeds_of(answers: Sequence[Answer]) -> Speeds:
    """What a round of answers says. Pure."""
    begun_s = min(answer.begun_s for answer in answers)
    firsts = [answer.event_s[0] for answer in answers]
    lasts = [answer.event_s[-1] for answer in answers]
    generated = sum(answer.generated_tokens for answer in answers)
    reading_s = max(firsts) - begun_s
    return Speeds(
        wall_s=max(lasts) - begun_s,
        first_token_s=median([first - answer.begun_s for first, answer in zip(firsts, answers, strict=True)]),
        prompt_tokens_s=sum(answer.prompt_tokens for answer in answers) / reading_s if reading_s > 0 else 0.0,
        generated_tokens_s=_steady(answers, max(firsts), min(lasts)),
        generated_tokens=generated,
    )


def _steady(answers: Sequence[Answer], start_s: float, end_s: float) -> float | None:
    """Tokens a second of all answers between the last first token and the first last one.

    An event may carry several tokens, or none of its own where a character is not complete: so events are counted, and
    scaled by what the server says it generated. None where that is too little to tell.
    """
    tokens = 0.0
    for answer in answers:
        inside = sum(start_s < moment <= end_s for moment in answer.event_s)
        tokens += inside * answer.generated_tokens / len(answer.event_s)
    return tokens / (end_s - start_s) if tokens >= 2 and end_s > start_s else None


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
