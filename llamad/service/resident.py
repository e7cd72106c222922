"""One model of the router: loaded here on demand, or served by its own unit and only forwarded to.

A life is one time that the model is loaded: from taking its name in the ledger to giving it back, with a supervisor of
its own. Between lives the resident itself works the lane's gate.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from llamad.config.loaded import Loaded
from llamad.errors import BusyError, ExitCode, LlamadError
from llamad.front.holding import Refusal
from llamad.front.settings import FrontSettings, ModelDescription
from llamad.ledger.handover import ROUTER_NOTE
from llamad.ledger.ledger import Ledger
from llamad.service.definitions import Read
from llamad.service.forwarding import Forwarding
from llamad.service.front import request_log, settings_of
from llamad.service.house import House, Outside, Timers, Way, release
from llamad.service.in_force import TOPIC
from llamad.service.lane_front import LaneFront
from llamad.service.life import LifeSeams, Living
from llamad.service.overview import is_number
from llamad.service.reloads import raise_bug
from llamad.service.renewal import Renewal
from llamad.service.reporter import DaemonReporter
from llamad.service.router_answers import lane_figures
from llamad.service.sockets import ROUTER_SOCKET
from llamad.service.status import StatusFile, read_status
from llamad.supervision import residency
from llamad.supervision.machine import State
from llamad.threads import in_thread
from llamad.units import parse_duration

RETRY_S = 5.0
RETRY_MOST_S = 60.0
RESTART_S = 2.0
"""A unit that is not enabled and went away may be restarting: so long nobody else loads its model."""
STOPPING = Refusal(503, "stopping", "llamad is stopping", RETRY_S)
_RETRIED = frozenset({ExitCode.NO_MODEL_FILE, ExitCode.NO_DEVICE, ExitCode.TEMPORARY})


class Resident:
    """See the module. Everything is called on the loop."""

    def __init__(self, house: House, read: Read) -> None:
        self.name = read.name
        self.way = Way.STARTING
        self.ready_at_s: float | None = None
        self.load_s = 0.0
        self._house = house
        self._paths = house.paths.of_model(read.name)
        self._status = StatusFile(self._paths.runtime, read.name)
        self._reporter = DaemonReporter(read.name, house.journal, house.notifier, self._status)
        self._reporter.on_state = self._state_changed
        self._created_s = int(time.time())
        self._loading_since_s = 0.0
        self._life: Living | None = None
        self._task: asyncio.Task[None] | None = None
        self._outside = Outside()
        self._failures = 0
        self._awaited_until_s: float | None = None
        self._why_unloaded = ""
        self._timers = Timers()
        self._closing = False
        self._way_text = ""
        self.front = LaneFront(house.front, _settings(read), read.keys, self.describe)
        self._renewal = Renewal(read, self.front, self._reporter, self)
        socket_path = str(house.paths.unit_runtime(self.name) / ROUTER_SOCKET)
        self._forwarding = Forwarding(self.front, socket_path, house.clock, lambda: self.way is Way.FORWARDED)
        self.front.log = request_log(self._reporter, read.loaded)
        self.figures = lane_figures(
            read.name, self.front, self._reporter.counts, lambda: self.state, lambda: self._life
        )
        self.front.on_waiting = self._request_waits
        self.front.on_finished = self._request_finished
        self.front.on_forward_lost = self._forward_lost
        self.front.child_lives = lambda: self._life is not None and self._life.child_pid != 0
        self.front.publish(self._paths.runtime)
        self.front.hold("the router is starting")

    # -- for the router -----------------------------------------------------------------------------------

    @property
    def read(self) -> Read:
        """The definition in force, or why there is none."""
        return self._renewal.read

    @property
    def loaded(self) -> Loaded | None:
        """The definition in force."""
        return self.read.loaded

    @property
    def trouble(self) -> str:
        """What keeps the definition that is on disk from being in force."""
        return self._renewal.trouble

    @property
    def is_always(self) -> bool:
        """Whether it is loaded at once and stays."""
        return self.loaded is not None and self.loaded.definition.start == "always"

    @property
    def state(self) -> str:
        """One word for people."""
        return self._life.state if self._life is not None else str(self.way)

    @property
    def is_pending(self) -> bool:
        """Whether the router's own readiness waits for it: it is to be loaded at once, and that is not decided yet."""
        return self.is_always and self.state not in ("ready", Way.FORWARDED, Way.FAILED, Way.BROKEN, Way.UNIT_STOPPED)

    def regard(self, outside: Outside) -> None:
        """Decide who answers, by what is known of the unit now."""
        before, self._outside = self._outside, outside
        if self._closing:
            return
        if self._task is not None:
            if outside.wanted:
                self.unload(outside.why_wanted(self.name))
            return
        if outside.owned:
            self._forward()
        elif outside.wanted:
            self._await("llamad@{0} is about to serve {0}", None)
        elif before.owned or self.way is Way.FORWARDED:
            grace_s = self._house.unit_grace_s if outside.enabled else RESTART_S
            self._await("llamad@{0} has stopped", grace_s)
        elif outside.enabled:
            self._regard_stopped_unit()
        else:
            if before.enabled and self._is_awaited():  # nobody but a restart brings it back now
                self._await("llamad@{0} has stopped, and is disabled", RESTART_S)
            self._regard_own()

    def change(self, read: Read, *, asked: bool = False) -> None:
        """Another definition, or the same again. One that cannot be used changes nothing where there is one in force.
        `asked`: what failed is tried again, and a replaced file is loaded.
        """
        if not self._closing:
            self._renewal.ask(read, asked=asked)

    async def rest(self) -> None:
        """Return when the definition that was given last is in force, or refused."""
        await self._renewal.rest()

    def unload(self, why: str) -> None:
        """End the present life: requests in flight are finished first, at most for `drain_s`."""
        if self._life is not None and not self._life.is_leaving:
            self._why_unloaded = why
            self._reporter.event("unloading", f"Unloading: {why}", CAUSE=why)
            self._life.stop()
            self._house.changed()

    def leave(self, refusal: Refusal = STOPPING, why: str = "llamad.service is stopping") -> None:
        """No more requests, and no model: they are refused from now on."""
        self._closing = True
        self._renewal.close()
        self.front.refuse_with(refusal)
        self.unload(why)

    def stop_waiting(self) -> None:
        """The router is stopping: nothing is loaded any more; what is loaded goes on serving what was accepted."""
        self._closing = True
        if self._life is None and self.way is not Way.FORWARDED:
            self.front.refuse_with(STOPPING)

    async def gone(self) -> None:
        """Return when nothing of it is left."""
        self._timers.close()
        self._renewal.close()
        self._forwarding.close()
        if self._task is not None:
            await asyncio.wait([self._task])
        self._status.remove()
        self.front.gauges.close()

    def residency(self, holds: dict[str, int]) -> residency.Resident | None:
        """What it would give back, for the choice of who makes room; None where it has nothing."""
        if self._life is None or not holds:
            return None
        now_s = self._house.clock.monotonic()
        ready_s = now_s - self.ready_at_s if self.ready_at_s is not None else 0.0
        wanted = self.front.is_wanted
        return residency.Resident(
            self.name,
            holds,
            idle_s=0.0 if wanted else max(0.001, min(self.front.lane.idle_s(), ready_s)),
            load_s=self.load_s,
            resident_s=ready_s,
            pinned=self.is_always or self.ready_at_s is None,
            fresh=wanted and not self.front.has_answered,
            leaving=self._life.is_leaving,
        )

    def describe(self) -> ModelDescription:
        """For `/v1/models`."""
        launch, held = self.front.launch if self.ready_at_s is not None else None, False
        context = launch.plan.context_tokens if launch else None
        if self.way is Way.FORWARDED:
            status = read_status(self.name, self._house.paths.unit_runtime(self.name).parent) or {}
            context = known if is_number(known := status.get("context_tokens")) else None
            held = status.get("state") != State.READY.public
        size_bytes, trained_tokens = self.read.size_bytes, self.read.trained_context_tokens
        return ModelDescription(
            self.state, context, trained_tokens, size_bytes, self._created_s, is_held_elsewhere=held
        )

    # -- between lives ------------------------------------------------------------------------------------

    def _forward(self) -> None:
        if self.way is not Way.FORWARDED:
            self._become(Way.FORWARDED, f"llamad@{self.name} serves it")
            self._forwarding.begin(f"llamad@{self.name} does not answer yet")

    def _forward_lost(self) -> None:
        if self.way is Way.FORWARDED:
            self._forwarding.begin(f"llamad@{self.name} does not answer")
            self._house.changed()

    def _await(self, why: str, grace_s: float | None) -> None:
        """Let requests wait for the unit, for a while or until something changes."""
        self._become(Way.AWAITED, why.format(self.name))
        self.front.hold(why.format(self.name))
        now_s = self._house.clock.monotonic()
        self._awaited_until_s = None if grace_s is None else now_s + grace_s
        if grace_s is not None:
            self._timers.set("grace", grace_s, self._house.changed)

    def _is_awaited(self) -> bool:
        until_s = self._awaited_until_s
        return self.way is Way.AWAITED and until_s is not None and self._house.clock.monotonic() < until_s

    def _regard_stopped_unit(self) -> None:
        if self.way is Way.UNIT_STOPPED or self._is_awaited():
            return
        if self.way is not Way.AWAITED:  # it was enabled a moment ago, or has just been found
            self._await("llamad@{0} is enabled and not running", self._house.unit_grace_s)
            return
        if self._awaited_until_s is None:
            self._await("llamad@{0} did not take it over", self._house.unit_grace_s)
            return
        text = f"llamad@{self.name} is enabled and not running; start it with `systemctl start llamad@{self.name}`"
        self._refuse(Way.UNIT_STOPPED, "unit_stopped", text)

    def _regard_own(self) -> None:
        """No unit has to do with it: it is the router's to load."""
        if self._is_awaited() or self.way is Way.FAILED:
            return
        if self.read.problem is not None:
            text = f"the definition of {self.name} cannot be used: {self.read.problem}"
            self._refuse(Way.BROKEN, "broken_definition", text)
        elif self.loaded is not None and self.loaded.definition.start == "manual":
            text = f'{self.name} has start = "manual"; start it with `systemctl start llamad@{self.name}`'
            self._refuse(Way.MANUAL, "manual_start", text)
        else:
            if self.way is not Way.UNLOADED:
                self._become(Way.UNLOADED, self._why_unloaded or "loaded with the first request for it")
            self.front.hold("the model is not loaded")
            if self.is_always or self.front.lane.gate.waiting:
                self._load()

    def _refuse(self, way: Way, code: str, text: str) -> None:
        if self.way is not way:
            self._become(way, text)
            self.front.refuse_with(Refusal(503, code, text))

    def _become(self, way: Way, text: str) -> None:
        self.way, self._way_text = way, text
        self._write_status()
        self._house.changed()

    def _write_status(self) -> None:
        if self.way is not Way.LOADED:
            text = "; ".join(filter(None, (self._way_text, self.trouble)))
            self._status.not_served(state=str(self.way), text=text)

    # -- for the renewal ----------------------------------------------------------------------------------

    @property
    def life(self) -> Living | None:
        """The one that is led now."""
        return self._life

    def taken(self) -> None:
        """Another definition is in force, or the same one for another attempt."""
        self._failures = 0
        if self.way in (Way.FAILED, Way.BROKEN, Way.MANUAL):
            self._become(Way.UNLOADED, "loaded with the first request for it")
        if self.ready_at_s is not None:
            self._look_at_idleness()
        self.regard(self._outside)
        self._house.changed()

    def troubled(self, text: str) -> None:
        """There is, or is no more, something that keeps the definition on disk from being in force."""
        if self._life is not None:
            self._life.remark(TOPIC, text)
        else:
            self._write_status()
        self._house.changed()

    # -- requests -----------------------------------------------------------------------------------------

    def _request_waits(self) -> None:
        if self.way is Way.UNLOADED and self._task is None and not self._closing:
            self._load()

    def _request_finished(self) -> None:
        queues = self._life is not None and self._life.state == "waiting" and not self.is_always
        if queues and not self.front.is_wanted:
            self.unload("nobody waits for it any more")
        elif "idle" not in self._timers:
            self._look_at_idleness()
        if not self.front.is_wanted:
            self._house.changed()

    def _look_at_idleness(self) -> None:
        self._timers.drop("idle")
        if self.loaded is None or self.is_always or self.ready_at_s is None or self.front.is_wanted:
            return
        keep_alive_s = parse_duration(self.loaded.definition.idle.keep_alive)
        idle_s = min(self.front.lane.idle_s(), self._house.clock.monotonic() - self.ready_at_s)
        if idle_s >= keep_alive_s:
            self.unload(f"idle for {keep_alive_s:g} s ([idle] keep_alive)")
        else:
            self._timers.set("idle", keep_alive_s - idle_s + 0.01, self._look_at_idleness)

    # -- a life -------------------------------------------------------------------------------------------

    def _load(self) -> None:
        assert self._task is None
        self._why_unloaded = ""
        self._task = asyncio.create_task(self._live())
        self._task.add_done_callback(raise_bug)

    async def _live(self) -> None:
        house = self._house
        ledger = Ledger(self._paths.ledger, self.name, house.paths.run / "public" / "ledger.json")
        failure: LlamadError | None = None
        code, text = ExitCode.OK, ""
        try:
            self._paths.make(under_systemd=False)
            await in_thread(ledger.take, ROUTER_NOTE)
            self.way = Way.LOADED
            seams = LifeSeams(
                house.config_root, self._paths, self._reporter, house.nvml, self.front,
                house.paths.unit_state(self.name), house.always, house.definitions,
            )  # fmt: skip
            assert self.loaded is not None
            self._life = house.live(self.loaded, ledger, seams, house.clock, house.sandboxed)
            self._life.remark(TOPIC, self.trouble)
            if self._closing:  # told while the name was being taken
                self._life.stop()
            code = await self._life.run()
            text = self._life.last_words
        except LlamadError as error:
            failure, code, text = error, error.exit_code, str(error)
        finally:
            await release(ledger)
            self._life, self._task, self.ready_at_s = None, None, None
            self.front.launch = None
        self._has_ended(code, text, failure)

    def _has_ended(self, code: ExitCode, text: str, failure: LlamadError | None) -> None:
        """What comes after a life; `failure` where it never came to one."""
        if self._closing:
            return
        if code is ExitCode.OK:
            self._failures = 0
            self._become(Way.UNLOADED, self._why_unloaded)
        elif isinstance(failure, BusyError) and self.way is not Way.LOADED:
            self._await("{0} is served by another process", RESTART_S)  # the router's next look tells by whom
        else:
            if failure is not None:
                fix = failure.fix or "-"
                self._reporter.event("not-loaded", f"Cannot load {self.name}: {text}", CAUSE=text, FIX=fix)
            self._has_failed(code, text)
        self._house.changed()
        self.regard(replace(self._outside, owned=False))

    def _has_failed(self, code: ExitCode, text: str) -> None:
        self._failures += 1
        self._become(Way.FAILED, f"failed: {text}")
        retry_s = min(RETRY_MOST_S, RETRY_S * 2.0 ** (self._failures - 1)) if code in _RETRIED else None
        self.front.refuse_with(Refusal(503, "model_failed", text, retry_s))
        if retry_s is not None:
            self._timers.set("retry", retry_s, self._may_be_tried)

    def _may_be_tried(self) -> None:
        if self.way is Way.FAILED and self._task is None:
            self.way = Way.AWAITED
            self._awaited_until_s = 0.0
            self.regard(self._outside)

    def _state_changed(self, state: str) -> None:
        now_s = self._house.clock.monotonic()
        if state == "loading":
            self._loading_since_s = now_s
        if state == "ready":
            if self.ready_at_s is None:
                self.ready_at_s = now_s
                self.load_s = now_s - self._loading_since_s
            self._failures = 0
            self._look_at_idleness()
        elif state not in ("draining", "stopping", "swapping"):
            self.ready_at_s = None
        if self._life is not None:
            self._life.state_changed()
        self._house.changed()


def _settings(read: Read) -> FrontSettings:
    return settings_of(read.loaded) if read.loaded is not None else FrontSettings(read.name)
