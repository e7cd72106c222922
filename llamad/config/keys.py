"""Paths of keys and texts of files, as they are written for people. Pure."""

from __future__ import annotations

from llamad import text as texts

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
    return texts.shown(text, limit)
