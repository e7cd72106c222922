"""A request that llamad itself answers, but not at once: figures to be gathered, an order of the admin."""

from __future__ import annotations

import asyncio
from typing import Protocol

from llamad.front.answers import Answer, error
from llamad.front.head import RequestHead
from llamad.front.refuse import record_local
from llamad.front.reply import ClientSide, Reply
from llamad.front.settings import Outcome
from llamad.front.shared import Shared

METRICS_PATH = b"/metrics"
ADMIN_PREFIX = b"/admin/"
_BODY_BYTES = 64 * 1024


class LocalService(Protocol):
    """What the owner of the address answers."""

    async def metrics(self) -> bytes:
        """The figures of all models here, in Prometheus' text format."""
        ...

    async def admin(self, order: str, body: bytes, request_id: bytes) -> Answer:
        """Carry out an order of the admin: the part of the path behind `/admin/`."""
        ...


def is_errand(head: RequestHead) -> bool:
    """Whether the request is for llamad itself."""
    return head.path == METRICS_PATH or head.path.startswith(ADMIN_PREFIX)


class Errand:
    """One such request. To the client's connection it looks like an exchange."""

    def __init__(
        self, shared: Shared, local: LocalService, client: ClientSide, request: RequestHead, request_id: bytes
    ) -> None:
        self.reply = Reply(client, request, request_id)
        self._shared = shared
        self._local = local
        self._client = client
        self._request = request
        self._request_id = request_id
        self._body = b""
        self._task: asyncio.Task[None] | None = None
        self._done = False

    def body(self, piece: bytes, *, complete: bool) -> None:
        """More of the request's body."""
        self._body += piece
        if len(self._body) > _BODY_BYTES:
            self.refuse_body(413, "body_too_large", f"the body is longer than {_BODY_BYTES} bytes")
        elif complete and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
            self._shared.errands.add(self._task)
            self._task.add_done_callback(self._shared.errands.discard)

    def client_gone(self) -> None:
        """The client has closed its connection. What was ordered is done all the same."""
        self._done = True

    def refuse_body(self, status: int, code: str, message: str) -> None:
        """The rest of the request's body cannot be accepted."""
        self._answer(error(status, code, message, self._request_id), Outcome.REFUSED)

    def client_full(self, full: bool) -> None:
        """Nothing to do: the answer is written in one piece."""

    def tick(self, now_s: float) -> None:
        """Nothing to do: the service has deadlines of its own."""

    async def _run(self) -> None:
        request = self._request
        reading = request.method in (b"GET", b"HEAD")
        if request.path == METRICS_PATH:
            answer = _wrong_method(self._request_id) if not reading else _metrics(await self._local.metrics())
        else:
            order = request.path[len(ADMIN_PREFIX) :].decode("utf-8", "replace")
            if reading is not (order == "status"):
                answer = _wrong_method(self._request_id)
            else:
                answer = await self._local.admin(order, self._body, self._request_id)
        self._answer(answer, Outcome.LOCAL)

    def _answer(self, answer: Answer, outcome: Outcome) -> None:
        if self._done:
            return
        self._done = True
        record_local(self._shared.observer, self._request, answer, self._request_id, outcome)
        self.reply.give(answer)
        self._client.exchange_over(self.reply.keep_alive)


def _metrics(text: bytes) -> Answer:
    return Answer(200, text, kind=b"text/plain; version=0.0.4; charset=utf-8")


def _wrong_method(request_id: bytes) -> Answer:
    message = "figures and /admin/status are for GET, the admin's orders for POST"
    return error(405, "method_not_allowed", message, request_id)
