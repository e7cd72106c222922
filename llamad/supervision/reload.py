"""A new definition on its way into force: which one it replaces, and who waits for what comes of it."""

from __future__ import annotations

import asyncio

from llamad.config.definition import Limits
from llamad.config.loaded import Loaded
from llamad.errors import ChildError, LlamadError
from llamad.supervision.launch import Reporter, Seams


class Reverted(ChildError):
    """The new definition could not be started, and the old one is in force again. It was told."""


class Reload:
    """None is under way at first. Several in a row have one outcome, and one definition that served before them."""

    def __init__(self) -> None:
        self.fallback: Loaded | None = None
        """What is put into force again if the new definition cannot be started."""
        self.changed = ""
        """What is new in the last one."""
        self._outcome: asyncio.Future[None] | None = None

    def begin(self, serving: Loaded | None, changed: str = "") -> asyncio.Future[None]:
        """Its outcome. `serving`: the definition that serves now; None where none does. `changed`: in words."""
        self.changed = changed
        self.fallback = serving or self.fallback
        if self._outcome is None or self._outcome.done():
            self._outcome = asyncio.get_running_loop().create_future()
        return self._outcome

    def take_back(self) -> Loaded | None:
        """The definition to return to, which is none to return to any more."""
        fallback, self.fallback = self.fallback, None
        return fallback

    def revert(self, why: str, reporter: Reporter) -> Loaded | None:
        """The new one could not be started: tell so, and give the one to return to."""
        reporter.event(
            "reload-reverted", f"The new definition could not be started: {why}. The old one is in force again",
            CAUSE=why,
        )  # fmt: skip
        before = self.take_back()
        self.settle(Reverted("the new definition could not be started", why=why))
        return before

    def settle(self, error: LlamadError | None) -> None:
        """Tell who waits; nobody need wait."""
        if self._outcome is None or self._outcome.done():
            return
        if error:
            self._outcome.set_exception(error)
            self._outcome.exception()  # looked at here: the waiter may be gone
        else:
            self._outcome.set_result(None)


async def drain(seams: Seams, limits: Limits, *, farewell: bool) -> None:
    """Return when no request is in flight, `limits.drain_s` at the latest; what is left is cut. With `farewell`,
    clients are let go for good.
    """
    seams.reporter.extend(limits.drain_s + 2 * limits.stop_s + 30.0)
    if farewell:
        await seams.front.farewell(limits.drain_s)
    elif await seams.front.drain(limits.drain_s):
        seams.front.cut("reload", f"the request ran longer than drain_s ({limits.drain_s:g} s)")
