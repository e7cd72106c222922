"""The state table: complete, never two children but for a reload, and never three."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from llamad.errors import InternalError
from llamad.supervision.growth import Growth, Offer
from llamad.supervision.machine import IGNORED, TRANSITIONS, Effect, Event, State, may, step
from tests.support.states_dot import states_dot

WITH_CHILD = {
    State.LOADING, State.WARMING, State.READY, State.DRAINING, State.SWAPPING, State.REPLACING, State.CONDEMNED,
    State.STOPPING, State.STUCK, State.RELIEVING, State.RETIRING,
}  # fmt: skip
GONE = {Event.DIED, Event.DOOMED}
TOWARDS_A_STOP = (State.DRAINING, State.STOPPING)


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


CAUSES = {Event.RELOAD, Event.REVERT, Event.GROW, Event.QUEUED, Event.PARKED}
"""Without one of these between two plans the second has no larger context."""


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
    one that was replaced or dismissed is `leaving` until it is gone, and nothing is planned before. And no context
    rises without cause, though each plan takes all that it may and memory comes and goes as it likes.
    """

    def __init__(self, memory: random.Random) -> None:
        self.state, _ = step(State.STOPPED, Event.START)
        self.child = self.second = self.leaving = self.replaced = False
        self.ended = False
        self.growth = Growth()
        self.growth.note(Event.START)
        self.memory = memory
        self.context, self.served = 0, 0
        self.unproved = 0
        """What served before a growth that has not lasted yet."""
        self.may_rise = True
        self.rises = 0

    def may_take(self, event: Event) -> bool:
        if event is Event.RETIRED:
            return self.leaving
        return not (self.leaving and event in (Event.PLANNED, Event.RELIEVE))

    def take(self, event: Event) -> None:
        if event is Event.RETIRED:
            self.leaving = False
            if not self.replaced:
                return  # a dismissed one goes without a word
        if event is Event.GROW and self.state is State.READY:
            self.growth.takes(Offer(self.context * 2, {"CUDA0": 1}))
            self.unproved = self.context
        if event in GONE and self.state not in (State.DRAINING, State.STOPPING, State.REPLACING, State.SWAPPING):
            self.growth.died(short=self.memory.random() < 0.5)
            self.context = min(self.context, self.unproved or self.context)
            self.unproved = 0
        before = self.state
        if event in GONE or event in (Event.REVERT, Event.PARKED):
            self.child = False
        self.may_rise |= event in CAUSES
        if event in (Event.RELOAD, Event.REVERT, Event.STABLE):
            self.unproved = 0
        self.state, effects = step(before, event)
        self.growth.note(event)
        if Effect.SPAWN in effects:
            self.plan()
        if Effect.OPEN in effects:
            self.growth.serves(self.context)
        for effect in effects:
            self._carry_out(effect, event)
        assert self.child == (self.state in WITH_CHILD), f"{event} leads from {before} to {self.state}"
        assert self.second == (self.state is State.RELIEVING)
        assert self.child + self.second + self.leaving <= 2
        self._hold_rules(before, event, effects)
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
            self._another_definition()
            self.plan()
            self.growth.serves(self.context)
        elif effect is Effect.DISMISS:
            self.second, self.leaving, self.replaced = False, True, False
            if event not in (Event.UNRELIEVED, Event.RELOAD):
                self._another_definition()
        elif effect is Effect.OPEN:
            assert event is Event.WARMED, "only a warmed child is opened"

    def _another_definition(self) -> None:
        self.growth.note(Event.RELOAD)
        self.may_rise, self.unproved = True, 0

    def plan(self) -> None:
        """As much as fits in the memory that is there now, and no more than is allowed."""
        most = self.growth.most_tokens
        room = self.memory.randrange(1, 100)
        context = room if most is None else min(room, most)
        assert context <= self.context or self.may_rise, "the context rose without a cause"
        self.rises += context > self.context > 0
        self.growth.planned(context)
        self.context, self.may_rise = context, False

    def _hold_rules(self, before: State, event: Event, effects: tuple[Effect, ...]) -> None:
        if Effect.EXIT in effects:
            assert event is Event.STOP or before in TOWARDS_A_STOP, "only who was told to stop ends by himself"
        if before in TOWARDS_A_STOP and event is not Event.STOP:
            assert self.state in (*TOWARDS_A_STOP, State.STOPPED, State.STUCK), "a stop that was taken back"
        if self.state is State.STUCK:
            assert Effect.SPAWN not in effects and Effect.PLAN not in effects, "beside a child that cannot be killed"
            if before is not State.STUCK:
                assert Effect.TELL_STUCK in effects
        if before.serves and not self.state.serves and self.state not in (State.DRAINING, State.FAILED):
            assert Effect.HOLD in effects, "requests would go to a child that is none any more"


def choices() -> dict[tuple[State, bool], list[Event]]:
    """What may come next, by the state and whether there is a child. What leads on is there more often, or few lives
    would get anywhere.
    """
    happy = {Event.PLANNED, Event.LOADED, Event.WARMED, Event.RELIEVE, Event.RELIEVED, Event.RETIRED}
    found = {
        (state, child): [event for event in Event if possible(state, event, child) and not impossible(state, event)]
        for state in State
        for child in (False, True)
    }
    return {
        (state, child): events + 8 * [event for event in events if event in happy and may(event, state)]
        for (state, child), events in found.items()
    }


@pytest.mark.parametrize("seed", range(4))
def test_random_lives_have_one_child_or_two_for_a_reload_no_context_without_cause_and_always_end(seed: int) -> None:
    """100,000 of 4 to 200 events: whatever has come before, a stop and the end of the child end them."""
    choose, following, longest, rises, pairs = random.Random(20261 + seed), choices(), 0, 0, 0
    for _ in range(25_000):
        life = Life(choose)
        events = choose.randrange(4, 24) if choose.random() < 0.98 else 200
        for count in range(events):
            event = choose.choice(following[life.state, life.child])
            if life.may_take(event):
                life.take(event)
            pairs += life.child and (life.second or life.leaving)
            longest = max(longest, count)
            if life.ended and not life.child:
                break
        else:
            end(life)
        rises += life.rises
    assert longest > 50
    assert pairs > 1_000, "two children were there often enough to tell"
    assert rises > 250, "contexts that never rise would show nothing"


def end(life: Life) -> None:
    """A stop, and then only what must come: the drain's end, the child's end (which SIGKILL may have to bring)."""
    life.take(Event.STOP)
    for event in (Event.DRAINED, Event.DIED):
        if life.ended:
            break
        if event is Event.DRAINED or life.child:
            life.take(event)
    assert life.ended, f"a stop that does not end, in {life.state}"
    assert not life.child or life.state is State.STUCK


@pytest.mark.parametrize("state", State)
def test_a_stop_ends_within_three_events_from_everywhere(state: State) -> None:
    """Also where the child cannot be killed: then llamad ends, and the child has its lease."""
    for third in (Event.DIED, Event.UNKILLABLE):
        now, effects = step(state, Event.STOP)
        for event in (Event.DRAINED, third):
            if Effect.EXIT in effects:
                break
            now, effects = step(now, event)
        assert Effect.EXIT in effects, f"{state} -> {now} by {third}"


def test_every_state_can_be_reached_and_left() -> None:
    found, edge = {State.STOPPED}, [State.STOPPED]
    while edge:
        state = edge.pop()
        after = {to for (place, _), (to, _) in TRANSITIONS.items() if place is state}
        assert after - {state} or state is State.STUCK, f"{state} is a dead end"
        edge += after - found
        found |= after
    assert found == set(State)
