"""Answers made here, in the shapes that OpenAI's and llama-server's clients know. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from http import HTTPStatus
from typing import Any

from llamad.front.head import RequestHead
from llamad.front.holding import Admission
from llamad.front.routing import RoutingError, model_in_query
from llamad.front.settings import FrontSettings, ModelDescription
from llamad.frozen import dataclass

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}
_VISIBLE = re.compile(rb"[\x21-\x7e]{1,512}")
HEALTH_PATHS = frozenset((b"/health", b"/v1/health", b"/ready"))
MODELS_PATHS = frozenset((b"/v1/models", b"/models"))
_LOCAL_PATHS = HEALTH_PATHS | MODELS_PATHS
_MODEL_PREFIX = b"/v1/models/"


@dataclass(frozen=True)
class Answer:
    """A whole answer: status, body (None for none), further header lines, each with its CRLF, and the body's kind."""

    status: int
    body: bytes | None
    lines: tuple[bytes, ...] = field(default=())
    kind: bytes = b"application/json; charset=utf-8"
    is_shared: bool = True
    """Whether a page of another origin may read it."""

    def render(self, head: RequestHead | None, request_id: bytes, *, keep_alive: bool) -> bytes:
        """The bytes for a client. `head` None: the request had no readable head."""
        own = [b"HTTP/1.1 %d %b\r\n" % (self.status, HTTPStatus(self.status).phrase.encode()), *self.lines]
        if self.body is None:
            own.append(b"Content-Length: 0\r\n")
        else:
            own.append(
                b"Content-Type: %b\r\nContent-Length: %d\r\n" % (self.kind, len(self.body))
            )
        own += _common_lines(head, request_id, keep_alive=keep_alive, is_shared=self.is_shared)
        own.append(b"\r\n")
        if self.body is not None and (head is None or head.method != b"HEAD"):
            own.append(self.body)
        return b"".join(own)


def _common_lines(
    head: RequestHead | None, request_id: bytes, *, keep_alive: bool, is_shared: bool
) -> list[bytes]:
    """The header lines that every answer carries: id, CORS, and what becomes of the connection."""
    lines = [b"X-Request-Id: ", request_id, b"\r\n"]
    if is_shared and head is not None and head.origin is not None and _VISIBLE.fullmatch(head.origin):
        lines += (b"Access-Control-Allow-Origin: ", head.origin, b"\r\nVary: Origin\r\n")
    if not keep_alive:
        lines.append(b"Connection: close\r\n")
    elif head is not None and head.minor == 0:
        lines.append(b"Connection: keep-alive\r\n")
    return lines


def error_body(status: int, code: str, message: str, request_id: bytes) -> bytes:
    """OpenAI's error object."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "code": code, "request_id": request_id.decode()}
    return json.dumps({"error": error}).encode()


def error(
    status: int, code: str, message: str, request_id: bytes, *, retry_after_s: float | None = None
) -> Answer:
    """An error as a whole answer."""
    lines: tuple[bytes, ...] = ()
    if retry_after_s is not None:
        lines = (b"Retry-After: %d\r\n" % max(1, round(retry_after_s)),)
    if status == 401:
        lines += (b"WWW-Authenticate: Bearer\r\n",)
    return Answer(status, error_body(status, code, message, request_id), lines)


def error_event(code: str, message: str, request_id: bytes) -> bytes:
    """The last event of a stream that cannot go on."""
    error = {"message": message, "type": "server_error", "code": code, "request_id": request_id.decode()}
    return b"data: " + json.dumps({"error": error}).encode() + b"\n\n"


def local_path(head: RequestHead) -> bytes | None:
    """The path where llamad itself answers, or None where the request is llama-server's."""
    path = head.path
    if path in _LOCAL_PATHS or path.startswith(_MODEL_PREFIX):
        return path
    return b"*" if head.target == b"*" else None


def is_public(path: bytes | None, head: RequestHead) -> bool:
    """Whether no key is asked: health, and what a browser asks before it may send a key."""
    return path in HEALTH_PATHS or head.method == b"OPTIONS"


def answer_locally(
    path: bytes,
    head: RequestHead,
    request_id: bytes,
    *,
    admission: Admission,
    settings: FrontSettings,
    describe: Callable[[], ModelDescription],
) -> Answer:
    """The answer for a `local_path`."""
    if head.method == b"OPTIONS":
        return Answer(204, None, OPTIONS_LINES)
    if head.method not in (b"GET", b"HEAD"):
        return not_allowed(path, request_id)
    if path in HEALTH_PATHS:
        return _health(head, request_id, admission, settings, describe)
    model = describe()
    entries = entries_of(settings, model)
    if path in MODELS_PATHS:
        return list_answer(entries)
    wanted = wanted_model(path)
    if found := model_answer(entries, wanted):
        return found
    message = f'no model "{wanted}" here; there is: {", ".join(entry["id"] for entry in entries)}'
    return error(404, "model_not_found", message, request_id)


def _health(
    head: RequestHead,
    request_id: bytes,
    admission: Admission,
    settings: FrontSettings,
    describe: Callable[[], ModelDescription],
) -> Answer:
    try:
        wanted = model_in_query(head.target)
    except RoutingError as problem:
        return error(problem.status, problem.code, problem.message, request_id)
    if wanted is None:
        return OK if admission is Admission.PASSED else _LOADING
    if wanted not in (settings.name, *settings.aliases):
        return no_such_model(request_id)
    return model_health(settings.name, admission, describe(), request_id)


def model_health(name: str, admission: Admission, model: ModelDescription, request_id: bytes) -> Answer:
    """Health of one model, for a load balancer: 200 where a request would be answered by it now, else 503. In either
    case `requests` says what becomes of one: `passed`, `held` (it waits, and has the model loaded) or `refused`.
    """
    if model.is_held_elsewhere and admission is Admission.PASSED:
        admission = Admission.HELD
    told = {"model": name, "state": model.state, "requests": str(admission)}
    if admission is Admission.PASSED:
        return Answer(200, json.dumps({"status": "ok", **told}).encode())
    message = f"{name} is {model.state}: requests {'wait' if admission is Admission.HELD else 'are refused'}"
    wrong = json.loads(error_body(503, "model_not_ready", message, request_id))
    return Answer(503, json.dumps({**wrong, **told}).encode())


def no_such_model(request_id: bytes) -> Answer:
    """Health of a model that is not here. It names no others: nobody needs a key to ask."""
    return error(404, "model_not_found", "there is no such model here", request_id)


def entries_of(settings: FrontSettings, model: ModelDescription) -> list[dict[str, Any]]:
    """A model's entries of `/v1/models`: one for its name and one for each alias."""
    return [model_entry(name, settings, model) for name in (settings.name, *settings.aliases)]


def list_answer(entries: Sequence[Mapping[str, Any]]) -> Answer:
    """The whole of `/v1/models`."""
    return Answer(200, json.dumps({"object": "list", "data": entries}).encode())


def wanted_model(path: bytes) -> str:
    """The name that a path below `/v1/models` ends with."""
    return path[len(_MODEL_PREFIX) :].decode("utf-8", "replace")


def model_answer(entries: Sequence[Mapping[str, Any]], wanted: str) -> Answer | None:
    """The entry of that name; None where there is none."""
    return next((Answer(200, json.dumps(one).encode()) for one in entries if one["id"] == wanted), None)


def not_allowed(path: bytes, request_id: bytes) -> Answer:
    """The answer to another method than a `local_path` has."""
    message = f"{path.decode('utf-8', 'replace')} is for GET and HEAD"
    wrong = error(405, "method_not_allowed", message, request_id)
    return Answer(wrong.status, wrong.body, (b"Allow: GET, HEAD, OPTIONS\r\n",))


def model_entry(name: str, settings: FrontSettings, model: ModelDescription) -> dict[str, Any]:
    """One entry of `/v1/models`."""
    return {
        "id": name,
        "object": "model",
        "created": model.created_s,
        "owned_by": "llamad",
        "aliases": list(settings.aliases) if name == settings.name else [],
        "meta": {
            "n_ctx": model.context_tokens,
            "n_ctx_train": model.trained_context_tokens,
            "size": model.size_bytes,
            "state": model.state,
        },
    }


OK = Answer(200, b'{"status":"ok"}')
_LOADING = Answer(503, b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}')
OPTIONS_LINES = (
    b"Allow: GET, HEAD, POST, OPTIONS\r\n",
    b"Access-Control-Allow-Methods: GET, HEAD, POST, OPTIONS\r\n",
    b"Access-Control-Allow-Headers: *, Authorization, X-Api-Key, Content-Type\r\n",
)
