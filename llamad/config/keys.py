"""Paths of keys and texts of files, as they are written for people. Pure."""

from __future__ import annotations

Path = tuple[str | int, ...]
"""`("placement", "context")`, `("server", "extra_args", 2)`."""


def dotted(path: Path) -> str:
    """`placement.context`, `server.extra_args[2]`: a path as people write it, on one line."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{shown(part)}" if text else shown(part)
    return text


def shown(text: str, limit: int = 60) -> str:
    """Text of a file as it may be printed on one line: control characters escaped, cut at `limit`."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)
