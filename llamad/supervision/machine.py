"""The life of one model as a pure table: (state, event) -> (state, effects). No I/O, no clock.

The supervisor posts events and carries out effects; every decision about what follows what is here. A
pair that is not in the table is a bug (`InternalError`), except those that may come late by nature.
"""

from __future__ import annotations

from enum import StrEnum

from llamad.errors import InternalError


class State(StrEnum):
    """Where a model is in its life."""

    STOPPED = "stopped"
    WAITING = "waiting"
    """A plan is being made, or waits for memory or a device."""
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    """Towards a stop: requests in flight are finished."""
    SWAPPING = "swapping"
    """Towards a new definition: requests in flight are finished, new ones held."""
    REPLACING = "replacing"
    """The old child is being stopped for a new definition, or for a larger plan."""
    CONDEMNED = "condemned"
    """The child runs but must not be used: wrong placement, stalled, failed warm-up, hung."""
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"
    STUCK = "stuck"
    """The child cannot be killed (it sits in the kernel)."""
    RELIEVING = "relieving"
    """The child serves; a second one, of a new definition, is brought up beside it."""
    RETIRING = "retiring"
    """The second one serves; the first finishes its requests and is stopped."""

    @property
    def number(self) -> int:
        """A stable number for metrics."""
        return list(State).index(self)

    @property
    def serves(self) -> bool:
        """Whether requests go to a child."""
        return self in (State.READY, State.RELIEVING, State.RETIRING)

    @property
    def public(self) -> str:
        """The state for clients and admins: that there are two children for a while is nobody's concern."""
        return str(State.READY if self.serves else self)


class Event(StrEnum):
    """What can happen."""

    START = "start"
    PLANNED = "planned"
    QUEUED = "queued"
    """Others have the memory, or it is not its turn to load."""
    TURN = "turn"
    """What it waits for may have come."""
    REFUSED = "refused"
    """No plan is possible."""
    PARKED = "parked"
    """A device does not answer, and may again: it is waited for within, where no service manager does that."""
    LOADED = "loaded"
    """Health answers and every planned byte was found on its device."""
    CONDEMN = "condemn"
    WARMED = "warmed"
    DIED = "died"
    """The child is gone and may be tried again."""
    DOOMED = "doomed"
    """The child is gone and trying again cannot help."""
    REVERT = "revert"
    """The new definition could not be started; the old one is in force again."""
    DRAINED = "drained"
    TIMER = "timer"
    RELOAD = "reload"
    RELIEVE = "relieve"
    """A new definition came, and its child has room beside the one that serves."""
    RELIEVED = "relieved"
    """The second child is warm."""
    UNRELIEVED = "unrelieved"
    """The second child could not be brought up."""
    RETIRED = "retired"
    """The child that was replaced is gone."""
    STOP = "stop"
    UNKILLABLE = "unkillable"
    STABLE = "stable"
    GROW = "grow"
    """A larger plan has been possible for long, and no request is in work."""


class Effect(StrEnum):
    """What the supervisor must do, in order."""

    PLAN = "plan"
    AWAIT_TURN = "await-turn"
    AWAIT_DEVICE = "await-device"
    """Wait a while that grows, then plan again."""
    SPAWN = "spawn"
    WARM_UP = "warm-up"
    OPEN = "open"
    """Let requests through and tell systemd that the model is ready."""
    HOLD = "hold"
    DRAIN = "drain"
    STOP_CHILD = "stop-child"
    KILL_CHILD = "kill-child"
    ARM_BACKOFF = "arm-backoff"
    BRING_UP = "bring-up"
    """Start and warm a second child."""
    ADOPT = "adopt"
    """The second child is the child from now on: new requests go to it. The former one finishes its own, and is
    stopped."""
    DISMISS = "dismiss"
    """Kill the second child; the next plan waits for its end."""
    WATCH = "watch"
    """The child serves: see that it goes on."""
    TELL_STUCK = "tell-stuck"
    """Say that the child cannot be killed, and what that means."""
    FORGIVE = "forgive"
    """Forget earlier failures: the child has been stable."""
    GIVE_UP = "give-up"
    EXIT = "exit"


_S, _E, _F = State, Event, Effect
Row = tuple[State, tuple[Effect, ...]]

TRANSITIONS: dict[tuple[State, Event], Row] = {
    (_S.STOPPED, _E.START): (_S.WAITING, (_F.HOLD, _F.PLAN)),
    (_S.STOPPED, _E.STOP): (_S.STOPPED, (_F.EXIT,)),
    (_S.WAITING, _E.PLANNED): (_S.LOADING, (_F.SPAWN,)),
    (_S.WAITING, _E.QUEUED): (_S.WAITING, (_F.AWAIT_TURN,)),
    (_S.WAITING, _E.TURN): (_S.WAITING, (_F.PLAN,)),
    (_S.WAITING, _E.REFUSED): (_S.FAILED, (_F.GIVE_UP,)),
    (_S.WAITING, _E.PARKED): (_S.WAITING, (_F.AWAIT_DEVICE,)),
    (_S.WAITING, _E.REVERT): (_S.WAITING, (_F.PLAN,)),
    (_S.WAITING, _E.RELOAD): (_S.WAITING, (_F.PLAN,)),
    (_S.WAITING, _E.STOP): (_S.STOPPED, (_F.EXIT,)),
    (_S.LOADING, _E.LOADED): (_S.WARMING, (_F.WARM_UP,)),
    (_S.LOADING, _E.CONDEMN): (_S.CONDEMNED, (_F.KILL_CHILD,)),
    (_S.LOADING, _E.DIED): (_S.BACKOFF, (_F.ARM_BACKOFF,)),
    (_S.LOADING, _E.PARKED): (_S.WAITING, (_F.AWAIT_DEVICE,)),
    (_S.LOADING, _E.DOOMED): (_S.FAILED, (_F.GIVE_UP,)),
    (_S.LOADING, _E.REVERT): (_S.WAITING, (_F.PLAN,)),
    (_S.LOADING, _E.RELOAD): (_S.REPLACING, (_F.STOP_CHILD,)),
    (_S.LOADING, _E.STOP): (_S.STOPPING, (_F.STOP_CHILD,)),
    (_S.WARMING, _E.WARMED): (_S.READY, (_F.OPEN, _F.WATCH)),
    (_S.WARMING, _E.CONDEMN): (_S.CONDEMNED, (_F.KILL_CHILD,)),
    (_S.WARMING, _E.DIED): (_S.BACKOFF, (_F.ARM_BACKOFF,)),
    (_S.WARMING, _E.PARKED): (_S.WAITING, (_F.AWAIT_DEVICE,)),
    (_S.WARMING, _E.DOOMED): (_S.FAILED, (_F.GIVE_UP,)),
    (_S.WARMING, _E.REVERT): (_S.WAITING, (_F.PLAN,)),
    (_S.WARMING, _E.RELOAD): (_S.REPLACING, (_F.STOP_CHILD,)),
    (_S.WARMING, _E.STOP): (_S.STOPPING, (_F.STOP_CHILD,)),
    (_S.READY, _E.CONDEMN): (_S.CONDEMNED, (_F.HOLD, _F.KILL_CHILD)),
    (_S.READY, _E.DIED): (_S.BACKOFF, (_F.HOLD, _F.ARM_BACKOFF)),
    (_S.READY, _E.PARKED): (_S.WAITING, (_F.HOLD, _F.AWAIT_DEVICE)),
    (_S.READY, _E.DOOMED): (_S.FAILED, (_F.GIVE_UP,)),
    (_S.READY, _E.RELOAD): (_S.SWAPPING, (_F.HOLD, _F.DRAIN)),
    (_S.READY, _E.STABLE): (_S.READY, (_F.FORGIVE,)),
    (_S.READY, _E.GROW): (_S.REPLACING, (_F.HOLD, _F.STOP_CHILD)),
    (_S.READY, _E.STOP): (_S.DRAINING, (_F.DRAIN,)),
    (_S.READY, _E.RELIEVE): (_S.RELIEVING, (_F.BRING_UP, _F.WATCH)),
    (_S.RELIEVING, _E.RELIEVED): (_S.RETIRING, (_F.ADOPT, _F.WATCH)),
    (_S.RELIEVING, _E.UNRELIEVED): (_S.READY, (_F.DISMISS, _F.WATCH)),
    (_S.RELIEVING, _E.CONDEMN): (_S.CONDEMNED, (_F.DISMISS, _F.HOLD, _F.KILL_CHILD)),
    (_S.RELIEVING, _E.DIED): (_S.BACKOFF, (_F.DISMISS, _F.HOLD, _F.ARM_BACKOFF)),
    (_S.RELIEVING, _E.PARKED): (_S.WAITING, (_F.DISMISS, _F.HOLD, _F.AWAIT_DEVICE)),
    (_S.RELIEVING, _E.DOOMED): (_S.FAILED, (_F.DISMISS, _F.GIVE_UP)),
    (_S.RELIEVING, _E.RELOAD): (_S.SWAPPING, (_F.DISMISS, _F.HOLD, _F.DRAIN)),
    (_S.RELIEVING, _E.STABLE): (_S.RELIEVING, (_F.FORGIVE,)),
    (_S.RELIEVING, _E.STOP): (_S.DRAINING, (_F.DISMISS, _F.DRAIN)),
    (_S.RETIRING, _E.RETIRED): (_S.READY, (_F.WATCH,)),
    (_S.RETIRING, _E.CONDEMN): (_S.CONDEMNED, (_F.HOLD, _F.KILL_CHILD)),
    (_S.RETIRING, _E.DIED): (_S.BACKOFF, (_F.HOLD, _F.ARM_BACKOFF)),
    (_S.RETIRING, _E.PARKED): (_S.WAITING, (_F.HOLD, _F.AWAIT_DEVICE)),
    (_S.RETIRING, _E.DOOMED): (_S.FAILED, (_F.GIVE_UP,)),
    (_S.RETIRING, _E.RELOAD): (_S.SWAPPING, (_F.HOLD, _F.DRAIN)),
    (_S.RETIRING, _E.STABLE): (_S.RETIRING, (_F.FORGIVE,)),
    (_S.RETIRING, _E.STOP): (_S.DRAINING, (_F.DRAIN,)),
    (_S.DRAINING, _E.DRAINED): (_S.STOPPING, (_F.STOP_CHILD,)),
    (_S.DRAINING, _E.DIED): (_S.STOPPED, (_F.EXIT,)),
    (_S.DRAINING, _E.DOOMED): (_S.STOPPED, (_F.EXIT,)),
    (_S.SWAPPING, _E.DRAINED): (_S.REPLACING, (_F.STOP_CHILD,)),
    (_S.SWAPPING, _E.DIED): (_S.WAITING, (_F.PLAN,)),
    (_S.SWAPPING, _E.DOOMED): (_S.WAITING, (_F.PLAN,)),
    (_S.SWAPPING, _E.RELOAD): (_S.SWAPPING, ()),
    (_S.SWAPPING, _E.STOP): (_S.DRAINING, (_F.DRAIN,)),
    (_S.REPLACING, _E.DIED): (_S.WAITING, (_F.PLAN,)),
    (_S.REPLACING, _E.DOOMED): (_S.WAITING, (_F.PLAN,)),
    (_S.REPLACING, _E.UNKILLABLE): (_S.STUCK, (_F.HOLD, _F.TELL_STUCK)),
    (_S.REPLACING, _E.RELOAD): (_S.REPLACING, ()),
    (_S.REPLACING, _E.STOP): (_S.STOPPING, ()),
    (_S.CONDEMNED, _E.DIED): (_S.BACKOFF, (_F.ARM_BACKOFF,)),
    (_S.CONDEMNED, _E.PARKED): (_S.WAITING, (_F.AWAIT_DEVICE,)),
    (_S.CONDEMNED, _E.DOOMED): (_S.FAILED, (_F.GIVE_UP,)),
    (_S.CONDEMNED, _E.REVERT): (_S.WAITING, (_F.PLAN,)),
    (_S.CONDEMNED, _E.UNKILLABLE): (_S.STUCK, (_F.HOLD, _F.TELL_STUCK)),
    (_S.CONDEMNED, _E.RELOAD): (_S.REPLACING, ()),
    (_S.CONDEMNED, _E.STOP): (_S.STOPPING, ()),
    (_S.STOPPING, _E.DIED): (_S.STOPPED, (_F.EXIT,)),
    (_S.STOPPING, _E.DOOMED): (_S.STOPPED, (_F.EXIT,)),
    (_S.STOPPING, _E.UNKILLABLE): (_S.STUCK, (_F.TELL_STUCK, _F.EXIT)),
    (_S.BACKOFF, _E.TIMER): (_S.WAITING, (_F.PLAN,)),
    (_S.BACKOFF, _E.RELOAD): (_S.WAITING, (_F.PLAN,)),
    (_S.BACKOFF, _E.STOP): (_S.STOPPED, (_F.EXIT,)),
    (_S.FAILED, _E.RELOAD): (_S.WAITING, (_F.HOLD, _F.PLAN)),
    (_S.FAILED, _E.STOP): (_S.STOPPED, (_F.EXIT,)),
    (_S.STUCK, _E.DIED): (_S.BACKOFF, (_F.ARM_BACKOFF,)),
    (_S.STUCK, _E.PARKED): (_S.WAITING, (_F.AWAIT_DEVICE,)),
    (_S.STUCK, _E.DOOMED): (_S.FAILED, (_F.GIVE_UP,)),
    (_S.STUCK, _E.STOP): (_S.STUCK, (_F.EXIT,)),
}

IGNORED: frozenset[tuple[State, Event]] = frozenset(
    [(state, Event.STOP) for state in (State.STOPPING, State.DRAINING)]
    + [(state, Event.RELOAD) for state in (State.STOPPED, State.DRAINING, State.STOPPING, State.STUCK)]
    + [(state, Event.UNKILLABLE) for state in (State.STUCK,)]
)
"""Pairs that change nothing: what they ask for is under way, or comes too late."""

_OF_AN_ATTEMPT = frozenset(
    {Event.PLANNED, Event.QUEUED, Event.TURN, Event.REFUSED, Event.LOADED, Event.CONDEMN, Event.WARMED,
     Event.DRAINED, Event.TIMER, Event.STABLE, Event.UNKILLABLE, Event.REVERT, Event.RELIEVE, Event.RELIEVED,
     Event.UNRELIEVED, Event.RETIRED, Event.PARKED, Event.GROW}
)  # fmt: skip


def may(event: Event, state: State) -> bool:
    """Whether the event changes anything in this state."""
    return (state, event) in TRANSITIONS


def step(state: State, event: Event) -> Row:
    """What follows. Results of work that another event overtook (a plan made while the stop came, a drain
    that ended with the child already gone) change nothing; any other unknown pair raises InternalError.
    """
    row = TRANSITIONS.get((state, event))
    if row is not None:
        return row
    if (state, event) in IGNORED or event in _OF_AN_ATTEMPT:
        return state, ()
    raise InternalError(f"no transition for {event} in state {state}")
