"""Who sits at the terminal: questions, and colours where they are wanted."""

from __future__ import annotations

import os
import sys

_COLOURS = {"green": "32", "yellow": "33", "red": "31", "bold": "1"}
_RESET = "\x1b[0m"
_CALM = frozenset({"stopped", "unloaded", "forwarded", "manual", "unit-stopped"})
_BAD = frozenset({"failed", "broken", "stuck", "backoff", "retrying"})


def ask(question: str) -> str | None:
    """The line that was typed; None where nobody can be asked."""
    if not sys.stdin.isatty():
        return None
    print(question, end=" ", flush=True)
    line = sys.stdin.readline()
    return line.strip() if line else None


def wants_colour() -> bool:
    """Whether stdout is a terminal that shows colours, and nobody has said NO_COLOR (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def painted(text: str, colour: str) -> str:
    """In a colour; as it is for the colour ""."""
    return f"\x1b[{_COLOURS[colour]}m{text}{_RESET}" if colour else text


def colour_of(state: str) -> str:
    """Green serves, red needs somebody, yellow is on its way; the rest has none."""
    if state == "ready":
        return "green"
    if state in _BAD:
        return "red"
    return "" if state in _CALM else "yellow"
