"""One model's owner: a single-writer loop that posts events to the table and carries out its effects.

Everything mutable about a model is changed here and only from `run`. Jobs (planning, watching a load, warming up,
draining, stopping, waiting) are tasks of one state: leaving it cancels them, its epoch drops what they still post.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

from llamad.clock import Clock
from llamad.config.loaded import Loaded
from llamad.errors import ChildError, ExitCode, LlamadError
from llamad.ledger.booking import MustWait
from llamad.supervision import words
from llamad.supervision.backoff import Backoff
from llamad.supervision.causes import CAUSES, Cause, Policy
from llamad.supervision.child import Child, Spawner, stop_ladder
from llamad.supervision.ending import Parking, as_error, ending, of_a_device
from llamad.supervision.growth import Growth, Offer
from llamad.supervision.hang import Hung, stuck_error, tell_stuck, watch_hang
from llamad.supervision.host import oom_kills
from llamad.supervision.intake import Intake
from llamad.supervision.jobs import Jobs
from llamad.supervision.launch import Launch, Seams, needs_no_new_child, tail
from llamad.supervision.loading import NotUsable, tell_loading, warm_up, watch_load
from llamad.supervision.lookout import tell_growth, watch_memory
from llamad.supervision.machine import Effect, Event, State, may, step
from llamad.supervision.message import Message
from llamad.supervision.prepared import prepare
from llamad.supervision.reload import Reload, drain

SETTLE_S = 2.0
STEP_S = 300.0
MOST_SHORTAGES = 8
"""More than the steps of a start: each is one death for lack of memory, some of which others caused."""
_HAS_CHILD = (State.LOADING, State.WARMING, State.READY)


class Supervisor:
    """Runs one model until it is stopped or, with `exit_on_failure`, until it has failed."""

    def __init__(
        self,
        loaded: Loaded,
        seams: Seams,
        spawner: Spawner,
        clock: Clock,
        *,
        exit_on_failure: bool = True,
        parks: bool = False,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.state = State.STOPPED
        self.loaded = loaded
        self.launch: Launch | None = None
        self._seams = seams
        self._spawner = spawner
        self._clock = clock
        self._exit_on_failure, self._jitter = exit_on_failure, jitter
        self._parking = Parking(jitter) if parks else None
        self._backoff = Backoff(loaded.definition.limits.restarts, jitter)
        self._queue: asyncio.Queue[Message] = asyncio.Queue()
        self._epoch = 0
        self._jobs = Jobs()
        self._growth = Growth()
        self._child: Child | None = None
        self._intake: Intake | None = None
        self._killed_because = ""
        self._condemned: LlamadError | None = None
        self._reload = Reload()
        self._warming, self._batch_s = False, 0.0
        self._shortages = 0
        self._ready_at_s = 0.0
        self._last_cause: Cause | None = None
        self._exit: ExitCode | None = None
        self._failure: ExitCode = ExitCode.OK
        self._failure_text = self._waiting_text = ""
        self._remarks: dict[str, str] = {}
        self.restarts = 0

    # -- what others may call ---------------------------------------------------------------------------

    def stop(self) -> None:
        """Drain, stop the child, and let `run` return."""
        self._post(Message(Event.STOP))

    async def reload(self, loaded: Loaded) -> None:
        """Put a new definition into force; return when it serves, or the old one serves again.

        Raises LlamadError where the new definition was refused or could not be started; the old one is in
        force then. A definition that changes nothing for the child, ready or still loading, is applied at once
        without touching it.
        """
        if self.state is State.STUCK:
            raise stuck_error(self.child_pid)
        if self.launch and self.state in _HAS_CHILD and needs_no_new_child(self.launch.loaded, loaded):
            self.loaded = loaded
            return
        if self.launch and self.state is State.READY:
            await self._seams.planner.check(loaded, self.launch)
        waiter = self._reload.begin(self.loaded if self.state is State.READY else None)
        self.loaded = loaded
        self._post(Message(Event.RELOAD))
        await asyncio.shield(waiter)

    @property
    def last_cause(self) -> Cause | None:
        """Why the last child died that was not stopped by us."""
        return self._last_cause

    def status_text(self) -> str:
        """The one line of `systemctl status`."""
        text = self._failure_text if self.state in (State.FAILED, State.STUCK) else self._waiting_text
        return words.status_words(self.state, self.launch, text, self._last_cause, self._remarks.values())

    def remark(self, topic: str, text: str) -> None:
        """Add this to the status of a child that serves, in place of what was said of the topic; "" takes it back."""
        if self._remarks.get(topic, "") != text:
            self._remarks[topic] = text
            self._announce()

    def condemn(self, because: str, error: LlamadError) -> None:
        """Have the child that serves replaced; nothing if none does. `because` is a word of the classifier."""
        if self.state is State.READY:
            self._condemn(self._epoch, because, error)

    @property
    def child_pid(self) -> int:
        """The child's process id; 0 where there is none."""
        return self._child.pid if self._child else 0

    async def run(self) -> ExitCode:
        """Carry the model through its life; returns the exit code for the service."""
        self._post(Message(Event.START))
        try:
            while self._exit is None:
                await self._handle(await self._queue.get())
        finally:
            self._jobs.cancel()
            if self._child:
                self._child.kill_group()
        return self._exit

    # -- the loop ---------------------------------------------------------------------------------------

    def _post(self, message: Message) -> None:
        self._queue.put_nowait(message)

    async def _handle(self, message: Message) -> None:
        if message.epoch is not None and message.epoch != self._epoch:
            return
        if message.event in (Event.REFUSED, Event.DIED, Event.DOOMED) and self._reverts(message):
            message = Message(Event.REVERT)
        if self._is_parked(message):
            message = replace(message, event=Event.PARKED)
        if message.offer and not self._takes(message.offer):
            return
        before = self.state
        self.state, effects = step(before, message.event)
        if self.state is not before or set(effects) - {Effect.FORGIVE}:  # what a stable child is watched for goes on
            self._jobs.cancel()
            self._epoch += 1
        self._take_facts(message)
        for effect in effects:
            await self._carry_out(effect, message)
        if self.state is not before:
            self._announce()

    def _take_facts(self, message: Message) -> None:
        self._growth.note(message.event)
        if message.launch:
            self.launch = message.launch
            self._growth.planned(self.launch.plan.context_tokens)
        if message.cause and message.cause.name != "stopped":
            self._last_cause = message.cause

    def _reverts(self, message: Message) -> bool:
        """Whether this failure belongs to a new definition that has an older one to fall back to."""
        if message.cause and message.cause.policy is Policy.STEP_DOWN and message.event is Event.DIED:
            return False
        if self._reload.fallback is None or not may(Event.REVERT, self.state):
            return False
        why = str(message.error or self._condemned or (message.cause and message.cause.text) or "it failed")
        self.loaded = self._reload.revert(why, message.error, self._seams.reporter) or self.loaded
        return True

    def _is_parked(self, message: Message) -> bool:
        may_be = self._parking and message.event in (Event.REFUSED, Event.DOOMED) and may(Event.PARKED, self.state)
        return bool(may_be) and of_a_device(message.error or message.cause)

    # -- effects ----------------------------------------------------------------------------------------

    async def _carry_out(self, effect: Effect, message: Message) -> None:
        match effect:
            case Effect.PLAN:
                self._jobs.start(self._plan(self._epoch))
            case Effect.AWAIT_TURN:
                self._waiting_text = str(message.error)
                self._announce()
                self._jobs.start(self._await_turn(self._epoch))
            case Effect.AWAIT_DEVICE:
                self._jobs.start(self._await_device(self._epoch, message.error or message.cause))
            case Effect.SPAWN:
                await self._spawn()
            case Effect.WARM_UP:
                self._jobs.start(self._warm_up(self._epoch))
            case Effect.OPEN:
                self._open()
            case Effect.HOLD:
                self._seams.front.hold(f"the model is {self.state}")
            case Effect.DRAIN:
                self._jobs.start(self._drain(self._epoch))
            case Effect.STOP_CHILD:
                self._stop_child()
            case Effect.KILL_CHILD:
                self._jobs.start(self._kill_child(self._epoch))
            case Effect.ARM_BACKOFF:
                self._jobs.start(self._back_off(self._epoch, message.cause))
            case Effect.TELL_STUCK:
                self._failure_text = tell_stuck(self.child_pid, self._seams.reporter)
            case Effect.FORGIVE:
                self._backoff.forgive()
                self._shortages = 0
                self._seams.reporter.stable()
            case Effect.GIVE_UP:
                self._give_up(message)
            case Effect.EXIT:
                self._exit = self._failure

    async def _plan(self, epoch: int) -> None:
        try:
            launch = await self._seams.planner.plan(self.loaded, self.launch, self._growth.most_tokens)
        except MustWait as wait:
            self._post(Message(Event.QUEUED, epoch, error=wait))
        except LlamadError as error:
            self._post(Message(Event.REFUSED, epoch, error=error))
        else:
            self._waiting_text = ""
            self._post(Message(Event.PLANNED, epoch, launch=launch))

    async def _await_turn(self, epoch: int) -> None:
        await self._seams.planner.turn()
        self._post(Message(Event.TURN, epoch))

    async def _await_device(self, epoch: int, why: LlamadError | Cause | None) -> None:
        assert self._parking is not None and why is not None
        self._waiting_text = self._parking.begin(why, self._seams.reporter)
        self._reload.settle(as_error(why))
        self._announce()
        await self._clock.sleep(self._parking.next_delay_s())
        self._post(Message(Event.TURN, epoch))

    async def _spawn(self) -> None:
        launch = self.launch
        assert launch is not None
        self._intake = intake = Intake(self._seams.reporter, launch.definition.limits.child_log_lines_per_s)
        self._killed_because, self._condemned, self._warming = "", None, False
        kills_before = oom_kills()
        try:
            self._child = child = await self._spawner.spawn(launch.argv, launch.env, intake.feed)
        except ChildError as error:
            self._died(replace(CAUSES["not-spawned"], text=str(error)))
            return
        intake.pid = child.pid
        self._seams.planner.spawned(child.pid, intake.observer.observed)
        tell_loading(launch, self._seams.reporter)
        self._jobs.detach(self._watch_exit(child, intake, kills_before))
        self._jobs.start(self._watch_load(self._epoch, child, intake, launch))

    async def _watch_exit(self, child: Child, intake: Intake, kills_before: int) -> None:
        """Lives as long as the child, whatever the states do meanwhile."""
        returncode = await child.wait()
        self._child = None
        self._seams.planner.ended()
        if self._killed_because == "stop" or self.state in (State.STOPPING, State.REPLACING):
            self._post(Message(Event.DIED, cause=CAUSES["stopped"]))
            return
        assert self.launch is not None
        from llamad.supervision.inquest import told_inquest

        self._died(told_inquest(
            self._seams, returncode, intake, self.launch.plan, self._killed_because, self._condemned,
            warming=self._warming, kills=oom_kills() - kills_before,
        ))  # fmt: skip

    def _died(self, cause: Cause) -> None:
        short = cause.policy is Policy.STEP_DOWN
        self._shortages += short
        may_retry = (short and self._shortages <= MOST_SHORTAGES) or self._backoff.may_retry()
        final = not self._growth.died(short=short) and (cause.final or not may_retry)
        self._post(Message(Event.DOOMED if final else Event.DIED, cause=cause))

    async def _watch_load(self, epoch: int, child: Child, intake: Intake, launch: Launch) -> None:
        try:
            await watch_load(child, intake, launch, self._seams, self._clock)
        except NotUsable as unusable:
            self._condemn(epoch, unusable.because, unusable.error)
        else:
            self._post(Message(Event.LOADED, epoch))

    async def _warm_up(self, epoch: int) -> None:
        assert self.launch is not None and self._intake is not None
        self._warming = True
        try:
            self._batch_s = await warm_up(self._intake, self.launch, self._seams)
        except NotUsable as unusable:
            self._condemn(epoch, unusable.because, unusable.error)
        else:
            self._post(Message(Event.WARMED, epoch))

    def _condemn(self, epoch: int, because: str, error: LlamadError) -> None:
        if epoch == self._epoch and self._child:
            self._killed_because, self._condemned = because, error
            self._post(Message(Event.CONDEMN, epoch))

    def _open(self) -> None:
        assert self.launch is not None and self._intake is not None
        self._intake.served()
        self._warming = False
        self._seams.planner.proved(self.launch, self._intake.observer.observed())
        self._ready_at_s = self._clock.monotonic()
        self._backoff.ready_at(self._ready_at_s)
        self._growth.serves(self.launch.plan.context_tokens)
        self._failure = ExitCode.OK
        self._parking = Parking(self._jitter) if self._parking else None
        self._seams.planner.settled(self.child_pid)
        self._seams.front.open(self.launch)
        if self._reload.take_back():
            self._seams.reporter.event("reload-applied", "The new definition is in force")
        self._seams.reporter.serving(self.launch)
        self._reload.settle(None)
        self._jobs.start(prepare(self._clock))
        self._watch_while_ready()

    def _watch_while_ready(self) -> None:
        if self._child and self._intake and self.launch:
            self._jobs.start(self._watch_hang(self._epoch, self._child, self._intake, self.launch))
            self._jobs.start(self._watch_memory(self._epoch, self.launch))
        self._jobs.start(self._become_stable(self._epoch))

    async def _watch_memory(self, epoch: int, launch: Launch) -> None:
        if offer := await watch_memory(launch, self._seams, self._clock, self._growth, self._jitter):
            self._post(Message(Event.GROW, epoch, offer=offer))

    def _takes(self, offer: Offer) -> bool:
        """Take a larger plan, unless a request has come since it was offered: then the watch goes on."""
        assert self.launch is not None
        if self._seams.front.quiet_s() <= 0:
            self._jobs.start(self._watch_memory(self._epoch, self.launch))
            return False
        self._growth.takes(offer)
        self._waiting_text = tell_growth(self.launch.plan, offer, self._seams.reporter)
        return True

    async def _watch_hang(self, epoch: int, child: Child, intake: Intake, launch: Launch) -> None:
        batch_s = self._batch_s * launch.plan.batch_tokens / launch.warm_up_tokens
        try:
            await watch_hang(child, intake, launch, self._seams, self._clock, batch_s)
        except Hung as hung:
            self._condemn(epoch, hung.because, hung.error)

    async def _become_stable(self, epoch: int) -> None:
        await self._clock.sleep(self.loaded.definition.limits.stable_s)
        self._post(Message(Event.STABLE, epoch))

    async def _drain(self, epoch: int) -> None:
        await drain(self._seams, self.loaded.definition.limits, farewell=self.state is State.DRAINING)
        self._post(Message(Event.DRAINED, epoch))

    def _stop_child(self) -> None:
        """The ladder survives a change of the goal on its way, so it is no job of the state."""
        if self._child is None:
            self._post(Message(Event.DIED, cause=CAUSES["stopped"]))
            return
        self._killed_because = "stop"
        self._jobs.detach(self._climb_down(self._child))

    async def _climb_down(self, child: Child) -> None:
        await self._seams.front.close_upstreams()
        if self.launch:
            await self._seams.engine.settle(self.launch.socket_path, SETTLE_S)
        if not await stop_ladder(child, self.loaded.definition.limits.stop_s):
            self._post(Message(Event.UNKILLABLE))

    async def _kill_child(self, epoch: int) -> None:
        if self._child:
            self._child.kill_group()
        await self._clock.sleep(10.0)
        self._post(Message(Event.UNKILLABLE, epoch))

    async def _back_off(self, epoch: int, cause: Cause | None) -> None:
        self.restarts += 1
        if cause and cause.policy is Policy.STEP_DOWN and self._shortages <= MOST_SHORTAGES:
            self._seams.reporter.extend(STEP_S)  # told when it is known what comes instead
            self._post(Message(Event.TIMER, epoch))
            return
        delay_s = self._backoff.next_delay_s(self._clock.monotonic())
        text = cause.text if cause else "it ended"
        self._seams.reporter.event("restarting", words.restarting_text(delay_s, text), CAUSE=text)
        self._seams.reporter.extend(delay_s + 60.0)
        if delay_s:
            await self._clock.sleep(delay_s)
        self._post(Message(Event.TIMER, epoch))

    def _give_up(self, message: Message) -> None:
        error = message.error
        lines = tail(self._intake.recent()) if self._intake and not error else ""
        end = ending(error or message.cause, lines, served=bool(self._ready_at_s))
        self._failure, self._failure_text = end.code, end.status
        self._seams.reporter.event(end.event, end.message, CAUSE=end.text, FIX=end.fix)
        self._seams.front.refuse(end.text)
        self._reload.settle(error or ChildError(end.text, fix=end.fix))
        self._exit = self._failure if self._exit_on_failure else None

    def _announce(self) -> None:
        self._seams.reporter.state(str(self.state), self.status_text())
