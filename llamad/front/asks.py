"""What a request asks of the model, read from its body: at most how many tokens it takes of the cache. Pure.

A bound is enough while there is room: no token of a byte-level vocabulary is shorter than a byte of text, and the
text in a JSON body is never shorter there. Only where the bound does not fit is llama-server asked to count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from llamad.front.holding import Refusal
from llamad.front.nesting import parsed

UNKNOWN_TEMPLATE_TOKENS = 1024
"""What a chat template may add by itself, until llama-server has told what it does add."""
TOOLS_TEMPLATE_TOKENS = 1024
_ANSWER_KEYS = frozenset(("n", "n_cmpl"))
_NUMBERS = (int, float)
_MARGIN_TOKENS = 8  # the tokens that begin and end a prompt
_OUTPUT_KEYS = frozenset(("n_predict", "max_tokens", "max_completion_tokens", "max_output_tokens"))
_CHAT = "/v1/chat/completions/input_tokens"
_TEXT = "/tokenize"


class _Kind(NamedTuple):
    """What is done at a path: the key for the length of an answer ("" where there is none), where it is counted."""

    output_key: str
    count_path: str | None


_KINDS: dict[bytes, _Kind] = {
    b"/v1/chat/completions": _Kind("max_tokens", _CHAT),
    b"/chat/completions": _Kind("max_tokens", _CHAT),
    b"/v1/completions": _Kind("max_tokens", _TEXT),
    b"/completions": _Kind("n_predict", _TEXT),
    b"/completion": _Kind("n_predict", _TEXT),
    b"/infill": _Kind("n_predict", None),
    b"/v1/responses": _Kind("max_output_tokens", "/v1/responses/input_tokens"),
    b"/responses": _Kind("max_output_tokens", "/v1/responses/input_tokens"),
    b"/v1/messages": _Kind("max_tokens", "/v1/messages/count_tokens"),
    b"/v1/audio/transcriptions": _Kind("max_tokens", None),
    b"/audio/transcriptions": _Kind("max_tokens", None),
    b"/embedding": _Kind("", None),
    b"/embeddings": _Kind("", None),
    b"/v1/embeddings": _Kind("", None),
    b"/rerank": _Kind("", None),
    b"/reranking": _Kind("", None),
    b"/v1/rerank": _Kind("", None),
    b"/v1/reranking": _Kind("", None),
}
_AUDIO = frozenset((b"/v1/audio/transcriptions", b"/audio/transcriptions"))
_ID_SLOT = re.compile(
    rb'"(?:i|\\u0069)(?:d|\\u0064)(?:_|\\u005[fF])(?:s|\\u0073)(?:l|\\u006[cC])(?:o|\\u006[fF])(?:t|\\u0074)"'
    rb"[ \t\r\n]*:"
)
ID_SLOT_OVERLAP_BYTES = 256


@dataclass(frozen=True)
class TokenRules:
    """Bounds on tokens. None: no such bound.

    pool_tokens: the cache that all requests of a llama-server share; None where each slot has its own
    default_output_tokens: what an answer may have where the request does not say; None leaves it to llama-server
    max_output_tokens: what a request may ask for.  max_input_tokens: of a prompt.  max_total_tokens: of both
    note_streams: it matters whether an answer is to be events
    """

    pool_tokens: int | None = None
    default_output_tokens: int | None = None
    max_output_tokens: int | None = None
    max_input_tokens: int | None = None
    max_total_tokens: int | None = None
    note_streams: bool = False

    @cached_property
    def apply(self) -> bool:
        """Whether bodies must be read at all."""
        return self != _NO_RULES


_NO_RULES = TokenRules()


class Ask(NamedTuple):
    """What one request asks for.

    prompt_tokens: of all its prompts; a bound, or what was counted (`exact`)
    output_tokens: the most that each answer may have.  answers: how many are computed
    body: what is to be sent instead of what came; None where that is unchanged
    count_path: where llama-server counts the prompt; None where it cannot.  streams: the answer is to be events
    named: the request itself says how long the answer may be
    """

    prompt_tokens: int = 0
    output_tokens: int = 0
    answers: int = 1
    exact: bool = True
    body: bytes | None = None
    count_path: str | None = None
    streams: bool = False
    named: bool = True

    @property
    def tokens(self) -> int:
        """The most that it takes of the cache."""
        return self.prompt_tokens + self.output_tokens * self.answers


NOTHING = Ask()


def is_counted(path: bytes, method: bytes) -> bool:
    """Whether a request to this path takes tokens of the cache."""
    return method == b"POST" and path in _KINDS


def names_a_slot(body: bytes) -> bool:
    """Whether a key in `body` is `id_slot`, in whatever spelling JSON allows."""
    return (b"id_slot" in body or b"\\u00" in body) and _ID_SLOT.search(body) is not None


def read_ask(path: bytes, body: bytes, rules: TokenRules, template_tokens: int) -> Ask | Refusal:
    """What the request with this whole body asks for, or why it is refused. `is_counted` holds for its path.

    `id_slot` is dropped: which slot computes is not the client's to say. Where the request does not say how long
    its answer may be, the default is put in.
    """
    if path in _AUDIO:  # a form with a sound in it: nothing is known but that it fits alone
        return Ask(output_tokens=rules.pool_tokens or 0, exact=False)
    slot_named = names_a_slot(body)
    if not rules.apply and not slot_named:
        return NOTHING
    try:
        asked = parsed(body)
    except (ValueError, RecursionError) as error:
        if not rules.apply and not slot_named:
            return NOTHING  # for llama-server to refuse
        why = "it is nested too deeply" if isinstance(error, RecursionError) else "it is no valid JSON"
        return Refusal(400, "invalid_json", f"the body cannot be read: {why}; send one JSON object")
    if not isinstance(asked, dict):
        return NOTHING if not rules.apply else Refusal(400, "invalid_json", "the body is no JSON object; send one")
    kind = _KINDS[path]
    output_keys = [key for key in _OUTPUT_KEYS if key in asked] if kind.output_key else []
    output = _output(asked, output_keys, rules) if kind.output_key else 0
    if isinstance(output, Refusal):
        return output
    prompt = len(body) + _MARGIN_TOKENS + _added_by_template(asked, kind, template_tokens)
    useless = ["id_slot"] if slot_named else []
    if len(output_keys) > (output is not None):  # most requests have one, or none
        useless += [key for key in output_keys if not _is_count(asked[key])]
    dropped = [asked.pop(key) for key in useless if key in asked]
    default = rules.default_output_tokens
    new_body = None
    if output is None and default is not None:
        new_body = b'{"%b":%d%b' % (kind.output_key.encode(), default, _members(body, asked, intact=not dropped))
    elif dropped:
        new_body = _dump(asked)
    most = output if output is not None else default if default is not None else rules.pool_tokens or 0
    streams = asked.get("stream") is True
    return Ask(prompt, most, _answers(asked, kind), False, new_body, kind.count_path, streams, output is not None)


def counting_body(path: str, body: bytes) -> bytes | None:
    """What to ask llama-server at `count_path` for the prompt in `body`; None where nothing can be asked."""
    if path != _TEXT:
        return body
    prompt = json.loads(body).get("prompt")
    if isinstance(prompt, str):
        return json.dumps({"content": prompt, "add_special": True, "parse_special": True}).encode()
    return None


def with_output(body: bytes, path: bytes, output_tokens: int) -> bytes:
    """`body` with another length of the answer put in."""
    asked = json.loads(body)
    asked[_KINDS[path].output_key] = output_tokens
    return _dump(asked)


def beyond_limits(ask: Ask, rules: TokenRules) -> Refusal | None:
    """Why a request is longer than the limits allow, or None. Certain only where it was counted."""
    limit = rules.max_input_tokens
    if limit is not None and ask.prompt_tokens > limit:
        message = (
            f"the prompt has {ask.prompt_tokens} tokens, and {limit} are allowed; shorten it"
            " ([limits] max_input_tokens)"
        )
        return Refusal(400, "context_length_exceeded", message)
    limit = rules.max_total_tokens
    if limit is not None and ask.prompt_tokens + (ask.output_tokens if ask.named else 1) > limit:
        message = (
            f"the prompt has {ask.prompt_tokens} tokens and the answer may have {ask.output_tokens}, and {limit} are"
            " allowed together; shorten the prompt, or ask for a lower max_tokens ([limits] max_total_tokens)"
        )
        return Refusal(400, "context_length_exceeded", message)
    return None


def _output(asked: dict[str, Any], keys: Iterable[str], rules: TokenRules) -> int | Refusal | None:
    """The most tokens that the request says an answer may have, under these keys; None where it does not say."""
    named = [int(asked[key]) for key in keys if _is_count(asked[key])]
    if not named:
        return None
    limit = rules.max_output_tokens
    if limit is not None and max(named) > limit:
        message = (
            f"max_tokens is {max(named)}, and an answer may have {limit}; ask for at most {limit}"
            " ([limits] max_output_tokens)"
        )
        return Refusal(400, "max_tokens_too_large", message)
    return max(named)


def _members(body: bytes, asked: dict[str, Any], *, intact: bool) -> bytes:
    """What follows the first member of the object `asked`, which came as `body`: byte for byte, where it may."""
    if not asked:
        return b"}"
    at = body.find(b"{") + 1
    return b"," + (body[at:] if intact else _dump(asked)[1:])


def _dump(asked: dict[str, Any]) -> bytes:
    return json.dumps(asked, separators=(",", ":")).encode()


def _is_count(value: object) -> bool:
    """Whether a value bounds the length of an answer: -1 and null do not."""
    return isinstance(value, _NUMBERS) and value is not True and value is not False and 0 <= value < 2**31


def _answers(asked: dict[str, Any], kind: _Kind) -> int:
    """How many are computed: `n`, for each of several prompts."""
    counts = [int(asked[key]) for key in _ANSWER_KEYS if key in asked and _is_count(asked[key])]
    prompts = asked.get("prompt")
    if not counts and prompts is None:
        return 1
    several = kind.count_path == _TEXT and isinstance(prompts, list) and not all(map(_is_count, prompts))
    return max([1, *counts]) * (len(prompts) if several and isinstance(prompts, list) else 1)


def _added_by_template(asked: dict[str, Any], kind: _Kind, template_tokens: int) -> int:
    if kind.count_path in (None, _TEXT):
        return 0
    return template_tokens + (TOOLS_TEMPLATE_TOKENS if asked.get("tools") else 0)
