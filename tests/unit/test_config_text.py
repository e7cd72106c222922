"""TOML texts: where everything stands, and what a mistake of syntax is told as."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamad.config.keys import dotted
from llamad.config.places import find_places
from llamad.config.text import parse_toml
from llamad.errors import ConfigError

PLACES = """\
model = "/srv/a = b # c.gguf"   # comment with [brackets] = "x"
'single quoted'.'dotted "x"' = 1
"esc\\u0061pe" = 2

[placement]
  context = 8192
tensor_split = [ 1.0,   # first
   2.5, [3], ]
gpus=["a","b"]
[server.inner] # comment
extra_args = [
  "--x", \"\"\"
multi "quoted" ""\"\"\",
  '''raw ''',
]
table = { one = 1, two.three = [ {four = 4} ] }
date = 1979-05-27 07:32:00
[[list]]
a = 1
[[list]]
a = 2
[list.sub]
b = 3
[[list.items]]
c = 4
"""


def test_every_key_and_element_has_its_place() -> None:
    places = find_places(PLACES).of
    assert places[("model",)] == (1, 1)
    assert places[("single quoted",)] == (2, 1)
    assert places[("single quoted", 'dotted "x"')] == (2, 17)
    assert places[("escape",)] == (3, 1)
    assert places[("placement",)] == (5, 2)
    assert places[("placement", "context")] == (6, 3)
    assert places[("placement", "tensor_split")] == (7, 1)
    assert places[("placement", "tensor_split", 0)] == (7, 18)
    assert places[("placement", "tensor_split", 1)] == (8, 4)
    assert places[("placement", "tensor_split", 2, 0)] == (8, 10)
    assert places[("placement", "gpus", 1)] == (9, 11)
    assert places[("server",)] == (10, 2)
    assert places[("server", "inner")] == (10, 9)
    assert places[("server", "inner", "extra_args", 0)] == (12, 3)
    assert places[("server", "inner", "extra_args", 1)] == (12, 10)
    assert places[("server", "inner", "extra_args", 2)] == (14, 3)
    assert places[("server", "inner", "table", "two", "three", 0, "four")] == (16, 35)
    assert places[("server", "inner", "date")] == (17, 1)
    assert places[("list", 0, "a")] == (19, 1)
    assert places[("list", 1, "a")] == (21, 1)
    assert places[("list", 1, "sub", "b")] == (23, 1)
    assert places[("list", 1, "items", 0, "c")] == (25, 1)


def paths(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    found: set[tuple[str | int, ...]] = {path} if path else set()
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        found |= paths(child, (*path, key))
    return found


def test_the_scanner_sees_what_tomllib_sees() -> None:
    assert set(find_places(PLACES).of) == paths(tomllib.loads(PLACES))


def test_windows_line_ends_and_a_byte_order_mark_change_no_place() -> None:
    text = parse_toml(b"\xef\xbb\xbfa = 1\r\n[b]\r\nc = 2\r\n", "f")
    assert text.where(("a",)).column == 1
    assert (text.where(("b", "c")).line, text.where(("b", "c")).column) == (3, 1)
    assert (text.where(("b", "none", 3)).line, text.where(("b", "none", 3)).column) == (2, 2)
    assert (text.where(()).line, text.where(()).column) == (1, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = 1\nmodel = /srv/x.gguf\n", '2:9: model: not a value; write: model = "/srv/x.gguf"'),
        (b"context = 8k  # tokens", "1:12: context: something stands behind the value; write: context = 8192"),
        (b"memory = 10GiB", '1:12: memory: something stands behind the value; write: memory = "10GiB"'),
        (b"jinja = True", "1:9: jinja: not a value; write: jinja = true"),
        (b'model "x"', '1:7: no "=" after a key; write: key = value'),
        (b"[placement\ncontext = 1", '1:11: a [section] is not closed by "]"; write: [section]'),
        (b'a = "x\nb = 2', "1:7: a text is not closed; write the closing quote on the same line"),
        (b'a = "C:\\x"', "1:10: a lone \"\\\" in a text; write it twice, or put the text in 'single quotes'"),
        (b"context = 1\n\ncontext = 2", "3:1: context: is there twice, first on line 1; keep one of them"),
        (
            b"[placement]\na = 1\n[idle]\n[placement]\nb = 2",
            "4:2: placement: is there twice, first on line 1; keep one of them",
        ),
        (b"a = { b = 1, b = 2 }", "1:14: a.b: is there twice, first on line 1; keep one of them"),
        (b"a = [1, 2", '1:10: a list is not closed; write the closing "]", and a comma between the elements'),
        (b"ok = 1\nb = \xff", "2:5: not UTF-8 (byte 0xff); save the file as UTF-8"),
        (b"a = 1\nb = 2\0", "2:6: a NUL character; this is no text file, or a damaged one"),
        (b"a = 1979-05-27", "1:1: a: no key takes a date or a time; put a text in quotes"),
        (b"a = " + b"[" * 5000, "1:37: nested more than 32 deep; no key needs that"),
        (b"a." * 5000 + b"a = 1", "1:66: nested more than 32 deep; no key needs that"),
        (b"a = " + b"9" * 5000, "1:1: a value is beyond all limits; delete it"),
        (b"#" * (1 << 20) + b"\n", "1:1: the file is larger than 1 MiB; no definition needs that"),
    ],
)  # fmt: skip
def test_mistakes_of_syntax(content: bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_toml(content, "/etc/llamad/phi4.toml")
    assert str(caught.value) == f"/etc/llamad/phi4.toml:{message}"


def test_a_key_cannot_break_the_line_of_its_message() -> None:
    assert dotted(("a\nb", 0, "c\x1b")) == "a\\nb[0].c\\x1b"


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)))
def test_any_bytes_are_parsed_or_refused(content: bytes) -> None:
    try:
        parse_toml(content, "f")
    except ConfigError as error:
        assert error.where is not None
        assert error.where.line >= 1
        assert error.where.column >= 1
        assert error.fix
        assert "\n" not in str(error)


PIECES = st.sampled_from(
    ["a", "b.c", '"q k"', " = ", "=", "1", '"x"', "'y'", '"""', "'''", "[", "]", "[[", "]]", "{", "}", ",", "\n",
     "#c", ".", "true", "1.5", "1979-05-27", "\\", " ", "\r\n", "é"]
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES, max_size=40).map("".join))
def test_where_tomllib_reads_the_scanner_finds_every_path(text: str) -> None:
    try:
        tables = tomllib.loads(text)
    except ValueError:
        find_places(text)  # must not raise either
        return
    assert paths(tables) <= set(find_places(text).of)
