"""Tells journald, systemd and `llamad status` what the supervisor does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from llamad.planning.plan import Plan
from llamad.service.events import CAUSE_IDS, EVENTS
from llamad.service.journal import Journal
from llamad.service.notify import Notifier, monotonic_usec
from llamad.service.status import StatusFile
from llamad.supervision.launch import Launch
from llamad.supervision.words import device_names, place_text, ready_text

_CHILD_PRIORITY = {"error": "err", "warning": "warning", "info": "info", "debug": "debug", "raw": "info"}


class EventCounts:
    """How often what happened, since llamad started. Each cause is there from the start, with 0: of a series that
    begins with 1 Prometheus sees no increase.
    """

    def __init__(self) -> None:
        self.names: Counter[str] = Counter()
        self.deaths: Counter[str] = Counter(dict.fromkeys(CAUSE_IDS, 0))
        self.restarts: Counter[str] = Counter(dict.fromkeys(CAUSE_IDS, 0))
        self._last_death = "unknown"

    def told(self, name: str, death: str) -> None:
        """One event; `death` is the cause in one word, of `child-exited`."""
        self.names[name] += 1
        if name == "child-exited":
            self._last_death = death or "unknown"
            self.deaths[self._last_death] += 1
        elif name == "restarting":
            self.restarts[self._last_death] += 1


class DaemonReporter:
    """The one that `llamad serve` uses."""

    def __init__(self, name: str, journal: Journal, notifier: Notifier, status: StatusFile) -> None:
        self._name = name
        self._journal = journal
        self._notifier = notifier
        self._status = status
        self.counts = EventCounts()
        self._was_ready = False
        self.on_state: Callable[[str], None] = lambda _state: None
        self.on_death: Callable[[str, str], None] = lambda _cause, _text: None
        """Hears of each death of a llama-server: the name of its cause, and the cause in words."""

    def event(self, name: str, message: str, priority: str | None = None, **fields: str) -> None:
        kind = EVENTS[name]
        if name == "child-exited":
            self.on_death(fields.get("DEATH", ""), fields.get("CAUSE", ""))
            self._status.died(fields.get("DEATH", ""), fields.get("CAUSE", ""))
        self.counts.told(name, fields.get("DEATH", ""))
        if name == "restarting":
            self._status.update(restarts=self.counts.restarts.total())
        given = {key: fields.get(key) or "-" for key in {*kind.fields, *fields}}
        self._journal.record(
            message,
            priority or kind.priority,
            "llamad",
            MESSAGE_ID=CAUSE_IDS.get(fields.get("DEATH", ""), kind.message_id),
            LLAMAD_EVENT=name,
            LLAMAD_MODEL=self._name,
            **{f"LLAMAD_{key}": value for key, value in given.items()},
        )

    def state(self, state: str, text: str) -> None:
        self._notifier.send(STATUS=text)
        self._status.update(state=state, text=text)
        self.on_state(state)

    def planned(self, plan: Plan) -> None:
        """A plan was made for a start."""
        where = f"{plan.layers}/{plan.layers_total} layers on {place_text(plan)}" if plan.devices else "on the CPU"
        message = f"Planned: ctx {plan.context_tokens}, {where}"
        reasons = "\n".join(f"{reason.topic}: {reason.text}" for reason in plan.reasons)
        self.event(
            "planned",
            f"{message} ({plan.source})\n{reasons}",
            CONTEXT=str(plan.context_tokens),
            DEVICE=device_names(plan),
        )
        for warning in plan.remarks:
            self._journal.record(warning, "warning", "llamad", LLAMAD_MODEL=self._name)

    def ledger_problems(self, files: tuple[str, ...]) -> None:
        """Files of the ledger that say nothing sensible; () says nothing."""
        if files:
            cause = f"no lease can be read in {', '.join(files)}"
            self.event("ledger-problem", f"What others were promised is not all known: {cause}", CAUSE=cause)

    def serving(self, launch: Launch) -> None:
        text = ready_text(launch.plan)
        device = device_names(launch.plan)
        self.event(
            "ready", text[0].upper() + text[1:], CONTEXT=str(launch.plan.context_tokens), DEVICE=device
        )
        if device == "CPU":
            why = "no device is used; `allow_cpu = true` permits it"
            self.event("serving-on-cpu", f"Serving on the CPU: {why}", CAUSE=why)
        self._status.serving(launch)
        self._was_ready = True
        self._notifier.send(READY=1, STATUS=text)

    def reloading(self) -> None:
        """A reload begins; `still_ready` or `serving` must follow."""
        self._notifier.send(RELOADING=1, MONOTONIC_USEC=monotonic_usec())

    def still_ready(self, text: str) -> None:
        """The reload is over without another child. What has never been ready is not made so by it."""
        if self._was_ready:
            self._notifier.send(READY=1, STATUS=text)

    def stopping(self) -> None:
        """The service is on its way out."""
        self._notifier.send(STOPPING=1, STATUS="stopping")

    def stable(self) -> None:
        self._notifier.send(RESTART_RESET=1)

    def extend(self, duration_s: float) -> None:
        self._notifier.send(EXTEND_TIMEOUT_USEC=int(duration_s * 1e6))

    def child_line(self, level: str, text: str, pid: int) -> None:
        self._journal.record(
            text,
            _CHILD_PRIORITY.get(level, "info"),
            f"llama-server@{self._name}",
            LLAMAD_MODEL=self._name,
            OBJECT_PID=str(pid),
        )
