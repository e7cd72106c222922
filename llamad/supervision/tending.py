"""What a supervisor knows of its child, what it watches it for (its load, its warm-up, that it goes on), and its end.

What is seen is posted as an event; what follows of it the table says, and `supervisor` carries out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llamad.clock import Clock
from llamad.config.loaded import Loaded
from llamad.errors import LlamadError
from llamad.supervision.child import STOP_KILL_S, Child
from llamad.supervision.growth import Growth, Offer
from llamad.supervision.hang import Hung, watch_hang
from llamad.supervision.intake import Intake
from llamad.supervision.jobs import Jobs
from llamad.supervision.launch import Launch, Seams
from llamad.supervision.loading import NotUsable, take_over_prompts, warm_up, watch_load
from llamad.supervision.lookout import tell_growth, watch_memory
from llamad.supervision.machine import Event, State, may
from llamad.supervision.message import Message
from llamad.supervision.prepared import prepare
from llamad.supervision.relief import end_child
from llamad.supervision.reload import drain


class Tending:
    """The child, its launch and its log, and the events that it makes. For `Supervisor` alone."""

    def __init__(self, loaded: Loaded, seams: Seams, clock: Clock, jitter: Callable[[], float]) -> None:
        self.state = State.STOPPED
        self.loaded = loaded
        self.launch: Launch | None = None
        self._seams = seams
        self._clock = clock
        self._jitter = jitter
        self._growth = Growth()
        self._queue: asyncio.Queue[Message] = asyncio.Queue()
        self._epoch = 0
        self._jobs = Jobs()
        self._child: Child | None = None
        self._intake: Intake | None = None
        self._killed_because = ""
        self._condemned: LlamadError | None = None
        self._warming = False
        self._batch_s = 0.0
        self._waiting_text = ""

    def _post(self, message: Message) -> None:
        self._queue.put_nowait(message)

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
            await take_over_prompts(self.launch, self._seams)
        except NotUsable as unusable:
            self._condemn(epoch, unusable.because, unusable.error)
        else:
            self._post(Message(Event.WARMED, epoch))

    def _condemn(self, epoch: int, because: str, error: LlamadError) -> None:
        if epoch == self._epoch and self._child:
            self._killed_because, self._condemned = because, error
            self._post(Message(Event.CONDEMN, epoch))

    def _watch_while_ready(self) -> None:
        self._jobs.start(prepare(self._clock))
        if self._child and self._intake and self.launch:
            self._jobs.start(self._watch_hang(self._epoch, self._child, self._intake, self.launch))
            self._jobs.start(self._watch_memory(self._epoch, self.launch))
        self._jobs.start(self._become_stable(self._epoch))

    async def _watch_memory(self, epoch: int, launch: Launch) -> None:
        if offer := await watch_memory(launch, self._seams, self._clock, self._growth, self._jitter):
            self._post(Message(Event.GROW, epoch, offer=offer))

    def _takes(self, offer: Offer) -> bool:
        """Take a larger plan, unless a request has come since it was offered: then the watch goes on."""
        if not may(Event.GROW, self.state):
            return False
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
            await watch_hang(child, intake, launch, self._seams, self._clock, batch_s, self._hang_s)
        except Hung as hung:
            self._condemn(epoch, hung.because, hung.error)

    def _hang_s(self) -> float:
        return self.loaded.definition.limits.hang_s

    async def _become_stable(self, epoch: int) -> None:
        await self._clock.sleep(self.loaded.definition.limits.stable_s)
        self._post(Message(Event.STABLE, epoch))

    async def _drain(self, epoch: int) -> None:
        await drain(self._seams, self.loaded.definition.limits, farewell=self.state is State.DRAINING)
        self._post(Message(Event.DRAINED, epoch))

    def _stop_child(self) -> None:
        """The ladder survives a change of the goal on its way, so it is no job of the state."""
        if self._child:  # else its end is in the queue already
            self._killed_because = "stop"
            self._jobs.detach(self._climb_down(self._child))

    async def _climb_down(self, child: Child) -> None:
        keep = self.state is State.REPLACING  # a successor comes
        limits = self.loaded.definition.limits
        if not await end_child(child, self.launch, self._seams, limits.stop_s, keep_prompts=keep):
            self._post(Message(Event.UNKILLABLE))

    def _kill_child(self) -> None:
        """At once, and watched whatever is ordered meanwhile: like the ladder, no job of the state."""
        if self._child:
            self._child.kill_group()
            self._jobs.detach(self._see_it_end(self._child))

    async def _see_it_end(self, child: Child) -> None:
        await self._clock.sleep(STOP_KILL_S)
        if child is self._child:
            self._post(Message(Event.UNKILLABLE))
