"""Where each key of a TOML text stands: a small scanner beside tomllib, which does not tell.

It reads what tomllib accepts. In a text that tomllib refuses it stops somewhere and keeps what it found, so it
never raises but for nesting that no definition has; that check must come before tomllib, which would recurse.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass, field

from llamad.config.keys import Path

Place = tuple[int, int]
"""1-based line and column."""

DEPTH_LIMIT = 32
_BLANK = re.compile(r"[ \t]*")
_BLANK_LINES = re.compile(r"(?:[ \t\r\n]++|#[^\n]*+)*+")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_QUOTED_KEY = re.compile(r'"(?:[^"\\\n]++|\\.)*+"' r"|'[^'\n]*+'")
_LONG_TEXT = re.compile(r'"""(?:[^"\\]++|\\.|"(?!""))*+"{3,5}' r"|'''(?:[^']++|'(?!''))*+'{3,5}", re.DOTALL)
_SCALAR = re.compile(r"[^\s,\]}#=\[{\"']+(?: [0-9][^\s,\]}#]*)?")  # a date and its time may stand apart


class TooDeepError(Exception):
    """Keys or arrays are nested beyond any use; `place` is where."""

    def __init__(self, place: Place) -> None:
        super().__init__(f"nested more than {DEPTH_LIMIT} deep")
        self.place = place


@dataclass
class Places:
    """Places of keys and array elements by path, in the order of the text; and the first key that is there twice."""

    of: dict[Path, Place] = field(default_factory=dict)
    twice: tuple[Path, Place] | None = None

    def nearest(self, path: Path) -> Place | None:
        """The place of `path`, or of the innermost thing around it that has one."""
        while path:
            if path in self.of:
                return self.of[path]
            path = path[:-1]
        return None


def find_places(text: str) -> Places:
    """The places in a TOML text. Raises TooDeepError and nothing else."""
    scanner = _Scanner(text)
    with suppress(_StopError):  # tomllib says what is wrong there
        scanner.document()
    return scanner.found


def place_at(text: str, index: int) -> Place:
    """Line and column of a character."""
    line_start = text.rfind("\n", 0, index) + 1
    return text.count("\n", 0, index) + 1, index - line_start + 1


class _StopError(Exception):
    """The text is no TOML from here on."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.found = Places()
        self._text = text
        self._at = 0
        self._lines = [0, *(match.end() for match in re.finditer("\n", text))]
        self._table: Path = ()
        self._array_lengths: dict[Path, int] = {}
        self._defined: set[Path] = set()
        self._key_end = 0

    def document(self) -> None:
        while True:
            self._skip(_BLANK_LINES)
            if self._at >= len(self._text):
                return
            if self._peek("[["):
                self._table_header(2)
            elif self._peek("["):
                self._table_header(1)
            else:
                self._pair(self._table)

    def _table_header(self, brackets: int) -> None:
        self._at += brackets
        parts = self._key()
        self._expect("]" * brackets)
        path: Path = ()
        for number, (part, place) in enumerate(parts, 1):
            path += (part,)
            last = number == len(parts)
            self._note(path, place, defines=last and brackets == 1 and path not in self._array_lengths)
            if last and brackets == 2:
                self._array_lengths[path] = self._array_lengths.get(path, 0) + 1
            if path in self._array_lengths:
                path += (self._array_lengths[path] - 1,)
                self._note(path, place)
        self._table = path

    def _pair(self, table: Path) -> None:
        parts = self._key()
        self._expect("=")
        path = table
        for number, (part, place) in enumerate(parts, 1):
            path += (part,)
            self._note(path, place, defines=number == len(parts))
        self._skip(_BLANK)
        self._value(path)

    def _key(self) -> list[tuple[str, Place]]:
        """The parts of a bare, quoted or dotted key, each with its place."""
        parts: list[tuple[str, Place]] = []
        while True:
            self._skip(_BLANK)
            parts.append((self._key_part(), self._place()))
            self._at = self._key_end
            self._skip(_BLANK)
            if len(parts) > DEPTH_LIMIT:
                raise TooDeepError(self._place())
            if not self._peek("."):
                return parts
            self._at += 1

    def _key_part(self) -> str:
        match = _BARE_KEY.match(self._text, self._at) or _QUOTED_KEY.match(self._text, self._at)
        if not match:
            raise _StopError
        self._key_end = match.end()
        written = match[0]
        if written[0] not in "\"'":
            return written
        try:
            return str(tomllib.loads(f"k = {written}")["k"])
        except ValueError:
            raise _StopError from None

    def _value(self, path: Path) -> None:
        if len(path) > DEPTH_LIMIT:
            raise TooDeepError(self._place())
        if self._peek("["):
            self._array(path)
        elif self._peek("{"):
            self._inline_table(path)
        else:
            self._scalar()

    def _scalar(self) -> None:
        for pattern in (_LONG_TEXT, _QUOTED_KEY, _SCALAR):
            match = pattern.match(self._text, self._at)
            if match:
                self._at = match.end()
                return
        raise _StopError

    def _array(self, path: Path) -> None:
        self._at += 1
        index = 0
        while True:
            self._skip(_BLANK_LINES)
            if self._peek("]"):
                self._at += 1
                return
            self._note((*path, index), self._place())
            self._value((*path, index))
            index += 1
            self._separator("]")

    def _inline_table(self, path: Path) -> None:
        self._at += 1
        while True:
            self._skip(_BLANK_LINES)
            if self._peek("}"):
                self._at += 1
                return
            self._pair(path)
            self._separator("}")

    def _separator(self, closing: str) -> None:
        self._skip(_BLANK_LINES)
        if self._peek(","):
            self._at += 1
        elif not self._peek(closing):
            raise _StopError

    def _note(self, path: Path, place: Place, *, defines: bool = False) -> None:
        """Keep the first place of a path; a path may be defined once, and be a prefix of others at any time."""
        if defines and path in self._defined and self.found.twice is None:
            self.found.twice = (path, place)
        if defines:
            self._defined.add(path)
        self.found.of.setdefault(path, place)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _peek(self, wanted: str) -> bool:
        return self._text.startswith(wanted, self._at)

    def _expect(self, wanted: str) -> None:
        self._skip(_BLANK)
        if not self._peek(wanted):
            raise _StopError
        self._at += len(wanted)

    def _place(self) -> Place:
        line = bisect_right(self._lines, self._at)
        return line, self._at - self._lines[line - 1] + 1
