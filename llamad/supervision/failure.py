"""Why a model is given up, as it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamad.errors import ExitCode, LlamadError
from llamad.ledger.booking import GaveUpWaiting
from llamad.supervision import words
from llamad.supervision.causes import Cause
from llamad.supervision.launch import Reporter, tail


@dataclass(frozen=True)
class Failure:
    """The end of all tries: an error, or the cause of the last death."""

    error: LlamadError | None
    cause: Cause | None

    @property
    def exit_code(self) -> ExitCode:
        """For the service."""
        found = self.error or self.cause
        return found.exit_code if found else ExitCode.CRASH_LOOP

    @property
    def text(self) -> str:
        """In one line, without advice."""
        return str(self.error) if self.error else self.cause.text if self.cause else "llama-server ended"

    @property
    def fix(self) -> str:
        """The advice."""
        found = self.error or self.cause
        return (found.fix if found else "") or "see the lines before"

    @property
    def status(self) -> str:
        """Both, for `systemctl status`."""
        return self.text if self.fix in self.text else f"{self.text}; {self.fix}"

    def tell(self, reporter: Reporter, last_lines: Sequence[str]) -> None:
        """One record; with llama-server's last lines where it died."""
        waited = isinstance(self.error, GaveUpWaiting)
        event = "gave-up-waiting" if waited else words.event_of(self.exit_code)
        lines = "" if self.error else tail(last_lines)
        message = f"{words.verdict(self.exit_code)}: {self.text}" + (f"\n{lines}" if lines else "")
        reporter.event(event, message, CAUSE=self.text, FIX=self.fix)
