"""The state table: complete, and never two children."""

from __future__ import annotations

import random

import pytest

from llamad.errors import InternalError
from llamad.supervision.machine import IGNORED, TRANSITIONS, Effect, Event, State, step

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
    """A revert stands for the failed start of a new definition: a refusal, or a death while it started."""
    if event is Event.REVERT:
        return state in (State.WAITING, State.LOADING, State.WARMING, State.CONDEMNED)
    return event is not Event.START and (child or event not in GONE)


@pytest.mark.parametrize("seed", range(20))
def test_random_lives_have_one_child_at_most_and_always_end(seed: int) -> None:
    choose = random.Random(seed)
    state, child = State.STOPPED, False
    state, _ = step(state, Event.START)
    for _ in range(2_000):
        event = choose.choice([e for e in Event if possible(state, e, child)])
        if event in GONE or event is Event.REVERT:
            child = False
        state, effects = step(state, event)
        if Effect.SPAWN in effects:
            assert not child
            child = True
        assert child == (state in WITH_CHILD)
        if Effect.EXIT in effects and not child:
            state, _ = step(State.STOPPED, Event.START)
    for event in (Event.STOP, Event.DRAINED, *([Event.DIED] if child else [])):
        state, _ = step(state, event)
    assert state in (State.STOPPED, State.BACKOFF), "stuck becomes backoff, anything else ends"
