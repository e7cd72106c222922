"""The state table: complete, and never two children."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from llamad.errors import InternalError
from llamad.supervision.machine import IGNORED, TRANSITIONS, Effect, Event, State, may, step
from tests.support.states_dot import states_dot

WITH_CHILD = {
    State.LOADING, State.WARMING, State.READY, State.DRAINING, State.SWAPPING, State.REPLACING, State.CONDEMNED,
    State.STOPPING, State.STUCK,
}  # fmt: skip
GONE = {Event.DIED, Event.DOOMED}


def test_every_state_can_be_stopped_and_reloaded() -> None:
    for state in State:
        for event in (Event.STOP, Event.RELOAD):
            step(state, event)


def test_a_death_is_known_wherever_there_is_a_child_and_nowhere_else() -> None:
    for state in State:
        for event in GONE:
            if state in WITH_CHILD:
                assert step(state, event)[0] not in WITH_CHILD
            else:
                with pytest.raises(InternalError):
                    step(state, event)


def test_whatever_fails_for_good_can_be_parked_instead() -> None:
    failing = {state for (state, _), (after, _) in TRANSITIONS.items() if after is State.FAILED}
    assert {state for state in State if may(Event.PARKED, state)} == failing
    for state in failing:
        after, effects = step(state, Event.PARKED)
        assert after is State.WAITING and effects[-1] is Effect.AWAIT_DEVICE
        assert (Effect.HOLD in effects) == (state is State.READY), "requests wait where none did"


def test_a_child_is_only_spawned_from_a_state_without_one() -> None:
    for (state, _), (after, effects) in TRANSITIONS.items():
        if Effect.SPAWN in effects:
            assert state not in WITH_CHILD and after is State.LOADING


def test_a_start_out_of_place_is_a_bug() -> None:
    with pytest.raises(InternalError):
        step(State.READY, Event.START)


def test_ignored_pairs_are_not_also_in_the_table() -> None:
    assert not IGNORED & set(TRANSITIONS)


def possible(state: State, event: Event, child: bool) -> bool:
    """A revert stands for the failed start of a new definition: a refusal, or a death while it started. Parked is
    what has failed, in place of a refusal or a death that is final.
    """
    if event is Event.PARKED:
        return may(Event.PARKED, state)
    if event is Event.REVERT:
        return state in (State.WAITING, State.LOADING, State.WARMING, State.CONDEMNED)
    return event is not Event.START and (child or event not in GONE)


def impossible(state: State, event: Event) -> bool:
    """What only a bug can bring about."""
    return (event is Event.START and state is not State.STOPPED) or (event in GONE and state not in WITH_CHILD)


def test_every_pair_is_defined() -> None:
    for state in State:
        for event in Event:
            if impossible(state, event):
                with pytest.raises(InternalError):
                    step(state, event)
            else:
                after, effects = step(state, event)
                assert (after, effects) == TRANSITIONS.get((state, event), (state, ()))


def test_the_diagram_is_the_table() -> None:
    written = (Path(__file__).parents[2] / "docs/states.dot").read_text()
    assert written == states_dot(), "python3 -m tests.support.states_dot > docs/states.dot"


class Life:
    """A life by the table alone: one child at most, started only by SPAWN, gone only by a death or a revert."""

    def __init__(self) -> None:
        self.state, _ = step(State.STOPPED, Event.START)
        self.child = False
        self.ended = False

    def take(self, event: Event) -> None:
        if event in GONE or event in (Event.REVERT, Event.PARKED):
            self.child = False
        self.state, effects = step(self.state, event)
        if Effect.SPAWN in effects:
            assert not self.child, "a second child"
            self.child = True
        assert self.child == (self.state in WITH_CHILD), f"{event} leads to {self.state}"
        if Effect.OPEN in effects:
            assert event is Event.WARMED, "only a warmed child is opened"
        self.ended = Effect.EXIT in effects


def test_random_lives_have_one_child_at_most_and_always_end() -> None:
    """100,000 lives."""
    choose = random.Random(20261)
    choices = {
        (state, child): [event for event in Event if possible(state, event, child) and not impossible(state, event)]
        for state in State
        for child in (False, True)
    }
    for _ in range(100_000):
        life = Life()
        for _ in range(choose.randrange(4, 24)):
            life.take(choose.choice(choices[life.state, life.child]))
            if life.ended and not life.child:
                break
        else:
            for event in (Event.STOP, Event.DRAINED, *([Event.DIED] if life.child else []), Event.STOP):
                if not (event in GONE and not life.child) and not impossible(life.state, event):
                    life.take(event)
            assert not life.child and life.ended, "a stop that does not end"
