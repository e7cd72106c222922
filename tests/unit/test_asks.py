"""What a request asks for, read from its body: bounds that hold, defaults that are put in, keys that are dropped."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from llamad.front.asks import (
    NOTHING,
    Ask,
    TokenRules,
    beyond_limits,
    counting_body,
    is_counted,
    names_a_slot,
    read_ask,
    with_output,
)
from llamad.front.holding import Refusal

CHAT = b"/v1/chat/completions"
POOL = TokenRules(pool_tokens=4096, default_output_tokens=512)


def read(body: object, path: bytes = CHAT, rules: TokenRules = POOL, template_tokens: int = 10) -> Ask:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    ask = read_ask(path, data, rules, template_tokens)
    assert isinstance(ask, Ask), ask
    return ask


def refused(body: object, rules: TokenRules = POOL, path: bytes = CHAT) -> Refusal:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    refusal = read_ask(path, data, rules, 10)
    assert isinstance(refusal, Refusal), refusal
    return refusal


def sent(ask: Ask) -> dict[str, Any]:
    assert ask.body is not None
    body = json.loads(ask.body)
    assert isinstance(body, dict)
    return body


def test_the_bound_is_never_below_the_bytes_of_the_text() -> None:
    draw = random.Random(3)
    for _ in range(300):
        text = "".join(chr(draw.choice((34, 92, 10, 65, 233, 0x4E2D, 0x1F600))) for _ in range(draw.randrange(80)))
        for ascii_only in (True, False):
            body = json.dumps({"prompt": text, "max_tokens": 1}, ensure_ascii=ascii_only).encode()
            assert read(body, b"/v1/completions").prompt_tokens >= len(text.encode())


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (CHAT, "max_tokens"), (b"/v1/completions", "max_tokens"), (b"/completion", "n_predict"),
        (b"/infill", "n_predict"), (b"/v1/responses", "max_output_tokens"), (b"/v1/messages", "max_tokens"),
    ],
)  # fmt: skip
def test_where_a_request_does_not_say_the_default_is_put_in(path: bytes, key: str) -> None:
    ask = read({"prompt": "x", "temperature": 0.10000000000000001}, path)
    assert sent(ask) == {key: 512, "prompt": "x", "temperature": 0.1}
    assert (ask.output_tokens, ask.named) == (512, False)
    assert sent(read({}, path)) == {key: 512}
    assert sent(read(b' { } ', path)) == {key: 512}
    for no_bound in (-1, None, "7", True):
        assert sent(read({"prompt": "x", "max_tokens": no_bound}, path))[key] == 512


def test_what_came_is_sent_byte_for_byte_but_for_the_default() -> None:
    body = b' {"a": 1.10, "b":"\\u00e9", "c": 12345678901234567890123}'
    assert read(body).body == b'{"max_tokens":512,"a": 1.10, "b":"\\u00e9", "c": 12345678901234567890123}'


def test_a_bound_of_the_request_is_taken_as_it_is() -> None:
    for key in ("max_tokens", "max_completion_tokens", "n_predict", "max_output_tokens"):
        ask = read({key: 7})
        assert (ask.output_tokens, ask.body, ask.named) == (7, None, True)
    assert sent(read({"n_predict": -1, "max_tokens": 7})) == {"max_tokens": 7}
    assert read({"max_tokens": 7, "max_completion_tokens": 9}).output_tokens == 9


def test_several_answers_take_their_tokens_each() -> None:
    assert read({"max_tokens": 7, "n": 3}).answers == 3
    assert read({"max_tokens": 7, "prompt": ["a", "b"], "n_cmpl": 2}, b"/v1/completions").answers == 4
    ask = read({"max_tokens": 7, "prompt": [1, 2, 3]}, b"/v1/completions")
    assert ask.answers == 1 and ask.tokens == ask.prompt_tokens + 7
    assert read({"input": ["a", "b"]}, b"/v1/embeddings").output_tokens == 0


def test_tools_and_templates_add_tokens() -> None:
    plain = read({"max_tokens": 1, "messages": []}, template_tokens=100).prompt_tokens
    assert plain == read({"max_tokens": 1, "messages": []}, template_tokens=0).prompt_tokens + 100
    assert read({"max_tokens": 1, "messages": [], "tools": [{}]}, template_tokens=100).prompt_tokens > plain + 1000


def test_the_slot_is_not_for_clients_to_choose() -> None:
    spellings = (b'{"id_slot": 1, "a": 2}', b'{"a": 2, "\\u0069d_sl\\u006Ft" : 1}', b'{"a":2,"id_slot":null}')
    for rules in (TokenRules(), POOL):
        for body in spellings:
            assert "id_slot" not in sent(read(body, rules=rules)) and sent(read(body, rules=rules))["a"] == 2
    assert read(b'{"a": "id_slot"}', rules=TokenRules()) == NOTHING
    assert not names_a_slot(b'{"a": "say \\"id_slot\\": 1"}')
    assert refused(b'{"id_slot": 1', TokenRules()).code == "invalid_json"


def test_without_rules_nothing_is_read() -> None:
    assert read(b"no json at all", rules=TokenRules()) == NOTHING
    assert not is_counted(b"/tokenize", b"POST") and not is_counted(CHAT, b"GET")


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"nul", b"\xff{}", b'{"a":' * 100_000, b"1" * 5000])
def test_what_cannot_be_read_is_refused_where_tokens_matter(body: bytes) -> None:
    refusal = refused(body)
    assert (refusal.status, refusal.code) == (400, "invalid_json") and "send" in refusal.message


def test_limits_and_what_to_do() -> None:
    rules = TokenRules(max_output_tokens=100, max_input_tokens=50, max_total_tokens=120)
    refusal = refused({"max_tokens": 101}, rules)
    assert (refusal.status, refusal.code) == (400, "max_tokens_too_large")
    assert "ask for at most 100 ([limits] max_output_tokens)" in refusal.message
    long = Ask(prompt_tokens=51, output_tokens=1)
    assert "max_input_tokens" in str(beyond_limits(long, rules))
    both = Ask(prompt_tokens=50, output_tokens=71)
    assert "max_total_tokens" in str(beyond_limits(both, rules))
    assert beyond_limits(both._replace(output_tokens=70), rules) is None
    assert beyond_limits(both._replace(named=False), rules) is None  # the default gives way
    assert json.loads(with_output(b'{"max_tokens":512}', CHAT, 70)) == {"max_tokens": 70}


def test_what_is_counted() -> None:
    assert counting_body("/v1/chat/completions/input_tokens", b"{}") == b"{}"
    body = counting_body("/tokenize", b'{"prompt":"abc"}')
    assert body is not None and json.loads(body)["content"] == "abc"
    assert counting_body("/tokenize", b'{"prompt":["abc"]}') is None


def test_a_sound_is_served_alone() -> None:
    assert read(b"--boundary", b"/v1/audio/transcriptions").tokens == 4096
