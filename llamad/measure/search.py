"""Looking for better settings: one key after the other, uphill; then the best against what is in force, in turns.

It knows of no server: a `Trial` measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llamad.measure.candidates import Axis, Settings
from llamad.measure.results import Figure, Key, Setting, Tried
from llamad.measure.statistics import is_promising

DUEL_ROUNDS = 3
"""How often each of two settings is started for the last comparison: starts differ more than rounds do."""


@dataclass(frozen=True)
class Measured:
    """What one start of some settings gave. More is better."""

    values: Sequence[float] = ()
    context_tokens: int = 0
    refused: str = ""
    """Why it could not be measured."""


class Trial(Protocol):
    """Starts settings and measures them."""

    async def measure(self, settings: Settings, repeats: int) -> Measured:
        """The speed with these settings beside those in force. Raises LlamadError for what no setting is guilty of."""
        ...


@dataclass
class Search:
    """One search. `in_time` says whether there is time for another start."""

    trial: Trial
    repeats: int
    in_time: Callable[[], bool]
    tried: list[Tried] = field(default_factory=list)
    out_of_time: bool = False

    async def climb(self, base: Measured, axes: Sequence[Axis]) -> Settings:
        """The best settings found, those in force being `base`; {} where nothing is better. `tried` has all."""
        self.tried.append(_tried({}, base, kept=False))
        best: dict[Key, Setting] = {}
        speed = base
        for axis in axes:
            for direction in (1, -1):
                moved, best, speed = await self._along(axis, direction, best, speed)
                if moved:
                    break
        return best

    async def _along(
        self, axis: Axis, direction: int, best: dict[Key, Setting], speed: Measured
    ) -> tuple[bool, dict[Key, Setting], Measured]:
        """Go along an axis for as long as each step is better."""
        moved = False
        place = axis.current + direction
        while 0 <= place < len(axis.values):
            if not self.in_time():
                self.out_of_time = True
                break
            settings = {**best, axis.key: axis.values[place]}
            found = await self.trial.measure(settings, self.repeats)
            better = not found.refused and is_promising(speed.values, found.values)
            self.tried.append(_tried(settings, found, kept=better))
            if not better:
                break
            moved, best, speed, place = True, settings, found, place + direction
        return moved, best, speed

    async def duel(self, best: Settings) -> tuple[list[float], list[float]]:
        """Values of what is in force and of the best, measured in turns, each started anew every time. It stops early
        when time is out; fewer values then decide, or none.
        """
        before: list[float] = []
        after: list[float] = []
        for number in range(DUEL_ROUNDS):
            if not self.in_time():
                self.out_of_time = True
                break
            first, second = ({}, best) if number % 2 == 0 else (best, {})  # who is first has the cooler machine
            one, other = await self.trial.measure(first, 2), await self.trial.measure(second, 2)
            old, new = (one, other) if number % 2 == 0 else (other, one)
            if old.refused or new.refused:
                break
            before += old.values
            after += new.values
        return before, after


def _tried(settings: Settings, found: Measured, *, kept: bool) -> Tried:
    speed = Figure.of(found.values) if found.values else None
    words, tokens = found.refused[:1000], found.context_tokens
    return Tried(settings=dict(settings), speed=speed, context_tokens=tokens, refused=words, kept=kept)
