"""Admission by tokens: what requests ask of the cache that they share, and llama-server's own count where a bound is
not good enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from llamad.front.asks import (
    NOTHING,
    UNKNOWN_TEMPLATE_TOKENS,
    Ask,
    TokenRules,
    beyond_limits,
    counting_body,
    is_counted,
    read_ask,
    with_output,
)
from llamad.front.head import RequestHead
from llamad.front.holding import Refusal

Count = Callable[[str, str, bytes], Awaitable[int | None]]
"""Asks the llama-server at a socket: (socket, path, body) gives the tokens of the prompt, or None. Never raises."""
_PROBE = b'{"messages":[{"role":"user","content":"x"}]}'
_PROBE_PATH = "/v1/chat/completions/input_tokens"


class Asker(Protocol):
    """A request whose tokens may be counted."""

    ask: Ask

    def counting_question(self) -> tuple[str, bytes] | None:
        """Path and body that llama-server counts; None where that is not possible (any more)."""
        ...

    def recounted(self) -> None:
        """`ask` has changed, or it is settled that it cannot be counted."""
        ...


class Admission:
    """See the module. One for each lane; everything is used on the loop only."""

    def __init__(self, rules: TokenRules, count: Count) -> None:
        self._written = rules
        self.rules = rules
        self._count = count
        self._path = ""
        self._pool_tokens: int | None = None
        self._default_output_tokens: int | None = None
        self._template_tokens = UNKNOWN_TEMPLATE_TOKENS
        self._tasks: set[asyncio.Task[None]] = set()
        self._wanted: list[Asker] = []

    def apply(self, rules: TokenRules) -> None:
        """Other limits from the next request on. What belongs to llama-server stays as it is."""
        self._written = rules
        self._combine()

    def opened(self, upstream_path: str, pool_tokens: int | None, default_output_tokens: int | None) -> None:
        """Requests go to this llama-server from now on: `pool_tokens` is the cache that they share."""
        self._path = upstream_path
        self._pool_tokens, self._default_output_tokens = pool_tokens, default_output_tokens
        self._combine()
        self._template_tokens = UNKNOWN_TEMPLATE_TOKENS
        if pool_tokens is not None:
            self._spawn(self._learn_template(upstream_path))

    def read(self, head: RequestHead, body: bytes) -> Ask | Refusal:
        """What a request asks for, or why it is refused."""
        if not is_counted(head.path, head.method):
            return NOTHING
        return read_ask(head.path, body, self.rules, self._template_tokens)

    def unread(self, head: RequestHead) -> Ask:
        """What a request asks for whose body is too long to be kept until it is whole."""
        if not is_counted(head.path, head.method):
            return NOTHING
        return Ask(output_tokens=self.rules.pool_tokens or 0, exact=False)

    def may_break_limits(self, ask: Ask) -> bool:
        """Whether a limit is or may be broken, so that a verdict is needed."""
        rules = self.rules
        total = ask.prompt_tokens + ask.output_tokens
        too_long = rules.max_input_tokens is not None and ask.prompt_tokens > rules.max_input_tokens
        return too_long or (rules.max_total_tokens is not None and total > rules.max_total_tokens)

    def is_large(self, ask: Ask) -> bool:
        """Whether a bound takes so much of the cache that it is worth a count at once."""
        pool = self.rules.pool_tokens
        return pool is not None and ask.count_path is not None and ask.prompt_tokens * 8 > pool

    def verdict(self, head: RequestHead, ask: Ask, body: bytes) -> Ask | Refusal:
        """The ask as it is served after it was counted, as far as that could be, or why it is refused."""
        rules = self.rules
        if ask.exact and (refusal := beyond_limits(ask, rules)) is not None:
            return refusal
        room = (rules.max_total_tokens or ask.tokens) - ask.prompt_tokens
        if ask.named or not ask.exact or room >= ask.output_tokens:
            return ask
        return ask._replace(output_tokens=room, body=with_output(body, head.path, room))

    def count(self, asker: Asker) -> None:
        """Have this request counted: it is told, and each only once."""
        if asker not in self._wanted:
            self._wanted.append(asker)
            self._spawn(self._count_one(asker))

    def count_all(self, askers: Iterable[Asker]) -> None:
        """Have these counted as far as they were not: their bounds stand in the way of others."""
        for asker in askers:
            if not asker.ask.exact:
                self.count(asker)

    def close(self) -> None:
        """Ask nothing more."""
        for task in list(self._tasks):
            task.cancel()

    @property
    def is_quiet(self) -> bool:
        """Whether llama-server is asked nothing."""
        return not self._tasks

    def _combine(self) -> None:
        written = self._written
        default = written.default_output_tokens or written.max_output_tokens or self._default_output_tokens
        if default is not None and written.max_total_tokens is not None:
            default = min(default, written.max_total_tokens)
        self.rules = TokenRules(
            self._pool_tokens,
            default,
            written.max_output_tokens,
            written.max_input_tokens,
            written.max_total_tokens,
            written.note_streams,
        )

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _learn_template(self, path: str) -> None:
        tokens = await self._count(path, _PROBE_PATH, _PROBE)
        if tokens is not None and path == self._path:
            self._template_tokens = 2 * tokens  # twice: some templates say more where a system message is given

    async def _count_one(self, asker: Asker) -> None:
        try:
            question = asker.counting_question()
            body = counting_body(*question) if question is not None else None
            tokens = await self._count(self._path, question[0], body) if question and body is not None else None
        finally:
            self._wanted.remove(asker)
        ask = asker.ask
        if tokens is not None:
            asker.ask = ask._replace(prompt_tokens=tokens, exact=True)
        else:
            asker.ask = ask._replace(count_path=None)  # it stays a bound
        asker.recounted()
