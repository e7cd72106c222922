"""Which model a request is for: found in its path, its query or its body, of which no more is read than needed. Pure.

A body is read as its bytes come. Nothing of it is kept here but an unfinished name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol
from urllib.parse import unquote_to_bytes

from llamad.front.nesting import parsed
from llamad.text import printable

NAME_BYTES = 2048
"""The most that a model's name may take as it is sent; longer keys of a JSON body are other keys."""
_PART_HEAD_BYTES = 8192
_BOM = b"\xef\xbb\xbf"
_UPSTREAM = b"/upstream/"

_BLANKS = re.compile(rb"[ \t\r\n]*+")
_KEY = re.compile(rb'[ \t\r\n]*+"([^"\\]{0,2048}+)"[ \t\r\n]*+:[ \t\r\n]*+')
_STRING = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"', re.DOTALL)
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_NO_BRACKETS = re.compile(rb'(?:[^"{}\[\]]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL)
_IN_SCALAR = re.compile(rb"[^,} \t\r\n]*+")
_BOUNDARY = re.compile(
    rb'multipart/form-data[ \t]*;(?:[^"]*;)?[ \t]*boundary=(?:"([^"\\\r\n]{1,70})"|([!-:<-~]{1,70}))[ \t]*(?:;|$)',
    re.IGNORECASE,
)
_MULTIPART = re.compile(rb"[ \t]*multipart/", re.IGNORECASE)
_PART_NAME = re.compile(rb'^content-disposition:[ \t]*form-data[^\r\n]*?;[ \t]*name=(?:"([^"\r\n]*)"|([^";\r\n]+))',
                        re.IGNORECASE | re.MULTILINE)  # fmt: skip


class RoutingError(Exception):
    """A request that cannot be routed: the status, code and message of its answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class Finder(Protocol):
    """Finds the model's name in a body that comes in pieces."""

    model: str | None
    """The name, as soon as it is known."""

    def feed(self, data: bytes) -> None:
        """More of the body. Raises RoutingError for a name that is none, and for a second one."""
        ...


class Names:
    """Names and aliases of the models of one address. A name goes before an alias, and of two models with the same
    alias the first by name has it.
    """

    def __init__(self, models: Mapping[str, Iterable[str]]) -> None:
        self._owner: dict[str, str] = {}
        for name in sorted(models):
            for alias in models[name]:
                self._owner.setdefault(alias, name)
        self._owner.update((name, name) for name in models)
        self._names = sorted(models)

    def find(self, model: str) -> str:
        """The definition that a request names. Raises RoutingError 404, which lists those that there are."""
        owner = self._owner.get(model)
        if owner is None:
            raise RoutingError(404, "model_not_found", f'no model "{printable(model[:100])}" here; {self._there_is()}')
        return owner

    def only(self, hint: str = "") -> str:
        """The definition for a request that names none: the only one there is. Raises RoutingError 400."""
        if len(self._names) == 1:
            return self._names[0]
        message = f"the request names no model{hint}; {self._there_is()}"
        raise RoutingError(400, "model_required", message)

    def _there_is(self) -> str:
        names = ", ".join(self._names[:50])
        more = f" and {len(self._names) - 50} more" if len(self._names) > 50 else ""
        return f"there is: {names}{more}" if names else "there are no models"


def split_upstream(target: bytes) -> tuple[str, bytes] | None:
    """Model and remaining target of `/upstream/NAME/...`, or None for another path.

    Raises RoutingError 404 for a name in which a path could hide: what is behind it is all that is passed on.
    """
    if not target.startswith(_UPSTREAM):
        return None
    path, mark, query = target.partition(b"?")
    raw, slash, rest = path[len(_UPSTREAM) :].partition(b"/")
    name = _text(unquote_to_bytes(raw))
    if not name or "/" in name or "\\" in name or name in (".", ".."):
        raise RoutingError(404, "model_not_found", "no model's name behind /upstream/")
    if any(part in (b".", b"..") for part in unquote_to_bytes(rest).replace(b"\\", b"/").split(b"/")):
        raise RoutingError(400, "bad_request", "a path behind /upstream/NAME must not step upwards")
    return name, b"/" + rest + mark + query if slash else b"/" + mark + query


def model_in_query(target: bytes) -> str | None:
    """The value of `model` in the query of a target; None without one. Raises RoutingError 400 for two."""
    if b"?" not in target:
        return None
    query = target.partition(b"?")[2]
    found: str | None = None
    for pair in query.split(b"&"):
        key, _, value = pair.partition(b"=")
        if unquote_to_bytes(key) != b"model":
            continue
        if found is not None:
            raise _twice()
        found = _text(unquote_to_bytes(value.replace(b"+", b" ")))
    return found


def model_of(body: bytes) -> str | None:
    """The model that a whole JSON body names, where that is beyond doubt: `model` is there once, in valid JSON, and no
    other key is spelled so that it could be meant. None: a finder has to look.
    """
    if body.count(b'"model"') != 1 or b"\\u00" in body:
        return None
    try:
        value = parsed(body)
    except (ValueError, RecursionError):
        return None
    model = value.get("model") if isinstance(value, dict) else None
    return model if isinstance(model, str) and len(model) * 6 <= NAME_BYTES else None


def finder_for(content_type: bytes) -> Finder:
    """The finder for a body. All that is no form is read as JSON, as llama-server does.

    Raises RoutingError 400 for a form without a usable boundary.
    """
    if not _MULTIPART.match(content_type):
        return JsonModel()
    match = _BOUNDARY.match(content_type.strip(b" \t"))
    if match is None:
        raise RoutingError(400, "bad_request", "a multipart body needs form-data and a boundary of 1 to 70 bytes")
    return FormModel(match[1] or match[2])


class JsonModel:
    """The string behind the key `model` of a JSON object, at its top only, whatever comes before it.

    It goes on to the end, because a second one is refused. What is no JSON otherwise is for llama-server to refuse.
    """

    __slots__ = ("_depth", "_half", "_key", "_step", "_text", "model")

    def __init__(self) -> None:
        self.model: str | None = None
        self._step: Callable[[JsonModel, bytes, int], int] = JsonModel._start
        self._depth = 0  # of brackets inside the object
        self._text = bytearray()  # an unfinished key or name
        self._key = b""
        self._half = False  # an escape's backslash was the last byte so far

    def feed(self, data: bytes) -> None:
        at, size = 0, len(data)
        while at < size:
            at = self._step(self, data, at)

    # Each step takes data[at:], says which comes next, and returns the index behind what it has taken.

    def _start(self, data: bytes, at: int) -> int:
        """A byte order mark may come first. An array, or anything else, names no model."""
        self._text += data[at : at + 1]
        if bytes(self._text) in (_BOM[:1], _BOM[:2], _BOM):
            return at + 1
        byte = self._text[-1:]
        if byte not in b" \t\r\n":
            self._text.clear()
            self._step = JsonModel._key_or_end if byte == b"{" else JsonModel._end
        else:
            self._text[:] = self._text[:-1]
        return at + 1

    def _key_or_end(self, data: bytes, at: int) -> int:
        match = _KEY.match(data, at)
        if match is not None and match.end() < len(data):  # nearly always: it is here whole
            self._key = match[1]
            return self._value(data, match.end())
        at = _blanks(data, at)
        if at == len(data):
            return at
        byte = data[at]
        if byte == _QUOTE:
            self._step = JsonModel._in_key
            self._text.clear()
        else:  # the end of an empty object, or no JSON
            self._step = JsonModel._end
        return at + 1

    def _in_key(self, data: bytes, at: int) -> int:
        end, closed = self._take(data, at)
        if closed:
            self._key = bytes(self._text)
            self._text.clear()
            self._step = JsonModel._colon
        return end

    def _colon(self, data: bytes, at: int) -> int:
        at = _blanks(data, at)
        if at < len(data):
            self._step = JsonModel._value if data[at : at + 1] == b":" else JsonModel._end
            at += 1
        return at

    def _value(self, data: bytes, at: int) -> int:
        at = _blanks(data, at)
        if at == len(data):
            return at
        byte = data[at]
        is_model = _is_model(self._key)
        if is_model and self.model is not None:
            raise _twice()
        if is_model and byte != _QUOTE:
            raise RoutingError(400, "bad_request", "`model` is no string")
        if byte != _QUOTE:
            self._step = JsonModel._nested if byte in b"{[" else JsonModel._in_scalar
            return at
        whole = None if is_model else _STRING.match(data, at)
        if whole is not None:
            self._step = JsonModel._comma
            return whole.end()
        self._step = JsonModel._in_name if is_model else JsonModel._in_string
        return at + 1

    def _in_name(self, data: bytes, at: int) -> int:
        end, closed = self._take(data, at)
        if len(self._text) > NAME_BYTES:
            raise RoutingError(400, "bad_request", f"`model` is longer than {NAME_BYTES} bytes")
        if closed:
            self.model = _decoded(bytes(self._text))
            self._text.clear()
            self._step = JsonModel._comma
        return end

    def _take(self, data: bytes, at: int) -> tuple[int, bool]:
        """Keep more of a string, a little past the bound at most; the index behind it, and whether it has ended."""
        room = max(0, NAME_BYTES + 1 - len(self._text))
        if self._half:
            self._half = False
            self._text += data[at : at + min(1, room)]
            return at + 1, False
        end = _string_end(data, at)
        self._half = end < len(data) and data[end] != _QUOTE
        self._text += data[at : min(end + self._half, at + room)]
        if end == len(data):
            return end, False
        return end + 1, not self._half

    def _in_string(self, data: bytes, at: int) -> int:
        if self._half:
            self._half = False
            return at + 1
        end = _string_end(data, at)
        if end == len(data):
            return end
        if data[end] == _QUOTE:
            self._step = JsonModel._nested if self._depth else JsonModel._comma
        else:
            self._half = True
        return end + 1

    def _nested(self, data: bytes, at: int) -> int:
        match = _NO_BRACKETS.match(data, at)
        assert match is not None
        at = match.end()
        if at == len(data):
            return at
        byte = data[at]
        if byte == _QUOTE:  # a string that is not whole yet
            self._step = JsonModel._in_string
        elif byte in b"{[":
            self._depth += 1
        else:
            self._depth -= 1
            if not self._depth:
                self._step = JsonModel._comma
        return at + 1

    def _in_scalar(self, data: bytes, at: int) -> int:
        match = _IN_SCALAR.match(data, at)
        assert match is not None
        if match.end() < len(data):
            self._step = JsonModel._comma
        return match.end()

    def _end(self, data: bytes, at: int) -> int:  # noqa: ARG002
        """Behind the object, or what is none: there is nothing to be found."""
        return len(data)

    def _comma(self, data: bytes, at: int) -> int:
        at = _blanks(data, at)
        if at < len(data):
            self._step = JsonModel._key_or_end if data[at : at + 1] == b"," else JsonModel._end
            at += 1
        return at


_QUOTE = 0x22


def _blanks(data: bytes, at: int) -> int:
    match = _BLANKS.match(data, at)
    assert match is not None
    return match.end()


def _string_end(data: bytes, at: int) -> int:
    """The index of the quote that ends a string, of a backslash that is the last byte, or the end."""
    match = _IN_STRING.match(data, at)
    assert match is not None
    return match.end()


def _is_model(key: bytes) -> bool:
    if b"\\" not in key:
        return key == b"model"
    if len(key) > NAME_BYTES:
        return False
    try:
        return bool(json.loads(b'"' + key + b'"') == "model")
    except ValueError:
        return False


def _decoded(raw: bytes) -> str:
    try:
        return str(json.loads(b'"' + raw + b'"'))
    except ValueError:
        raise RoutingError(400, "bad_request", "`model` is no JSON string") from None


class FormModel:
    """The field `model` of a multipart form, between files of any size."""

    __slots__ = ("_delimiter", "_held", "_is_model", "_place", "_value", "model")

    def __init__(self, boundary: bytes) -> None:
        self.model: str | None = None
        self._delimiter = b"\r\n--" + boundary
        self._held = b"\r\n"  # so that the first delimiter is like the others
        self._place = "content"  # of the part that precedes the first one
        self._is_model = False
        self._value = bytearray()

    def feed(self, data: bytes) -> None:
        data = self._held + data
        self._held = b""
        at = 0
        while at < len(data) and self._place != "end":
            at = self._content(data, at) if self._place == "content" else self._head(data, at)

    def _content(self, data: bytes, at: int) -> int:
        found = data.find(self._delimiter, at)
        end = found if found >= 0 else max(at, len(data) - len(self._delimiter) + 1)
        if self._is_model:
            self._value += data[at : min(end, at + NAME_BYTES + 1)]
            if len(self._value) > NAME_BYTES:
                raise RoutingError(400, "bad_request", f"`model` is longer than {NAME_BYTES} bytes")
        if found < 0:
            self._held = data[end:]
            return len(data)
        if self._is_model:
            if self.model is not None:
                raise _twice()
            self.model = _text(bytes(self._value)).strip()
            self._is_model = False
        self._place = "head"
        return found + len(self._delimiter)

    def _head(self, data: bytes, at: int) -> int:
        """The lines behind a delimiter, up to the empty one; `--` there is the end of the form."""
        if data.startswith(b"--", at):
            self._place = "end"
            return len(data)
        end = data.find(b"\r\n\r\n", at)
        if end < 0:
            if len(data) - at > _PART_HEAD_BYTES:
                raise RoutingError(400, "bad_request", "the head of a part of the form is too long")
            self._held = data[at:]
            return len(data)
        names = _PART_NAME.findall(data[at:end])
        self._is_model = [first or second for first, second in names] == [b"model"]
        self._value.clear()
        self._place = "content"
        return end + 4


def _twice() -> RoutingError:
    return RoutingError(400, "bad_request", "`model` is there twice")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
