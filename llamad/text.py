"""Text from files, logs, clients and hubs, as it may be printed on one line of a terminal. Pure."""

from __future__ import annotations


def printable(value: object) -> str:
    """As text for a terminal: what is no letter for it (escapes, line ends, half characters) becomes `?`."""
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def shown(text: str, limit: int = 64) -> str:
    """The same for what must be recognised: control characters escaped, cut at `limit` characters."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)
