"""The definition of one of the router's models: the one in force, and the next on its way. The last one wins.

What of it concerns a llama-server that runs is for the model's life; while there is none, another definition is taken
as it is.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from llamad.config.loaded import Loaded
from llamad.errors import LlamadError
from llamad.front.keys import KeySet
from llamad.service.definitions import Read
from llamad.service.in_force import Address, InForce, Teller
from llamad.service.life import Living
from llamad.service.reloads import CONFIG_READ_S, raise_bug
from llamad.threads import in_time


class Owner(Protocol):
    """The resident."""

    @property
    def life(self) -> Living | None:
        """The one that it leads now."""
        ...

    def taken(self) -> None:
        """Another definition is in force; or the same one, and somebody asked for a new attempt."""
        ...

    def troubled(self, text: str) -> None:
        """What keeps the definition on disk from being in force; "" for nothing any more."""
        ...


class Renewal:
    """See the module. Everything is called on the loop."""

    def __init__(self, read: Read, address: Address, teller: Teller, owner: Owner) -> None:
        self.read = read
        """The definition in force."""
        self.trouble = ""
        """What keeps another one from it."""
        self._address = address
        self._teller = teller
        self._owner = owner
        self._force = InForce(self, address, teller, read.keys)
        self._next: tuple[Read, bool] | None = None
        self._under_way = read
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    def ask(self, read: Read, *, asked: bool) -> None:
        """Have another definition in force. `asked`: somebody waits for it, and may have mended what had failed."""
        self._next = read, asked or (self._next is not None and self._next[1])
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
            self._task.add_done_callback(raise_bug)

    async def rest(self) -> None:
        """Return when nothing is on its way."""
        while self._task is not None and not self._task.done():
            await asyncio.wait({self._task})

    def close(self) -> None:
        """What is on its way comes too late."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()

    async def _work(self) -> None:
        while self._next is not None:
            (read, asked), self._next = self._next, None
            self._under_way = read
            if read.loaded is not None:
                await self._take(read.loaded, read.keys, asked)
            elif self.read.loaded is not None:
                self._force.refused(str(read.problem))
            else:
                self._use()
                why = str(read.problem)
                self._teller.event("config-refused", f"The definition cannot be used: {why}", CAUSE=why)

    async def _take(self, loaded: Loaded, keys: KeySet, asked: bool) -> None:
        life = self._owner.life
        if self.read.loaded is None:
            self._force.keys = keys
            self._address.apply(loaded, keys)
            self._use()
            return
        read = self._under_way
        try:
            replaced = life is not None and await in_time(
                life.check(loaded), CONFIG_READ_S, lambda: self._ask_again(read, asked)
            )
        except LlamadError as error:
            self._force.refused(str(error))
        except TimeoutError:
            self._force.refused(f"reading what it names takes longer than {CONFIG_READ_S:g} s")
        else:
            await self._force.change(loaded, keys, asked=asked, replaced=asked and replaced)

    def _ask_again(self, read: Read, asked: bool) -> None:
        if read is self._under_way and self._next is None and not self._closed:
            self.ask(read, asked=asked)

    def _use(self) -> None:
        self.read = self._under_way
        self._owner.taken()

    # -- as the supervisor does it for `InForce` ----------------------------------------------------------

    @property
    def loaded(self) -> Loaded:
        """The definition in force, where there is one."""
        assert self.read.loaded is not None
        return self.read.loaded

    def remark(self, topic: str, text: str) -> None:  # noqa: ARG002
        """What there is to say of the definition."""
        if text != self.trouble:
            self.trouble = text
            self._owner.troubled(text)

    def adopt(self, loaded: Loaded) -> None:
        """Use a definition that asks for no other llama-server."""
        life = self._owner.life
        if life is not None:
            life.adopt(loaded)
        self._use()

    async def reload(self, loaded: Loaded, changed: str, *, replaced: bool) -> None:
        """Put a definition into force. Raises LlamadError where a life that serves goes on with the old one."""
        life = self._owner.life
        while life is not None and life.serves:
            if await life.reload(loaded, changed, replaced=replaced):
                self._use()
                return
            life = self._owner.life  # that one has ended, and there may be another
        if life is not None:
            life.renew(loaded)
        self._use()
