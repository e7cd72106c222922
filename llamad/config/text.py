"""TOML text to tables, with the place of everything, and errors that say what to write."""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from llamad.config.files import SIZE_LIMIT_BYTES
from llamad.config.keys import Path, dotted, shown
from llamad.config.places import Place, Places, TooDeepError, find_places, place_at
from llamad.errors import ConfigError, Where
from llamad.frozen import dataclass

_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_COMPARE = "compare with the examples in /usr/share/doc/llamad"
_SYNTAX: tuple[tuple[str, str, str], ...] = (
    ("Invalid value", "not a value", 'put a text in quotes: key = "text"'),
    ("Expected '=' after a key", 'no "=" after a key', "write: key = value"),
    ("Invalid initial character for a key part", "not a key", "write: key = value"),
    ("Expected newline or end of document", "something stands behind the value", "write one key on a line"),
    ("Unterminated string", "a text is not closed", "write the closing quote"),
    ("Illegal character '\\n'", "a text is not closed", "write the closing quote on the same line"),
    ("Illegal character", "a control character stands there", "delete it"),
    (
        "Unescaped '\\' in a string",
        'a lone "\\" in a text',
        "write it twice, or put the text in 'single quotes'",
    ),
    ("Unclosed array", "a list is not closed", 'write the closing "]", and a comma between the elements'),
    ("Unclosed inline table", "an inline table is not closed", 'write the closing "}"'),
    ("Expected ']' at the end of a table", 'a [section] is not closed by "]"', "write: [section]"),
    ("Expected ']]' at the end of an array", 'a [[section]] is not closed by "]]"', "write: [section]"),
    ("Cannot overwrite a value", "a key or section is there twice", "keep one of them"),
    ("Cannot declare", "a section is there twice", "put its keys into one section"),
    ("Duplicate inline table key", "a key is there twice", "keep one of them"),
    ("Cannot mutate immutable namespace", "adds to an inline table", "write all its keys in one place"),
    ("Cannot redefine namespace", "a section is there twice", "put its keys into one section"),
    ("Invalid statement", "neither a key nor a section", "write: key = value"),
    ("Invalid date or datetime", "not a date", "put a text in quotes"),
    ("Invalid hex value", "not a hexadecimal number", "correct the digits"),
    ("Expected", "a character is missing or one too many", _COMPARE),
)
_FAULTS_OF_VALUES = ("Invalid value", "Expected newline or end of document")
_PAIR = re.compile(r"\s*([A-Za-z0-9_.-]+)\s*=\s*([^#]*?)\s*(?:#.*)?$")


@dataclass(frozen=True)
class TomlText:
    """One file: its tables as tomllib gives them, and where everything in it stands."""

    path: str
    tables: Mapping[str, Any]
    places: Places

    def where(self, path: Path) -> Where:
        """The place of a key path, or of what is around it; the file's first line for the whole."""
        line, column = self.places.nearest(path) or (1, 1)
        return Where(self.path, line, column)


def parse_toml(content: bytes, path: str) -> TomlText:
    """Parse one file's content. Raises ConfigError with line and column, and nothing else."""
    if len(content) > SIZE_LIMIT_BYTES:
        raise ConfigError(
            "the file is larger than 1 MiB", where=Where(path, 1, 1), fix="no definition needs that"
        )
    text = _decode(content, path)
    try:
        places = find_places(text)
        tables = tomllib.loads(text)
    except TooDeepError as error:
        raise _error(path, error.place, str(error), "no key needs that") from error
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(error, text, path) from error
    except (ValueError, RecursionError) as error:  # a number of 5000 digits, and the like
        raise _error(path, (1, 1), "a value is beyond all limits", "delete it") from error
    for key_path, value in _walk(tables, ()):
        if isinstance(value, datetime.date | datetime.time | datetime.datetime):
            where = places.nearest(key_path) or (1, 1)
            raise _error(
                path, where, f"{dotted(key_path)}: no key takes a date or a time", "put a text in quotes"
            )
    return TomlText(path, tables, places)


def _decode(content: bytes, path: str) -> str:
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace")
        place = place_at(before, len(before))
        raise _error(
            path, place, f"not UTF-8 (byte 0x{content[error.start]:02x})", "save the file as UTF-8"
        ) from error
    nul = text.find("\0")
    if nul >= 0:
        raise _error(path, place_at(text, nul), "a NUL character", "this is no text file, or a damaged one")
    return text


def _syntax_error(error: tomllib.TOMLDecodeError, text: str, path: str) -> ConfigError:
    message, place = _message_and_place(error, text)
    twice = find_places(text).twice
    if twice and message.startswith(("Cannot overwrite", "Cannot declare", "Duplicate")):
        key_path, place = twice
        first_line, _ = find_places(text).of[key_path]
        what = f"{dotted(key_path)}: is there twice, first on line {first_line}"
        return _error(path, place, what, "keep one of them")
    line = text.split("\n")[place[0] - 1] if place[0] <= text.count("\n") + 1 else ""
    for start, words, fix in _SYNTAX:
        if message.startswith(start):
            key, better_fix = _unquoted(line) if start in _FAULTS_OF_VALUES else ("", "")
            return _error(path, place, f"{key}: {words}" if key else words, better_fix or fix)
    return _error(path, place, f"not TOML ({shown(message)})", _COMPARE)


def _unquoted(line: str) -> tuple[str, str]:
    """The key of a line whose value is not TOML, and the line as it is likely meant; empty where that is unclear."""
    match = _PAIR.match(line)
    if not match:
        return "", ""
    key, value = match[1], match[2]
    thousands = re.fullmatch(r"(\d{1,6})[kK]", value)
    if thousands:
        return key, f"write: {key} = {int(thousands[1]) * 1024}"
    if value in ("True", "False", "TRUE", "FALSE", "yes", "no", "on", "off"):
        return key, f"write: {key} = {'true' if value.lower() in ('true', 'yes', 'on') else 'false'}"
    if value and value[0] not in "\"'[{" and not set(value) & set('"\\'):
        return key, f'write: {key} = "{shown(value)}"'
    return key, ""


def _message_and_place(error: tomllib.TOMLDecodeError, text: str) -> tuple[str, Place]:
    """From the attributes where they exist (Python 3.14), else from the message, else the text's end."""
    message = getattr(error, "msg", None) or str(error)
    line, column = getattr(error, "lineno", None), getattr(error, "colno", None)
    match = _AT.search(message)
    if match and match[1]:
        line, column = int(match[1]), int(match[2])
    message = _AT.sub("", message)
    if isinstance(line, int) and isinstance(column, int):
        return message, (line, column)
    return message, place_at(text, len(text.rstrip()))


def _walk(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _walk(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _walk(inner, (*path, index))
    else:
        yield path, value


def _error(path: str, place: Place, what: str, fix: str) -> ConfigError:
    return ConfigError(what, where=Where(path, *place), fix=fix)
