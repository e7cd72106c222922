"""The state table: complete, never two children but for a reload, and never three."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from llamad.errors import InternalError
from llamad.supervision.machine import IGNORED, TRANSITIONS, Effect, Event, State, may, step
from tests.support.states_dot import states_dot

WITH_CHILD = {
    State.LOADING, State.WARMING, State.READY, State.DRAINING, State.SWAPPING, State.REPLACING, State.CONDEMNED,
    State.STOPPING, State.STUCK, State.RELIEVING, State.RETIRING,
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
        assert (Effect.HOLD in effects) == state.serves, "requests wait where none did"


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


def test_a_second_child_is_left_only_by_taking_over_or_being_dismissed() -> None:
    for (state, event), (after, effects) in TRANSITIONS.items():
        if Effect.BRING_UP in effects:
            assert (state, after) == (State.READY, State.RELIEVING)
        if Effect.ADOPT in effects:
            assert (state, event, after) == (State.RELIEVING, Event.RELIEVED, State.RETIRING)
        if state is State.RELIEVING and after is not State.RELIEVING:
            assert (Effect.ADOPT in effects) != (Effect.DISMISS in effects), event
        else:
            assert Effect.DISMISS not in effects


def test_who_serves_is_watched_and_nobody_is_held() -> None:
    for (state, _), (after, effects) in TRANSITIONS.items():
        if after.serves:
            assert Effect.HOLD not in effects
            assert (Effect.WATCH in effects) == (state is not after), "watched from each such state's beginning"


class Life:
    """A life by the table alone. A child is started only by SPAWN and BRING_UP, and gone only by a death or a revert;
    one that was replaced or dismissed is `leaving` until it is gone, and nothing is planned before.
    """

    def __init__(self) -> None:
        self.state, _ = step(State.STOPPED, Event.START)
        self.child = self.second = self.leaving = self.replaced = False
        self.ended = False

    def may_take(self, event: Event) -> bool:
        if event is Event.RETIRED:
            return self.leaving
        return not (self.leaving and event in (Event.PLANNED, Event.RELIEVE))

    def take(self, event: Event) -> None:
        if event is Event.RETIRED:
            self.leaving = False
            if not self.replaced:
                return  # a dismissed one goes without a word
        if event in GONE or event in (Event.REVERT, Event.PARKED):
            self.child = False
        self.state, effects = step(self.state, event)
        for effect in effects:
            self._carry_out(effect, event)
        assert self.child == (self.state in WITH_CHILD), f"{event} leads to {self.state}"
        assert self.second == (self.state is State.RELIEVING)
        assert self.child + self.second + self.leaving <= 2
        self.ended = Effect.EXIT in effects

    def _carry_out(self, effect: Effect, event: Event) -> None:
        if effect is Effect.SPAWN:
            assert not (self.child or self.second or self.leaving), "a second child"
            self.child = True
        elif effect is Effect.BRING_UP:
            assert self.child and not self.second and not self.leaving, "a third child"
            self.second = True
        elif effect is Effect.ADOPT:
            assert self.child and self.second
            self.second, self.leaving, self.replaced = False, True, True
        elif effect is Effect.DISMISS:
            self.second, self.leaving, self.replaced = False, True, False
        elif effect is Effect.OPEN:
            assert event is Event.WARMED, "only a warmed child is opened"


def test_random_lives_have_one_child_or_two_for_a_reload_and_always_end() -> None:
    """100,000 lives."""
    choose = random.Random(20261)
    choices = {
        (state, child): [event for event in Event if possible(state, event, child) and not impossible(state, event)]
        for state in State
        for child in (False, True)
    }
    happy = {Event.PLANNED, Event.LOADED, Event.WARMED, Event.RELIEVE, Event.RELIEVED, Event.RETIRED}
    for (state, child), events in choices.items():  # what leads on is chosen more often, or few lives get anywhere
        choices[state, child] = events + 8 * [event for event in events if event in happy and may(event, state)]
    pairs = 0
    for _ in range(100_000):
        life = Life()
        for _ in range(choose.randrange(4, 24)):
            event = choose.choice(choices[life.state, life.child])
            if life.may_take(event):
                life.take(event)
            pairs += life.child and (life.second or life.leaving)
            if life.ended and not life.child:
                break
        else:
            for event in (Event.STOP, Event.DRAINED, *([Event.DIED] if life.child else []), Event.STOP):
                if not (event in GONE and not life.child) and not impossible(life.state, event):
                    life.take(event)
            assert not life.child and life.ended, "a stop that does not end"
    assert pairs > 1_000, "two children were there often enough to tell"
