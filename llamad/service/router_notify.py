"""What the router tells journald and systemd of itself, and what its residents may tell systemd."""

from __future__ import annotations

from collections.abc import Sequence

from llamad.errors import LlamadError
from llamad.front.settings import RequestRecord
from llamad.service.events import EVENTS
from llamad.service.journal import Journal
from llamad.service.notify import Notifier, monotonic_usec

_NAMES_SHOWN = 8
_TROUBLE_CHARACTERS = 400


class ResidentNotifier:
    """Passes on what concerns the whole service: that it needs more time. Readiness and status are the router's."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier

    def send(self, **fields: str | int) -> None:
        if "EXTEND_TIMEOUT_USEC" in fields:
            self._notifier.send(EXTEND_TIMEOUT_USEC=fields["EXTEND_TIMEOUT_USEC"])

    def store(self, name: str, fds: list[int]) -> None:
        """Models have no sockets of their own here."""

    def drop(self, name: str) -> None:
        """As `store`."""


class NoRecords:
    """Hears what the address answered itself, which nobody counts yet."""

    def request_waiting(self) -> None:
        """No request waits for the address itself."""

    def request_finished(self, record: RequestRecord) -> None:
        """Nothing to do."""

    def upstream_lost(self, generation: int) -> None:
        """The address itself has no llama-server."""

    def progress(self) -> None:
        """As `upstream_lost`."""

    async def count_tokens(self, socket_path: str, path: str, body: bytes) -> int | None:
        """As `upstream_lost`."""


class RouterReporter:
    """The records and the status line of `llamad.service`."""

    def __init__(self, journal: Journal, notifier: Notifier) -> None:
        self.journal = journal
        self._notifier = notifier
        self._status = ""
        self._problem = ""

    def ready(self, text: str) -> None:
        """It accepts requests, and knows who serves what: `text`, which begins with the address. Also the end of a
        reload."""
        self.event("router-ready", f"Serving on {text}", CAUSE=text)
        self._notifier.send(READY=1, STATUS=text)

    def status(self, text: str) -> None:
        """The one line of `systemctl status`."""
        if text != self._status:
            self._status = text
            self._notifier.send(STATUS=text)

    def reloading(self) -> None:
        """All definitions are read again; `ready` must follow."""
        self._notifier.send(RELOADING=1, MONOTONIC_USEC=monotonic_usec())

    def reload_refused(self, why: str) -> None:
        """Something of a reload is not in force."""
        self.event("reload-refused", f"Reload refused: {why}", CAUSE=why)

    def applied(self, changed: str) -> None:
        """Settings of the router's own are in force."""
        self.event("reload-applied", f"In force, without touching a model: {changed}", CHANGED=changed)

    def broken(self, name: str, problem: LlamadError) -> None:
        """A definition cannot be used; the others are served."""
        text = str(problem)
        self.event("config-refused", f"Cannot serve {name}: {text}", model=name, CAUSE=text)

    def ledger_problem(self, why: str) -> None:
        """The ledger cannot be read; told once."""
        if why != self._problem:
            self._problem = why
            self.event("ledger-problem", f"The router cannot look into the ledger: {why}", CAUSE=why)

    def stopping(self) -> None:
        """On its way out."""
        self.event("stopping", "Stopping: requests in flight are finished first")
        self._notifier.send(STOPPING=1, STATUS="stopping")

    def stopped(self) -> None:
        """Nothing is left."""
        self.event("stopped", "Stopped: all models are unloaded")

    def event(self, name: str, message: str, model: str = "llamad", **fields: str) -> None:
        """One record of the catalog's event `name`, about the router itself or one of its models."""
        kind = EVENTS[name]
        given = {key: fields.get(key) or "-" for key in {*kind.fields, *fields}}
        self.journal.record(
            message,
            kind.priority,
            "llamad",
            MESSAGE_ID=kind.message_id,
            LLAMAD_EVENT=name,
            LLAMAD_MODEL=model,
            **{f"LLAMAD_{key}": value for key, value in given.items()},
        )


def summary(listen: str, states: Sequence[tuple[str, str]], troubles: Sequence[str] = ()) -> str:
    """`127.0.0.1:8080: 5 models; ready: phi4, qwen; forwarded: big; broken: old`; those at rest are only counted.

    `troubles`: with edits that are not in force; the first is told.
    """
    groups: dict[str, list[str]] = {}
    for name, state in states:
        if state not in ("unloaded", "manual", "starting"):
            groups.setdefault(state, []).append(name)
    counted = f"{len(states)} model{'s' if len(states) != 1 else ''}"
    parts = [f"{state}: {_some(names)}" for state, names in sorted(groups.items(), key=lambda row: row[0] != "ready")]
    more = f" (and {len(troubles) - 1} more)" if len(troubles) > 1 else ""
    told = [f"{text[:_TROUBLE_CHARACTERS]}{more}" for text in troubles[:1]]
    return "; ".join([f"{listen}: {counted}", *parts, *told])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
