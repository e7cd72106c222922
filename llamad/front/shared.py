"""What all connections of one address share: settings, keys, the lane, memory for replay, and who is told."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from llamad.clock import Clock
from llamad.front.access import HostCheck
from llamad.front.hangup import HangupWatch
from llamad.front.head import RequestHead
from llamad.front.kept import ReplayMemory
from llamad.front.keys import KeySet
from llamad.front.lane import Lane
from llamad.front.pulse import Pulse
from llamad.front.settings import FrontObserver, FrontSettings, ModelDescription

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamad.front.client import ClientConnection
    from llamad.front.errand import LocalService
    from llamad.front.switch import Switch

_SANE_ID = re.compile(rb"[0-9A-Za-z._-]{1,128}")
_CLOSING_IDLE_S = 5.0
_LET_IN = 128
_REMEMBERED_BYTES = 1024
"""Of a head, keys included: what a longer one asked for is not remembered."""


class Shared:
    """See the module. Everything here is used on the loop only."""

    def __init__(
        self,
        settings: FrontSettings,
        keys: KeySet,
        observer: FrontObserver,
        clock: Clock,
        describe: Callable[[], ModelDescription],
        local: LocalService | None = None,
    ) -> None:
        self.local = local
        self.errands: set[asyncio.Task[None]] = set()
        self.settings = settings
        self.keys = keys
        self.hosts = HostCheck(settings.allowed_hosts)
        self.observer = observer
        self.clock = clock
        self.describe = describe
        self.memory = ReplayMemory(settings.replay_bytes)
        self.pulse = Pulse(clock)
        self.lane = Lane(settings, observer, clock, self.pulse)
        self.switch: Switch | None = None
        """Where there are several models: chooses the lane of each request, instead of `lane`."""
        self.hangups = HangupWatch()
        self.clients: set[ClientConnection] = set()
        self.work = asyncio.Event()  # set while there is anything to sweep
        self.closing = False
        self.let_in: set[tuple[object, ...]] = set()
        """What was asked by whom, so far as it matters, and may be asked again. A key is compared for the first time
        in constant time, and from then on found by its hash, of which nobody outside knows the seed."""
        self._id_prefix = secrets.token_hex(4).encode()
        self._last_id = 0

    @property
    def lanes(self) -> Sequence[Lane]:
        """The ways to all models behind this address."""
        return self.switch.lanes if self.switch is not None else (self.lane,)

    def lets_in(self, head: RequestHead, path: bytes | None) -> bool:
        """Whether a request has a key, as far as one is asked for; `path` is its local path."""
        if self.switch is not None and path is None:
            return self.switch.may_let_in(head)
        return not self.keys or self.keys.allows(head.credentials)

    def apply(self, settings: FrontSettings, keys: KeySet) -> None:
        """Use other settings from the next request on."""
        self.settings = settings
        self.keys = keys
        self.hosts = HostCheck(settings.allowed_hosts)
        self.memory.limit_bytes = settings.replay_bytes
        self.lane.apply(settings)
        self.let_in.clear()

    def remember(self, asked: tuple[object, ...], head: RequestHead) -> None:
        """This, which `head` asked, may be asked again, until settings or keys change."""
        if len(head.forwarded) + sum(len(one.value) for one in head.credentials) > _REMEMBERED_BYTES:
            return
        if len(self.let_in) >= _LET_IN:
            self.let_in.clear()
        self.let_in.add(asked)

    @property
    def arrival_idle_s(self) -> float:
        """How long a request may stop in the middle of its arrival. Less at the end: a client that hangs in an
        upload must not make all the others wait for the next llamad.
        """
        idle_s = self.settings.body_idle_s
        return min(idle_s, _CLOSING_IDLE_S) if self.closing else idle_s

    def request_id(self, head: RequestHead) -> bytes:
        """The client's X-Request-Id where it is sane, else a new one."""
        given = head.request_id
        if given is not None and _SANE_ID.fullmatch(given):
            return given
        return self.new_id()

    def new_id(self) -> bytes:
        """An id that no other request of this process has."""
        self._last_id += 1
        return b"%b-%x" % (self._id_prefix, self._last_id)
