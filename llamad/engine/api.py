"""llama-server's HTTP API over its unix socket (or `TcpEndpoint`), as far as supervision needs it: health, properties,
warm-up.

One connection a question, closed after the answer: nothing is held open that could keep a stopping server alive.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any

from llamad.engine.build import Mode
from llamad.engine.endpoint import TcpEndpoint
from llamad.errors import ChildError
from llamad.frozen import dataclass

_HEAD_LIMIT_BYTES = 64 << 10
_BODY_LIMIT_BYTES = 16 << 20


class ApiError(ChildError):
    """llama-server did not answer as it must."""


class Unreachable(ApiError):
    """No socket, nobody listening, or the connection was closed before the answer was whole."""


class Late(ApiError):
    """No whole answer within the deadline."""


class Refused(ApiError):
    """An HTTP error. `status` is its code, `message` llama-server's own words."""

    def __init__(self, what: str, status: int, message: str) -> None:
        super().__init__(what, why=f"HTTP {status}: {message}")
        self.status = status
        self.message = message


class NotFinite(ApiError):
    """The model computed NaN or infinity: broken weights, or a device or driver that computes wrongly."""


class Health(StrEnum):
    """What `/health` says. It is served by a thread of its own and tells nothing of the compute loop."""

    UNREACHABLE = "unreachable"
    LOADING = "loading"
    READY = "ready"
    STRANGE = "strange"
    """An answer that is neither 200 nor 503, or none within the deadline."""


@dataclass(frozen=True)
class Props:
    """What `/props` tells of a loaded server."""

    slot_context_tokens: int
    slots: int
    model_path: str
    build: str


@dataclass(frozen=True)
class WarmUp:
    """A first answer of the model."""

    tokens: int
    """Prompt tokens that the server says it computed."""
    top: tuple[tuple[int, float], ...]
    """The likeliest next tokens and their log-probabilities; of an embedding the first components by index, of
    reranking the documents' scores. The same child gives the same answer again, a broken device another."""
    seconds: float


async def health(socket_path: str, deadline_s: float = 2.0) -> Health:
    """Whether the server is there and has its model. Never raises."""
    try:
        status, _ = await _ask(socket_path, "GET", "/health", None, deadline_s)
    except Unreachable:
        return Health.UNREACHABLE
    except ApiError:
        return Health.STRANGE
    return {200: Health.READY, 503: Health.LOADING}.get(status, Health.STRANGE)


async def props(socket_path: str, deadline_s: float = 2.0) -> Props:
    """Context and slots as the server has them. Raises ApiError."""
    answer = await ask_json(socket_path, "GET", "/props", None, deadline_s)
    try:
        return Props(
            int(answer["default_generation_settings"]["n_ctx"]),
            int(answer["total_slots"]),
            str(answer.get("model_path", "")),
            str(answer.get("build_info", "")),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ApiError(
            "cannot read llama-server's /props", why=f"{type(error).__name__}: {error}"
        ) from error


async def count_tokens(socket_path: str, path: str, body: bytes, deadline_s: float = 2.0) -> int:
    """The tokens of the prompt in `body`, as the endpoint at `path` counts them. Raises ApiError."""
    answer = await ask_json(socket_path, "POST", path, body, deadline_s)
    try:
        tokens = answer["tokens"] if path == "/tokenize" else answer["input_tokens"]
        return len(tokens) if isinstance(tokens, list) else int(tokens)
    except (LookupError, TypeError, ValueError) as error:
        raise ApiError(f"cannot read llama-server's {path}", why=f"{type(error).__name__}: {error}") from error


async def metrics(socket_path: str, deadline_s: float = 2.0) -> str:
    """llama-server's own figures, in Prometheus' text format. Raises ApiError."""
    status, raw = await _ask(socket_path, "GET", "/metrics", None, deadline_s)
    if status != 200:
        raise Refused("llama-server gives no metrics", status, raw[:200].decode("utf-8", "replace"))
    return raw.decode("utf-8", "replace")


async def busy_slots(socket_path: str, deadline_s: float = 2.0) -> int:
    """How many slots work on a request. Raises ApiError."""
    answer = await ask_json(socket_path, "GET", "/slots", None, deadline_s)
    try:
        return sum(bool(slot["is_processing"]) for slot in answer)
    except (LookupError, TypeError) as error:
        raise ApiError(
            "cannot read llama-server's /slots", why=f"{type(error).__name__}: {error}"
        ) from error


async def slot_figures(socket_path: str, deadline_s: float = 2.0) -> str:
    """The numbers of all slots as one text: tasks, tokens read, tokens written. Raises ApiError."""
    answer = await ask_json(socket_path, "GET", "/slots", None, deadline_s)
    return " ".join(_numbers(answer))


def _numbers(value: Any, depth: int = 0) -> Iterator[str]:
    """Whole numbers only: settings are fractions and words, and some servers tell times."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, dict | list) and depth < 8:
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner, depth + 1)


async def warm_up(
    socket_path: str,
    *,
    tokens: int,
    vocab_tokens: int,
    mode: Mode = "completion",
    deadline_s: float,
    top: int = 5,
) -> WarmUp:
    """Compute `tokens` prompt tokens and one answer, the first real work of a child. No text is involved.

    `tokens` must not be above the micro-batch, and below the context of a slot. Reranking takes text only, so
    there it is a bound. Raises NotFinite for NaN or infinity in the answer, other ApiErrors else.
    """
    started_s = asyncio.get_running_loop().time()
    path, body = _question(mode, tokens, vocab_tokens, top)
    answer = await ask_json(socket_path, "POST", path, body, deadline_s)
    try:
        counted, values = _answer(mode, answer)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ApiError(
            f"cannot read llama-server's {path}", why=f"{type(error).__name__}: {error}"
        ) from error
    if not values or not all(math.isfinite(value) for _, value in values):
        raise NotFinite(
            "the model's first answer is not a number",
            why=f"{mode} of {tokens} tokens gave {_sample(values)}",
            fix="check the model file (llamad verify), then the GPU and its driver",
        )
    return WarmUp(counted or tokens, tuple(values[:top]), asyncio.get_running_loop().time() - started_s)


def warm_up_ids(tokens: int, vocab_tokens: int) -> list[int]:
    """`tokens` different-looking ids from the middle of a vocabulary, the same ones every time.

    Every vocabulary keeps its special and unused tokens at its ends. They vary so that a mixture of experts
    touches many of them.
    """
    low, high = vocab_tokens // 8, max(vocab_tokens // 2, vocab_tokens // 8 + 1)
    return [low + (place * 7919) % (high - low) for place in range(tokens)]


def _question(mode: Mode, tokens: int, vocab_tokens: int, top: int) -> tuple[str, dict[str, object]]:
    if mode == "rerank":
        # A word is one to four tokens, and a document must fit the micro-batch with the query and separators.
        return "/v1/rerank", {"query": "the", "documents": ["the " * max(1, tokens // 5)]}
    ids = warm_up_ids(tokens, vocab_tokens)
    if mode == "embedding":
        return "/embedding", {"content": ids}
    return "/completion", {
        "prompt": ids,
        "n_predict": 1,
        "ignore_eos": True,  # an answer that ends at once has no probabilities to look at
        "n_probs": top,
        "temperature": 0,
        "cache_prompt": False,
        "response_fields": ["tokens_evaluated", "completion_probabilities"],
    }


def _answer(mode: Mode, answer: Any) -> tuple[int, list[tuple[int, float]]]:
    """Tokens counted (0 where the answer does not tell) and the values to check."""
    if mode == "rerank":
        scores = [(int(result["index"]), _number(result["relevance_score"])) for result in answer["results"]]
        return int(answer.get("usage", {}).get("prompt_tokens", 0)), scores
    if mode == "embedding":
        vector = answer[0]["embedding"]
        while vector and isinstance(vector[0], list):  # a row for each token where nothing is pooled
            vector = vector[-1]
        return 0, list(enumerate(map(_number, vector)))
    first = answer["completion_probabilities"][0]
    likely = first.get("top_logprobs") or [first]
    return int(answer.get("tokens_evaluated", 0)), [
        (int(one["id"]), _number(one["logprob"])) for one in likely
    ]


def _number(value: object) -> float:
    """JSON has no NaN and no infinity: llama-server writes null for both."""
    return math.nan if value is None else float(value)  # type: ignore[arg-type]


def _sample(values: Sequence[tuple[int, float]]) -> str:
    return ", ".join(f"{value:g}" for _, value in values[:3]) or "nothing"


async def ask_json(
    socket_path: str, method: str, path: str, body: dict[str, object] | bytes | None, deadline_s: float
) -> Any:
    """What llama-server answers, decoded. Raises ApiError; Refused for any status but 200."""
    status, raw = await _ask(socket_path, method, path, body, deadline_s)
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"llama-server's answer to {path} is no JSON", why=str(error)) from error
    if status != 200:
        raise Refused(f"llama-server refused {path}", status, _message(answer))
    return answer


def _message(answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    return str(error.get("message", "")) if isinstance(error, dict) else "no reason given"


async def _ask(
    socket_path: str, method: str, path: str, body: dict[str, object] | bytes | None, deadline_s: float
) -> tuple[int, bytes]:
    """Status and body of one answer."""
    try:
        async with asyncio.timeout(deadline_s):
            return await _exchange(socket_path, _request(method, path, body, _key(socket_path)))
    except TimeoutError as error:
        raise Late(f"llama-server did not answer {path} within {deadline_s:g} s") from error
    except (OSError, EOFError) as error:
        raise Unreachable(f"cannot reach llama-server for {path}", why=str(error)) from error
    except (ValueError, asyncio.LimitOverrunError) as error:
        raise ApiError(f"llama-server's answer to {path} is no HTTP", why=str(error)) from error


def _request(method: str, path: str, body: dict[str, object] | bytes | None, key: str) -> bytes:
    payload = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
    )
    if key:
        head += f"Authorization: Bearer {key}\r\n"
    return f"{head}\r\n".encode() + payload


def _key(endpoint: str) -> str:
    return endpoint.key if isinstance(endpoint, TcpEndpoint) else ""


async def _exchange(socket_path: str, request: bytes) -> tuple[int, bytes]:
    reader, writer = await _connect(socket_path)
    try:
        writer.write(request)
        await writer.drain()
        status_line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)
        }
        return _status(status_line), await _body(reader, headers)
    finally:
        writer.close()


async def _connect(endpoint: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(endpoint, TcpEndpoint):
        return await asyncio.open_connection(endpoint.host, endpoint.port, limit=_HEAD_LIMIT_BYTES)
    return await asyncio.open_unix_connection(endpoint, limit=_HEAD_LIMIT_BYTES)


def _status(line: str) -> int:
    version, _, rest = line.partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdigit()):
        raise ValueError(f"status line {line[:80]!r}")
    return int(code)


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return await _chunks(reader)
    if "content-length" in headers:
        return await reader.readexactly(_bounded(int(headers["content-length"])))
    body = await reader.read(_BODY_LIMIT_BYTES + 1)
    while more := await reader.read(_BODY_LIMIT_BYTES + 1):
        body += more
        _bounded(len(body))
    return body


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        body += (await reader.readexactly(_bounded(size) + 2))[:-2]
        _bounded(len(body))
    return body


def _bounded(size_bytes: int) -> int:
    if not 0 <= size_bytes <= _BODY_LIMIT_BYTES:
        raise ValueError(f"a body of {size_bytes} bytes")
    return size_bytes
