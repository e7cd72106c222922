"""What one request asks for, over its life: read from its body, counted where that matters, and judged."""

from __future__ import annotations

from collections.abc import Callable

from llamad.front.admission import Admission
from llamad.front.asks import ID_SLOT_OVERLAP_BYTES, NOTHING, Ask, names_a_slot
from llamad.front.head import RequestHead
from llamad.front.holding import Refusal
from llamad.front.kept import KeptBody


def _nothing() -> None:
    """For a request that is over."""


_SLOT_NAMED = Refusal(400, "id_slot", "which slot computes is not for clients to say; leave out id_slot")


class Asked:
    """See the module. `changed` is called when a count that was begun here has ended, however it ended."""

    __slots__ = ("_admission", "_body", "_changed", "_complete", "_overlap", "_request", "_rules", "ask", "is_read")

    def __init__(
        self, admission: Admission, request: RequestHead, body: KeptBody, changed: Callable[[], None]
    ) -> None:
        self.ask: Ask = NOTHING
        self.is_read = False
        self._admission = admission
        self._rules = admission.rules
        self._request = request
        self._body = body
        self._changed = changed
        self._complete = False
        self._overlap = b""  # the end of a body that is too long to be read whole

    def read(self, *, complete: bool) -> Refusal | None:
        """Look at the body, whole or as far as it is kept: why the request is refused, or None."""
        self.is_read = True
        self._complete = complete
        self._rules = self._admission.rules
        body = b"".join(self._body.pieces)
        if not complete:
            self.ask = self._admission.unread(self._request)
            self._overlap = b" "
            return None if self.ask.exact else self.watch(body)
        return self._take(self._admission.read(self._request, body))

    def renew(self) -> Refusal | None:
        """Look at the body again where other rules hold by now: of a llama-server that came, or comes, after it was
        read, what its requests share was not known. Why the request is refused, or None.
        """
        if not self.is_read or self._rules == self._admission.rules or not self._body.is_whole:
            return None
        named = self.ask.named
        refusal = self.read(complete=self._complete)
        if not named:  # the length in the body is the one that was put in
            self.ask = self.ask._replace(named=False)
        return refusal

    def watch(self, piece: bytes) -> Refusal | None:
        """More of a body that is sent on as it comes: why the request is refused after all, or None."""
        if not self._overlap or self.ask.exact:
            return None
        seen = self._overlap + piece
        self._overlap = seen[-ID_SLOT_OVERLAP_BYTES:]
        return _SLOT_NAMED if names_a_slot(seen) else None

    def begin_count(self) -> bool:
        """On admission: begin to count where it matters. True: whether the request may be served at all turns on
        it, so `changed` must be awaited, and then `verdict` asked."""
        ask, admission = self.ask, self._admission
        if admission.may_break_limits(ask):
            if ask.exact or ask.count_path is None:
                self._changed()
            else:
                admission.count(self)
            return True
        if not ask.exact and admission.is_large(ask):  # nobody waits for it now; who comes next might have to
            admission.count(self)
        return False

    def verdict(self) -> Refusal | None:
        """After a count: why the request is refused, or None."""
        return self._take(self._admission.verdict(self._request, self.ask, b"".join(self._body.pieces)))

    def counting_question(self) -> tuple[str, bytes] | None:
        if self.ask.count_path is None or not self._body.is_whole or not self._complete:
            return None
        return self.ask.count_path, b"".join(self._body.pieces)

    def recounted(self) -> None:
        self._changed()

    def end(self) -> None:
        """The request is over: nobody is told of a count any more."""
        self._changed = _nothing  # it led back here: without it all of the request goes with its last reference

    def _take(self, ask: Ask | Refusal) -> Refusal | None:
        if isinstance(ask, Refusal):
            return ask
        if ask.body is not None:
            self._body.replace(ask.body)
            ask = ask._replace(body=None)
        self.ask = ask
        return None
