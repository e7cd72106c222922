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
from llamad.config.changes import needs_no_new_child
from llamad.config.loaded import Loaded
from llamad.errors import ChildError, ExitCode, LlamadError
from llamad.ledger.booking import MustWait
from llamad.supervision import words
from llamad.supervision.backoff import Backoff
from llamad.supervision.causes import CAUSES, Cause, Policy
from llamad.supervision.child import Child, Spawner
from llamad.supervision.ending import Parking, as_error, ending, of_a_device
from llamad.supervision.hang import stuck_error, tell_stuck
from llamad.supervision.host import oom_kills
from llamad.supervision.intake import Intake
from llamad.supervision.launch import Launch, Seams, tail
from llamad.supervision.loading import tell_loading
from llamad.supervision.machine import Effect, Event, State, may, step
from llamad.supervision.message import Message
from llamad.supervision.relief import NoRoomAfterAll, Relief, Second
from llamad.supervision.reload import Reload
from llamad.supervision.tending import Tending

STEP_S = 300.0
MOST_SHORTAGES = 8
"""More than the steps of a start: each is one death for lack of memory, some of which others caused."""
_STARTING = (State.LOADING, State.WARMING)


class Supervisor(Tending):
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
        super().__init__(loaded, seams, clock, jitter)
        self._spawner, self._exit_on_failure = spawner, exit_on_failure
        self._parking = Parking(jitter) if parks else None
        self._backoff = Backoff(loaded.definition.limits.restarts, jitter)
        self._reload = Reload()
        self._second = Second(seams, spawner, clock, self._jobs.detach)
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

    def adopt(self, loaded: Loaded) -> None:
        """Use another definition from now on, in any state, that asks for no other child. Nothing is touched."""
        self.loaded = loaded
        if self.launch and needs_no_new_child(self.launch.loaded, loaded):
            self.launch = replace(self.launch, loaded=loaded)
        limits = loaded.definition.limits
        self._backoff.restarts = limits.restarts
        if self._intake:
            self._intake.lines_per_s = limits.child_log_lines_per_s

    async def reload(self, loaded: Loaded, changed: str = "", *, replaced: bool = False) -> None:
        """Put a new definition into force; return when it serves, or the old one does (again). `changed`: what is
        new in it, in words. `replaced`: its files are others than those that the child has loaded.

        Raises LlamadError where the new definition was refused or could not be started; the old one is in force then.
        One that changes nothing for the child, ready or still loading, is applied at once without touching it. Where
        its child has room beside the one that serves, that one serves on until the new one does.
        """
        if self.state is State.STUCK:
            raise stuck_error(self.child_pid)
        has_child = self.state in _STARTING or self.state.serves
        if self.launch and has_child and not replaced and needs_no_new_child(self.launch.loaded, loaded):
            self.adopt(loaded)
            return
        limits = loaded.definition.limits
        self._seams.reporter.extend(limits.drain_s + 2 * limits.stop_s + 30.0)
        await self._second.is_gone()
        beside = await self._beside(loaded)
        served = self.state is State.READY or self._growth.under_way
        waiter = self._reload.begin(self.loaded if served else None, changed)
        if beside is not None and self.launch is not None:
            self._second.relief = Relief(beside, self.launch)
            self._post(Message(Event.RELIEVE))
        else:
            self._backoff.restarts = limits.restarts
            self.loaded = loaded
            self._post(Message(Event.RELOAD))
        await asyncio.shield(waiter)

    async def _beside(self, loaded: Loaded) -> Launch | None:
        """The launch for a second child; None where there is no first, or no room. Raises LlamadError."""
        if not self.launch or self.state is not State.READY:
            return None
        await self._seams.planner.check(loaded, self.launch)
        beside = await self._seams.planner.beside(loaded, self.launch)
        if beside is not None and self.state is not State.READY:
            self._seams.planner.dismissed()
            return None
        return beside

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
        if self.state.serves:
            self._condemn(self._epoch, because, error)

    @property
    def public_state(self) -> str:
        """The state for clients and admins."""
        return self.state.public

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
            self._second.kill()
            if self._child:
                self._child.kill_group()
        return self._exit

    # -- the loop ---------------------------------------------------------------------------------------

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
        self.loaded = self._reload.revert(why, self._seams.reporter) or self.loaded
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
                self._kill_child()
            case Effect.ARM_BACKOFF:
                self._jobs.start(self._back_off(self._epoch, message.cause))
            case Effect.BRING_UP:
                self._jobs.start(self._bring_up(self._epoch))
            case Effect.ADOPT:
                self._adopt_relief()
            case Effect.DISMISS:
                self._dismiss(message)
            case Effect.WATCH:
                self._watch_while_ready()
            case Effect.TELL_STUCK:
                self._failure_text = tell_stuck(self.child_pid, self._seams.reporter)
                self.loaded = self._reload.take_back() or self.loaded
                self._reload.settle(stuck_error(self.child_pid))
            case Effect.FORGIVE:
                self._backoff.forgive()
                self._shortages = 0
                self._seams.reporter.stable()
            case Effect.GIVE_UP:
                self._give_up(message)
            case Effect.EXIT:
                await self._second.is_gone()
                self._exit = self._failure

    async def _plan(self, epoch: int) -> None:
        await self._second.is_gone()
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
        if self._second.has_gone(child, self.child_pid):
            self._post(Message(Event.RETIRED))
            return
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

    def _open(self) -> None:
        assert self.launch is not None and self._intake is not None
        self._warming = False
        self._seams.planner.settled(self.child_pid)
        self._serve(self.launch, self._intake)

    def _serve(self, launch: Launch, intake: Intake) -> None:
        intake.served()
        self._seams.planner.proved(launch, intake.observer.observed())
        self._ready_at_s = self._clock.monotonic()
        self._backoff.ready_at(self._ready_at_s)
        self._growth.serves(launch.plan.context_tokens)
        self._failure = ExitCode.OK
        self._parking = Parking(self._jitter) if self._parking else None
        self._seams.front.open(launch)
        if self._reload.take_back():
            changed = self._reload.changed
            self._seams.reporter.event("reload-applied", f"The new definition is in force: {changed}", CHANGED=changed)
        self._seams.reporter.serving(launch)
        self._reload.settle(None)

    # -- a second child -----------------------------------------------------------------------------------

    async def _bring_up(self, epoch: int) -> None:
        try:
            await self._second.bring_up()
        except NoRoomAfterAll:
            self.loaded = self._second.target
            self._post(Message(Event.RELOAD, epoch))
        except LlamadError as error:
            self._post(Message(Event.UNRELIEVED, epoch, error=error))
        else:
            self._post(Message(Event.RELIEVED, epoch))

    def _adopt_relief(self) -> None:
        assert self._child and self.launch
        relief = self._second.adopt(self._child, self.launch)
        assert relief.child and relief.intake
        self._child, self._intake, self._batch_s = relief.child, relief.intake, relief.batch_s
        self._killed_because, self._condemned, self.launch = "", None, relief.launch
        self.adopt(relief.launch.loaded)
        self._growth.note(Event.RELOAD)  # for another definition another context
        self._growth.planned(relief.launch.plan.context_tokens)
        self._jobs.detach(self._watch_exit(relief.child, relief.intake, relief.kills_before))
        self._seams.planner.adopted(relief.child.pid)
        self._serve(relief.launch, relief.intake)

    def _dismiss(self, message: Message) -> None:
        """Whatever comes next is for the new definition, unless it was that which failed."""
        relief = self._second.dismiss()
        if message.event is Event.UNRELIEVED and message.error:
            self._reload.take_back()
            self._reload.settle(message.error)
        elif message.event is not Event.RELOAD:
            self.loaded = relief.launch.loaded
            self._growth.note(Event.RELOAD)

    # -- the end of a child -------------------------------------------------------------------------------

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
        self._seams.reporter.state(self.public_state, self.status_text())
