"""Which model a request is for: bodies cut anywhere, against the standard library's own readers."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamad.front.routing import (
    NAME_BYTES,
    FormModel,
    JsonModel,
    Names,
    RoutingError,
    finder_for,
    model_in_query,
    model_of,
    split_upstream,
)

texts = st.text(max_size=30) | st.sampled_from(["model", '"model":"x"', "\\", '\\"', "{", "}", "[", "]", ",", ":"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(texts.filter(lambda key: key != "model"), values, max_size=5)
cuts = st.lists(st.integers(0, 400), max_size=8)


def pieces(data: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted({min(place, len(data)) for place in at}), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


def found(finder: Any, data: bytes, at: list[int]) -> str | None:
    for piece in pieces(data, at):
        finder.feed(piece)
    model: str | None = finder.model
    return model


@given(objects, texts, st.integers(0, 5), cuts, st.booleans(), st.sampled_from([None, 1]))
def test_the_model_of_any_object_cut_anywhere(
    rest: dict[str, Any], model: str, place: int, at: list[int], ascii_only: bool, indent: int | None
) -> None:
    rows = list(rest.items())
    rows.insert(min(place, len(rows)), ("model", model))
    body = json.dumps(dict(rows), ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    try:
        assert found(JsonModel(), body, at) == model
    except RoutingError:  # a lone surrogate that is written out is no UTF-8
        with pytest.raises(UnicodeDecodeError):
            body.decode()


@given(values, cuts)
def test_without_a_model_at_the_top_none_is_found(value: Any, at: list[int]) -> None:
    body = json.dumps({"messages": value, "metadata": {"model": "inner", "list": [{"model": "x"}]}}).encode()
    assert found(JsonModel(), body, at) is None


@given(objects, cuts)
def test_a_second_model_is_refused_wherever_it_is_cut(rest: dict[str, Any], at: list[int]) -> None:
    inner = json.dumps(rest)[1:-1]
    body = f'{{"model": "a"{", " + inner if inner else ""}, "mo\\u0064el": "b"}}'.encode()
    with pytest.raises(RoutingError) as refused:
        found(JsonModel(), body, at)
    assert (refused.value.status, refused.value.message) == (400, "`model` is there twice")


@given(st.binary(max_size=200), cuts)
def test_garbage_is_never_worse_than_an_answer_of_400(data: bytes, at: list[int]) -> None:
    for start in (b"", b'{"model":', b'{"a":', b'\xef\xbb\xbf{"model":"x"'):
        try:
            found(JsonModel(), start + data, at)
        except RoutingError as refused:
            assert refused.status == 400


def whole(body: bytes) -> object:
    try:
        return found(JsonModel(), body, [])
    except RoutingError as refused:
        return refused


@given(objects, texts, st.integers(0, 5), st.binary(max_size=40), st.sampled_from(["model", "mo\\u0064el", "Model"]))
def test_what_is_found_at_once_is_what_a_finder_finds(
    rest: dict[str, Any], model: str, place: int, tail: bytes, key: str
) -> None:
    rows = [json.dumps(name) + ":" + json.dumps(value) for name, value in rest.items()]
    rows.insert(min(place, len(rows)), f'"{key}":{json.dumps(model)}')
    bodies = ["{" + ",".join(rows) + "}", "{" + ",".join([*rows, f'"{key}":"b"']) + "}", json.dumps({"a": {"model": model}})]
    for body in (text.encode() for text in bodies):
        for data in (body, body + tail, b"\xef\xbb\xbf" + body, body.decode().encode("utf-16")):
            assert model_of(data) in (None, whole(data)), data


def test_an_ordinary_body_needs_no_finder() -> None:
    assert model_of(b'{"messages":[{"role":"user","content":"\\n say \\"model\\""}],"model":"phi4"}') == "phi4"
    assert model_of(b'{"model":"\\u4e00"}') == "\u4e00"
    for body in (b'{"model":1}', b'{"model":"a","model":"b"}', b'{"model":"a","\\u006dodel":"b"}', b'["model"]', b'{"model":"a"'):
        assert model_of(body) is None
    assert model_of(b'{"model":"%s"}' % (b"x" * 400)) is None  # whether it is too long, the finder says


@given(st.binary(max_size=200), cuts)
def test_pieces_find_what_the_whole_finds(data: bytes, at: list[int]) -> None:
    def outcome(places: list[int]) -> object:
        try:
            return found(JsonModel(), b'{"x":[' + data + b'],"model":"m"}', places)
        except RoutingError as refused:
            return refused.message

    assert outcome(at) == outcome([]) == outcome(list(range(300)))


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model":"phi4"}', "phi4"),
        (b'\xef\xbb\xbf {"model":"phi4"}', "phi4"),
        (b'{"m\\u006fdel":"phi4"}', "phi4"),
        (b'{"model":"a\\"b\\\\"}', 'a"b\\'),
        (b'{"model":"\\ud83d\\ude00"}', "\U0001f600"),
        (b'{"Model":"phi4"}', None),
        (b'{"a":"\\\\","model":"x"}', "x"),
        (b"[]", None),
        (b"", None),
        (b'"model"', None),
        (b"null", None),
        (b'{"a":1,"model":"x"', "x"),
    ],
)
def test_by_hand(body: bytes, model: str | None) -> None:
    assert found(JsonModel(), body, []) == model
    assert found(JsonModel(), body, list(range(len(body)))) == model


@pytest.mark.parametrize("value", [b"1", b"null", b'["a"]', b'{"a":"b"}', b'"\xff"', b'"a\nb"', b'"\\x"'])
def test_a_model_that_is_no_text_is_refused(value: bytes) -> None:
    with pytest.raises(RoutingError) as refused:
        JsonModel().feed(b'{"model": ' + value + b"}")
    assert refused.value.status == 400


def test_a_name_without_end_is_refused_and_a_key_without_end_is_not_kept() -> None:
    finder = JsonModel()
    finder.feed(b'{"model":"')
    with pytest.raises(RoutingError, match="longer than"):
        for _ in range(10):
            finder.feed(b"x" * (NAME_BYTES // 2))
    finder = JsonModel()
    finder.feed(b'{"')
    for _ in range(1000):
        finder.feed(b"k" * 1000)
        assert len(finder._text) <= NAME_BYTES + 1001
    finder.feed(b'":1,"model":"x"}')
    assert finder.model == "x"


def test_many_megabytes_of_any_kind_take_no_more_time_than_their_size() -> None:
    for body in (b"[" * (1 << 20), b'"' + b"\\n" * (1 << 19) + b'"', b"{" + b'"a":[],' * (1 << 17)):
        began_s = time.monotonic()
        finder = JsonModel()
        finder.feed(b'{"x":' + body)
        assert time.monotonic() - began_s < 20.0  # a machine that is shared: what is not linear takes hours


# --- forms ------------------------------------------------------------------------------------------------------


def form(parts: list[tuple[str, bytes]], boundary: bytes = b"xyz") -> bytes:
    rows = [
        b"--" + boundary + b'\r\nContent-Disposition: form-data; name="' + name.encode() + b'"\r\n\r\n' + content + b"\r\n"
        for name, content in parts
    ]
    return b"".join(rows) + b"--" + boundary + b"--\r\n"


@given(st.binary(max_size=300), cuts, st.booleans())
def test_the_field_of_a_form_before_or_behind_any_file(content: bytes, at: list[int], first: bool) -> None:
    if b"--xyz" in content:
        content = b""
    parts = [("file", content), ("language", b"en")]
    parts.insert(0 if first else 2, ("model", b"whisper"))
    assert found(FormModel(b"xyz"), form(parts), at) == "whisper"


@given(cuts)
def test_two_fields_of_a_form_are_refused(at: list[int]) -> None:
    with pytest.raises(RoutingError, match="twice"):
        found(FormModel(b"xyz"), form([("model", b"a"), ("file", b"\r\n--xy"), ("model", b"b")]), at)


def test_a_form_without_the_field_or_with_its_name_elsewhere() -> None:
    assert found(FormModel(b"xyz"), form([("file", b'name="model"\r\n\r\nx')]), []) is None
    assert found(FormModel(b"xyz"), form([("xmodel", b"a")]), []) is None
    head = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n\r\nx\r\n--xyz--'
    assert found(FormModel(b"xyz"), head, []) is None
    with pytest.raises(RoutingError, match="too long"):
        found(FormModel(b"xyz"), b"--xyz\r\n" + b"X: y\r\n" * 2000, [])
    with pytest.raises(RoutingError, match="longer than"):
        found(FormModel(b"xyz"), form([("model", b"a" * 5000)]), [])


@pytest.mark.parametrize(
    ("kind", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"\r\n--abc"),
        (b'Multipart/Form-Data; charset=utf-8; boundary="a b"', b"\r\n--a b"),
        (b"multipart/form-data;boundary=----WebKitFormBoundaryX", b"\r\n------WebKitFormBoundaryX"),
    ],
)
def test_boundaries(kind: bytes, boundary: bytes) -> None:
    finder = finder_for(kind)
    assert isinstance(finder, FormModel) and finder._delimiter == boundary


@pytest.mark.parametrize("kind", [b"multipart/form-data", b"multipart/mixed; boundary=a", b"multipart/form-data; boundary="])
def test_a_form_that_cannot_be_read_is_refused(kind: bytes) -> None:
    with pytest.raises(RoutingError):
        finder_for(kind)


@pytest.mark.parametrize("kind", [b"application/json", b"", b"application/x-www-form-urlencoded"])
def test_all_else_is_json(kind: bytes) -> None:
    assert isinstance(finder_for(kind), JsonModel)


# --- targets and names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/v1/chat/completions", None),
        (b"/upstream/phi4/props?a=b", ("phi4", b"/props?a=b")),
        (b"/upstream/phi4", ("phi4", b"/")),
        (b"/upstream/phi4?x=1", ("phi4", b"/?x=1")),
        (b"/upstream/phi%34/", ("phi4", b"/")),
    ],
)
def test_upstream_paths(target: bytes, expected: object) -> None:
    assert split_upstream(target) == expected


@pytest.mark.parametrize(
    "target",
    [b"/upstream/", b"/upstream//x", b"/upstream/../x", b"/upstream/%2e%2e/x", b"/upstream/a%2fb/x", b"/upstream/a%5cb/x",
     b"/upstream/phi4/../other/slots", b"/upstream/phi4/%2e%2e/x", b"/upstream/phi4/a%2f..%2fb"],
)  # fmt: skip
def test_paths_that_step_upwards_are_refused(target: bytes) -> None:
    with pytest.raises(RoutingError) as refused:
        split_upstream(target)
    assert refused.value.status in (400, 404)


def test_the_model_of_a_query() -> None:
    assert model_in_query(b"/props?model=phi4") == "phi4"
    assert model_in_query(b"/props?a=model&m%6fdel=a+b%2F") == "a b/"
    assert model_in_query(b"/props?models=x") is None
    assert model_in_query(b"/model") is None
    with pytest.raises(RoutingError, match="twice"):
        model_in_query(b"/props?model=a&model=b")


def test_names_go_before_aliases_and_the_first_has_an_alias_of_two() -> None:
    names = Names({"b": ["x", "a"], "a": ["y", "x"]})
    assert [names.find(model) for model in ("a", "b", "x", "y")] == ["a", "b", "a", "a"]
    with pytest.raises(RoutingError) as missing:
        names.find("nosuch\x1b[2J")
    assert (missing.value.status, missing.value.code) == (404, "model_not_found")
    assert missing.value.message == 'no model "nosuch?[2J" here; there is: a, b'
    with pytest.raises(RoutingError) as needed:
        names.only()
    assert (needed.value.status, needed.value.code) == (400, "model_required")
    assert Names({"only": []}).only() == "only"
    with pytest.raises(RoutingError, match="there are no models"):
        Names({}).only()
