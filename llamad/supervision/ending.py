"""How a model's life ends in failure, in words; or is parked, where its device may come back.

Under systemd llamad ends with exit status 69: which devices a unit may open is fixed when it starts, so waiting
within would be in vain. Where nobody starts it again, it waits itself.
"""

from __future__ import annotations

from collections.abc import Callable

from llamad.errors import ChildError, ExitCode, LlamadError
from llamad.frozen import dataclass
from llamad.ledger.booking import GaveUpWaiting
from llamad.supervision import words
from llamad.supervision.causes import Cause
from llamad.supervision.launch import Reporter

FIRST_S = 1.0
LONGEST_S = 60.0


@dataclass(frozen=True)
class Ending:
    """What a failure comes to."""

    code: ExitCode
    event: str
    message: str
    """Of the record, the last lines of llama-server below it."""
    text: str
    fix: str
    status: str


def ending(why: LlamadError | Cause | None, lines: str, *, served: bool) -> Ending:
    """The end for a refusal or a cause of death. `served`: whether it had been ready in this life."""
    code = why.exit_code if why else ExitCode.CRASH_LOOP
    text, fix = _text(why), (why.fix if why else "") or "see the lines before"
    event = words.event_of(code)
    if isinstance(why, GaveUpWaiting):
        event = "gave-up-waiting"
    elif served and code is ExitCode.NO_DEVICE:
        event = "waiting-for-device"
    message = f"{words.verdict(code)}: {text}" + (f"\n{lines}" if lines else "")
    return Ending(code, event, message, text, fix, text if fix in text else f"{text}; {fix}")


def of_a_device(why: LlamadError | Cause | None) -> bool:
    """Whether what failed is a device that does not answer."""
    return why is not None and why.exit_code is ExitCode.NO_DEVICE


def as_error(why: LlamadError | Cause) -> LlamadError:
    """For who asked for what failed."""
    return why if isinstance(why, LlamadError) else ChildError(why.text, fix=why.fix)


class Parking:
    """One spell of waits, which grow while a device does not answer: no crash loop, and without an end of its own."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._waits = 0

    def begin(self, why: LlamadError | Cause, reporter: Reporter) -> str:
        """For the status line: which device, and what to do. There is one record for all waits in a row."""
        text = _text(why)
        if not self._waits:
            reporter.event("waiting-for-device", f"Waiting for a device: {text}", CAUSE=text, FIX=why.fix)
        return f"waiting for a device: {text}" + ("" if why.fix in text else f"; {why.fix}")

    def next_delay_s(self) -> float:
        """Seconds until it is tried again."""
        delay_s = min(LONGEST_S, FIRST_S * 2.0 ** min(self._waits, 16))
        self._waits += 1
        return delay_s * (1.0 + 0.1 * self._jitter())


def _text(why: LlamadError | Cause | None) -> str:
    if why is None:
        return "llama-server ended"
    return why.text if isinstance(why, Cause) else str(why)
