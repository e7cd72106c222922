"""One request to an address with several models: its body is read until the model is known, then it goes its lane.

Until then it answers for itself; from then on it hands everything to the exchange, but for what is wrong in the rest
of the body.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from llamad.front.answers import Answer, error
from llamad.front.exchange import Exchange
from llamad.front.head import RequestHead
from llamad.front.lane import Lane
from llamad.front.refuse import record_local
from llamad.front.reply import ClientSide, Reply
from llamad.front.routing import Finder, JsonModel, RoutingError, finder_for, model_of
from llamad.front.settings import Outcome
from llamad.front.shared import Shared


class Routed(NamedTuple):
    """What the head of a request says of where it goes."""

    head: RequestHead
    """As the model's server is to see it."""
    path: bytes | None
    """Where the address itself answers; None for a request to a model."""
    model: str | None = None
    """The model's name, where the head has it; else it is in the body."""
    problem: RoutingError | None = None


class Choice:
    """See the module. To the client's connection it is an exchange."""

    _exchange: Exchange | None = None
    _finder: Finder | None = None
    _done = False
    _size_bytes = 0

    def __init__(
        self,
        shared: Shared,
        lane_for: Callable[[str | None, RequestHead], Lane],
        routed: Routed,
        client: ClientSide,
        request_id: bytes,
        begun_s: float,
    ) -> None:
        """`lane_for` finds the lane of a model's name (None: of no name), or raises RoutingError."""
        self._lane_for = lane_for
        self._shared = shared
        self._routed = routed
        self._client = client
        self._request_id = request_id
        self._begun_s = begun_s
        self._reply = Reply(client, routed.head, request_id)
        self._pieces: list[bytes] = []

    @property
    def reply(self) -> Reply:
        """The answer, as far as there is one."""
        return self._exchange.reply if self._exchange is not None else self._reply

    def body(self, piece: bytes, *, complete: bool) -> None:
        """More of the request's body; `complete` with the last of it (which may be empty)."""
        if self._done:
            return
        try:
            self._look_into(piece, complete=complete)
            if self._exchange is None:
                self._choose(piece, complete=complete)
                return
        except RoutingError as problem:
            self._fail(problem)
            return
        self._exchange.body(piece, complete=complete)

    def client_gone(self) -> None:
        """The client has closed its connection, or broken the protocol."""
        self._give_back()
        if self._exchange is not None:
            self._exchange.client_gone()
        elif not self._done:
            self._done = True
            self._record(Answer(0, None), Outcome.CLIENT_GONE)

    def refuse_body(self, status: int, code: str, message: str) -> None:
        """The rest of the request's body cannot be accepted."""
        self._fail(RoutingError(status, code, message))

    def client_full(self, full: bool) -> None:
        """Whether the client's buffer is full."""
        if self._exchange is not None:
            self._exchange.client_full(full)

    def tick(self, now_s: float) -> None:
        """About once a second."""
        if self._exchange is not None:
            self._exchange.tick(now_s)

    # --- inside ----------------------------------------------------------------------------------------------

    def _look_into(self, piece: bytes, *, complete: bool) -> None:
        """Find the model in the body, and a second one behind it. Raises RoutingError."""
        routed = self._routed
        if routed.problem is not None:
            raise routed.problem
        if routed.model is not None or not piece:
            return
        if self._finder is None:
            kinds = [field.value for field in routed.head.fields if field.key == b"content-type"]
            self._finder = finder_for(kinds[0] if len(kinds) == 1 else b"")
            if complete and isinstance(self._finder, JsonModel) and (model := model_of(piece)) is not None:
                self._finder.model = model
                return
        self._finder.feed(piece)

    def _choose(self, piece: bytes, *, complete: bool) -> None:
        """Go the lane of the model, as soon as it is known which. Raises RoutingError."""
        model = self._routed.model
        if model is None and self._finder is not None:
            model = self._finder.model
        if model is None and not complete:
            self._keep(piece)
            return
        shared, head = self._shared, self._routed.head
        lane = self._lane_for(model, head)
        body = b"".join((*self._pieces, piece))
        self._give_back()
        self._exchange = Exchange(shared, lane, self._client, head, self._request_id, self._begun_s)
        self._exchange.body(body, complete=complete)

    def _keep(self, piece: bytes) -> None:
        """Keep what has come, in the memory that all bodies share. Raises RoutingError where that is full."""
        memory, eager_bytes = self._shared.memory, self._shared.settings.eager_bytes
        if memory.is_full and self._size_bytes + len(piece) > eager_bytes:
            message = "too many large requests at once; one that names `model` first in its body needs less memory"
            raise RoutingError(503, "busy", message)
        self._pieces.append(piece)
        self._size_bytes += len(piece)
        memory.held_bytes += len(piece)

    def _give_back(self) -> None:
        self._shared.memory.held_bytes -= self._size_bytes
        self._size_bytes = 0
        self._pieces = []

    def _fail(self, problem: RoutingError) -> None:
        self._give_back()
        if self._exchange is not None:
            self._exchange.refuse_body(problem.status, problem.code, problem.message)
        elif not self._done:
            self._done = True
            retry_after_s = self._shared.settings.retry_after_s if problem.status == 503 else None
            self._reply.fail(problem.status, problem.code, problem.message, retry_after_s)
            answer = error(problem.status, problem.code, problem.message, self._request_id)
            self._record(answer, Outcome.REFUSED)
            self._client.exchange_over(self._reply.keep_alive)

    def _record(self, answer: Answer, outcome: Outcome) -> None:
        record_local(self._shared.observer, self._routed.head, answer, self._request_id, outcome)
