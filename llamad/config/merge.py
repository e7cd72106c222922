"""Tables laid over each other, with the place where each value was written. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llamad.config.keys import Path
from llamad.config.loaded import paths_in
from llamad.config.text import TomlText
from llamad.errors import Where


class Merged:
    """The result of laying texts over each other: later wins, tables merge by key, all else replaces."""

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}
        self.origins: dict[Path, Where] = {}
        """Of every table, value and element."""

    def add(self, text: TomlText, tables: Mapping[str, Any]) -> None:
        """Lay `tables`, all or some of the text's, over what is there."""
        self._lay(text, (), self.tables, tables)

    def where(self, path: Path) -> Where | None:
        """Where a value was written, or the innermost thing around it; None for the whole."""
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path[:-1]
        return None

    def _lay(self, text: TomlText, path: Path, under: dict[str, Any], over: Mapping[str, Any]) -> None:
        for key, value in over.items():
            inner = (*path, key)
            if isinstance(value, dict) and isinstance(under.get(key, {}), dict):
                self.origins.setdefault(inner, text.where(inner))
                self._lay(text, inner, under.setdefault(key, {}), value)
            else:
                self._replace(text, inner, under, value)

    def _replace(self, text: TomlText, path: Path, under: dict[str, Any], value: Any) -> None:
        for old in [old for old in self.origins if old[: len(path)] == path]:
            del self.origins[old]
        under[str(path[-1])] = value
        for inner in paths_in(value, path):
            self.origins[inner] = text.where(inner)
