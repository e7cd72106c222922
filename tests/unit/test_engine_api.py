"""The API client against a socket that answers as the real server was seen to, and worse."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from llamad.engine.api import (
    ApiError,
    Health,
    Late,
    NotFinite,
    Refused,
    Unreachable,
    health,
    props,
    warm_up,
    warm_up_ids,
)
from llamad.engine.endpoint import TcpEndpoint

T = TypeVar("T")


def answer(body: object, status: str = "200 OK") -> bytes:
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nServer: llama.cpp\r\nContent-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
    return head.encode() + payload


class Answering:
    """A unix socket that gives every client the same bytes and keeps what it asked."""

    def __init__(self, path: Path, reply: bytes | None) -> None:
        self.path = str(path / "s.sock")
        self._reply = reply
        self.head = ""
        self.body: dict[str, object] = {}

    def run(self, question: Callable[[str], Awaitable[T]]) -> T:
        async def main() -> T:
            server = await asyncio.start_unix_server(self._client, self.path)
            try:
                return await question(self.path)
            finally:
                server.close()

        return asyncio.run(main())

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(self.head.lower().split("content-length:")[1].split("\r\n")[0])
            self.body = json.loads(await reader.readexactly(length) or b"{}")
            if self._reply is None:
                await reader.read()  # until the client gives up
            else:
                writer.write(self._reply)
        finally:
            writer.close()


def completion(*logprobs: float | None) -> dict[str, object]:
    likely = [{"id": 72 + n, "token": "i", "bytes": [105], "logprob": p} for n, p in enumerate(logprobs)]
    return {"tokens_evaluated": 512, "completion_probabilities": [{**likely[0], "top_logprobs": likely}]}


LOADING = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (answer({"status": "ok"}), Health.READY),
        (answer(LOADING, "503 Service Unavailable"), Health.LOADING),
        (answer({}, "404 Not Found"), Health.STRANGE),
        (b"", Health.UNREACHABLE),
        (b"HTTP/1.1 200 OK\r\nContent-Le", Health.UNREACHABLE),
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", Health.STRANGE),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", Health.STRANGE),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", Health.STRANGE),
    ],
)
def test_health(tmp_path: Path, reply: bytes, expected: Health) -> None:
    assert Answering(tmp_path, reply).run(health) is expected


def test_health_without_a_socket_or_an_answer(tmp_path: Path) -> None:
    assert asyncio.run(health(str(tmp_path / "none.sock"))) is Health.UNREACHABLE
    assert Answering(tmp_path, None).run(lambda path: health(path, 0.1)) is Health.STRANGE


def test_props(tmp_path: Path) -> None:
    body = {
        "default_generation_settings": {"n_ctx": 4096, "params": {}},
        "total_slots": 4,
        "model_path": "/srv/models/tiny.gguf",
        "build_info": "b11669-Debian",
    }
    found = Answering(tmp_path, answer(body)).run(props)
    assert (found.slot_context_tokens, found.slots, found.build) == (4096, 4, "b11669-Debian")


@pytest.mark.parametrize("body", [[], {}, {"default_generation_settings": 7}, b"\xff", b"[" * 100_000])
def test_props_that_make_no_sense(tmp_path: Path, body: object) -> None:
    with pytest.raises(ApiError):
        Answering(tmp_path, answer(body)).run(props)


def test_warm_up_asks_for_one_token_after_ids_and_keeps_the_likeliest(tmp_path: Path) -> None:
    server = Answering(tmp_path, answer(completion(-1.5, -2.25)))
    found = server.run(lambda path: warm_up(path, tokens=512, vocab_tokens=100_000, deadline_s=5))
    assert found.top == ((72, -1.5), (73, -2.25)) and found.tokens == 512 and found.seconds >= 0
    assert server.head.startswith("POST /completion HTTP/1.1\r\n")
    assert server.body["prompt"] == warm_up_ids(512, 100_000)
    assert (server.body["n_predict"], server.body["cache_prompt"]) == (1, False)


@pytest.mark.parametrize("logprobs", [(None, None), (-1.0, None), (math.nan,), (math.inf, -1.0)])
def test_nan_and_infinity_are_no_answer(tmp_path: Path, logprobs: tuple[float | None, ...]) -> None:
    with pytest.raises(NotFinite) as caught:
        Answering(tmp_path, answer(completion(*logprobs))).run(
            lambda path: warm_up(path, tokens=16, vocab_tokens=286, deadline_s=5)
        )
    assert "not a number" in caught.value.what


@pytest.mark.parametrize("shape", [[0.5, -0.25], [[0.5, -0.25]], [[9.0, 9.0], [0.5, -0.25]]])
def test_warm_up_of_an_embedding_server(tmp_path: Path, shape: object) -> None:
    server = Answering(tmp_path, answer([{"index": 0, "embedding": shape}]))
    found = server.run(
        lambda path: warm_up(path, tokens=8, vocab_tokens=286, mode="embedding", deadline_s=5)
    )
    assert found.top == ((0, 0.5), (1, -0.25)) and found.tokens == 8
    assert server.head.startswith("POST /embedding ")


def test_warm_up_of_a_reranker(tmp_path: Path) -> None:
    body = {"usage": {"prompt_tokens": 28}, "results": [{"index": 0, "relevance_score": 0.25}]}
    server = Answering(tmp_path, answer(body))
    found = server.run(lambda path: warm_up(path, tokens=512, vocab_tokens=286, mode="rerank", deadline_s=5))
    assert found.top == ((0, 0.25),) and found.tokens == 28
    assert 0 < len(str(server.body["documents"])) < 512 * 4


@pytest.mark.parametrize("mode", ["embedding", "rerank"])
def test_nan_of_the_other_modes(tmp_path: Path, mode: str) -> None:
    body = {
        "embedding": [{"index": 0, "embedding": [[None, None]]}],
        "rerank": {"results": [{"index": 0, "relevance_score": None}]},
    }[mode]
    with pytest.raises(NotFinite):
        Answering(tmp_path, answer(body)).run(
            lambda path: warm_up(path, tokens=8, vocab_tokens=286, mode=mode, deadline_s=5)  # type: ignore[arg-type]
        )


def test_refused_late_and_gone_are_told_apart(tmp_path: Path) -> None:
    def ask(path: str) -> Awaitable[object]:
        return warm_up(path, tokens=8, vocab_tokens=286, deadline_s=0.2)

    error = {
        "error": {"code": 400, "message": "Prompt contains invalid tokens", "type": "invalid_request_error"}
    }
    with pytest.raises(Refused) as refused:
        Answering(tmp_path, answer(error, "400 Bad Request")).run(ask)
    assert (refused.value.status, refused.value.message) == (400, "Prompt contains invalid tokens")
    with pytest.raises(Late, match="/completion within 0"):
        Answering(tmp_path, None).run(ask)
    with pytest.raises(Unreachable):
        Answering(tmp_path, b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{").run(ask)
    with pytest.raises(ApiError, match="cannot read"):
        Answering(tmp_path, answer({"completion_probabilities": []})).run(ask)


def test_a_chunked_answer_is_read_too(tmp_path: Path) -> None:
    body = json.dumps(completion(-1.5)).encode()
    chunked = b"%x\r\n%s\r\n%x;x=y\r\n%s\r\n0\r\n\r\n" % (10, body[:10], len(body) - 10, body[10:])
    reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked
    found = Answering(tmp_path, reply).run(
        lambda path: warm_up(path, tokens=8, vocab_tokens=286, deadline_s=5)
    )
    assert found.top == ((72, -1.5),)


@pytest.mark.parametrize("vocab", [1, 2, 9, 286, 32_000, 262_144])
def test_ids_stay_away_from_the_ends_of_the_vocabulary(vocab: int) -> None:
    ids = warm_up_ids(512, vocab)
    assert len(ids) == 512 and min(ids) >= vocab // 8 and max(ids) < max(vocab // 2, vocab // 8 + 1)
    assert vocab < 30_000 or len(set(ids)) == 512


def test_a_server_with_an_address_of_its_own_is_asked_there_with_its_key() -> None:
    heads: list[bytes] = []

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer({"status": "ok"}))
        writer.close()

    async def go() -> Health:
        server = await asyncio.start_server(client, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        assert await health(TcpEndpoint("127.0.0.1", port)) is Health.READY
        found = await health(TcpEndpoint("0.0.0.0", port, "mine", Path("/run/keys")))
        server.close()
        return found

    assert asyncio.run(go()) is Health.READY
    assert [b"Authorization: Bearer mine\r\n" in head for head in heads] == [False, True]
