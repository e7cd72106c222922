"""A second child: brought up while the first one serves, so that a new definition costs no request any time.

It is loaded, proved and warmed as a first child is. Until it is adopted nobody depends on it: whatever goes wrong with
it ends it, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from llamad.clock import Clock
from llamad.config.loaded import Loaded
from llamad.errors import BusyError, ChildError, DeviceError, LlamadError
from llamad.supervision import words
from llamad.supervision.causes import Policy
from llamad.supervision.child import Child, Spawner, stop_ladder
from llamad.supervision.ending import of_a_device
from llamad.supervision.host import oom_kills
from llamad.supervision.intake import Intake
from llamad.supervision.launch import Launch, Seams
from llamad.supervision.loading import NotUsable, take_over_prompts, warm_up, watch_load

SETTLE_S = 2.0

Follow = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class NoRoomAfterAll(ChildError):
    """The second child lacked memory, or a device that only one process may use: it must be alone."""


class Relief:
    """One second child, for one launch."""

    def __init__(self, launch: Launch, former: Launch) -> None:
        """`former` serves meanwhile."""
        self.launch = launch
        self._former = former
        self.child: Child | None = None
        self.intake: Intake | None = None
        self.batch_s = 0.0
        self.kills_before = 0

    async def bring_up(self, seams: Seams, spawner: Spawner, clock: Clock) -> None:
        """Return when it is warm. Raises LlamadError where it cannot be, NoRoomAfterAll where it could be alone; it may
        live on for `end` then.
        """
        launch = self.launch
        intake = Intake(seams.reporter, launch.definition.limits.child_log_lines_per_s)
        self.intake, self.kills_before = intake, oom_kills()
        self.child = child = await spawner.spawn(launch.argv, launch.env, intake.feed)
        intake.pid = child.pid
        seams.planner.spawned_beside(child.pid, intake.observer.observed)
        seams.reporter.event(
            "loading",
            f"Loading {launch.definition.model} on {words.place_text(launch.plan)}, beside the one that serves",
            DEVICE=words.device_names(launch.plan),
        )  # fmt: skip
        await self._or_its_end(child, self._load(child, intake, seams, clock))

    async def _load(self, child: Child, intake: Intake, seams: Seams, clock: Clock) -> None:
        try:
            await watch_load(child, intake, self.launch, seams, clock)
            self.batch_s = await warm_up(intake, self.launch, seams)
            await seams.engine.save_prompts(self._former)
            await take_over_prompts(self.launch, seams)
        except NotUsable as unusable:
            error = unusable.error
            if isinstance(error, BusyError | DeviceError):
                raise NoRoomAfterAll(error.what, why=error.why) from unusable
            raise error from unusable

    async def _or_its_end(self, child: Child, work: Coroutine[None, None, None]) -> None:
        loading, ending = asyncio.ensure_future(work), asyncio.ensure_future(child.wait())
        try:
            await asyncio.wait({loading, ending}, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                raise self._death(ending.result())
            await loading
        finally:
            loading.cancel()
            ending.cancel()
            await asyncio.wait({loading, ending})

    def _death(self, returncode: int) -> LlamadError:
        assert self.intake is not None
        from llamad.supervision.inquest import inquest

        cause, _ = inquest(
            returncode, self.intake, self.launch.plan, "", None, warming=False, kills=oom_kills() - self.kills_before
        )  # fmt: skip
        kind = NoRoomAfterAll if cause.policy is Policy.STEP_DOWN or of_a_device(cause) else ChildError
        return kind(
            f"its llama-server ended ({words.exit_words(returncode)})", why=cause.text, fix=cause.fix
        )

    async def end(self) -> None:
        """Kill it; return when it is gone."""
        if self.child is not None:
            self.child.kill_group()
            await self.child.wait()


class Second:
    """The other child of a reload: the one that is brought up, or the one that was replaced. Never both: who wants
    another waits for the end of the last.
    """

    def __init__(self, seams: Seams, spawner: Spawner, clock: Clock, follow: Follow) -> None:
        """`follow` has something done that outlives the state."""
        self._seams = seams
        self._spawner = spawner
        self._clock = clock
        self._follow = follow
        self.relief: Relief | None = None
        self.former: Child | None = None
        """The child that another one has replaced, until it is gone."""
        self._end: asyncio.Task[None] | None = None

    @property
    def target(self) -> Loaded:
        """The definition of the one that is brought up."""
        assert self.relief is not None
        return self.relief.launch.loaded

    async def bring_up(self) -> None:
        """Bring `relief` up. Raises LlamadError."""
        assert self.relief is not None
        await self.relief.bring_up(self._seams, self._spawner, self._clock)

    def adopt(self, former: Child, launch: Launch) -> Relief:
        """The one that was brought up, which replaces `former` now; that one finishes its requests and is stopped."""
        relief, self.relief, self.former = self.relief, None, former
        assert relief is not None
        limits = relief.launch.definition.limits
        self._end = self._follow(self._retire(former, launch, limits.stop_s, limits.drain_s))
        return relief

    async def _retire(self, child: Child, launch: Launch, stop_s: float, drain_s: float) -> None:
        front = self._seams.front
        if await front.drain(drain_s, former=True):
            front.cut("reload", f"the request ran longer than drain_s ({drain_s:g} s)", former=True)
        await end_child(child, launch, self._seams, stop_s, former=True)

    def has_gone(self, child: Child, pid: int) -> bool:
        """Whether a child that has ended is the former one. `pid`: of the child now, 0 for none."""
        if child is not self.former:
            return False
        self.former = None
        self._seams.planner.retired(pid)
        return True

    def dismiss(self) -> Relief:
        """End the one that was brought up; what it was."""
        relief, self.relief = self.relief, None
        assert relief is not None
        self._end = self._follow(self._dismiss(relief))
        return relief

    async def _dismiss(self, relief: Relief) -> None:
        await relief.end()
        self._seams.planner.dismissed()

    async def is_gone(self) -> None:
        """Return when there is no other child."""
        if self._end is not None:
            await asyncio.wait({self._end})

    def kill(self) -> None:
        """SIGKILL, at once and to all."""
        for child in (self.former, self.relief.child if self.relief else None):
            if child is not None:
                child.kill_group()


async def end_child(
    child: Child,
    launch: Launch | None,
    seams: Seams,
    stop_s: float,
    *,
    former: bool = False,
    keep_prompts: bool = False,
) -> bool:
    """Stop a child the way that hangs least; whether it is gone. `keep_prompts`: for its successor."""
    await seams.front.close_upstreams(former=former)
    if launch:
        await seams.engine.settle(launch.socket_path, SETTLE_S)
    if launch and keep_prompts:
        await seams.engine.save_prompts(launch)
    return await stop_ladder(child, stop_s)
