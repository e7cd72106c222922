"""What the front is told and what it tells: settings, the observer, and the record of a request. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, Protocol

from llamad.front.usage import Usage
from llamad.frozen import dataclass
from llamad.units import KIB, MIB


@dataclass(frozen=True)
class FrontSettings:
    """Every bound and deadline of one address. Seconds are checked once a second, so they may be 1 s late.

    name, aliases: what `/v1/models` lists
    max_concurrent_requests: admitted upstream at once; None leaves the queueing to llama-server
    queue_requests, wait_s: how many requests may wait at the gate, and for how long; past them 503
    head_bytes, head_fields: of a request head; past them 431.  body_bytes: of a request body; past it 413
    replay_bytes: memory for bodies kept until the answer begins, all requests together
    eager_bytes: a body up to this size is read whole before llama-server sees the request, so that a slow
        client costs a buffer here and not a thread there; a longer one is streamed from there on
    client_idle_s: a connection without a request.  head_timeout_s: from the first byte of a head; past it 408
    body_idle_s: without progress of a request body, or of an answer that the client does not read
    stream_open_s: after this long without an event a stream's head goes to the client all the same, and
        llama-server's pings with it, so that clients and proxies with a read time-out stay
    upstream_requests_max, upstream_idle_s: when a connection to llama-server is retired: before llama-server
        itself closes it (100 requests, 5 s)
    settle_s: a request whose connection died while llama-server seems to live is tried again after this
    default_output_tokens: what an answer may have where a request does not say; None: a fair share of a shared cache
    max_output_tokens, max_input_tokens, max_total_tokens: of one request; past them 400; None: no such bound
    cache_responses, cache_response_bytes: answers that are kept for the same request; 0 is none
    definition: what stands for the definition that answers are made with, for the answers that are kept
    heartbeat_s: how often a held stream gets a comment; 0 is never
    cause_wait_s: how long a cut stream waits for the cause of death before its error event names none
    check_host, allowed_hosts: guard against DNS rebinding, for TCP clients
    """

    name: str
    aliases: tuple[str, ...] = ()
    max_concurrent_requests: int | None = None
    queue_requests: int = 100
    wait_s: float = 120.0
    retry_after_s: float = 5.0
    head_bytes: int = 64 * KIB
    head_fields: int = 256
    body_bytes: int = 64 * MIB
    replay_bytes: int = 64 * MIB
    eager_bytes: int = 1 * MIB
    client_idle_s: float = 75.0
    head_timeout_s: float = 30.0
    body_idle_s: float = 60.0
    stream_open_s: float = 10.0
    upstream_requests_max: int = 99
    upstream_idle_s: float = 4.0
    settle_s: float = 2.0
    cause_wait_s: float = 1.0
    default_output_tokens: int | None = None
    max_output_tokens: int | None = None
    max_input_tokens: int | None = None
    max_total_tokens: int | None = None
    heartbeat_s: float = 0.0
    cache_responses: int = 0
    cache_response_bytes: int = 16 * MIB
    definition: str = ""
    allowed_hosts: tuple[str, ...] = ()
    check_host: bool = True


@dataclass(frozen=True)
class ModelDescription:
    """What `/v1/models` says about the model now. None where it is not known yet."""

    state: str
    context_tokens: int | None = None
    trained_context_tokens: int | None = None
    size_bytes: int | None = None
    created_s: int = 0
    is_held_elsewhere: bool = False
    """Whether another llamad, to which requests are passed on, lets them wait."""


class Outcome(StrEnum):
    """How a request ended."""

    ANSWERED = "answered"  # llama-server's whole answer went out, whatever its status
    LOCAL = "local"  # answered here, as asked
    REPEATED = "repeated"  # answered from the answers that are kept
    REFUSED = "refused"  # not relayed: bad head, key, host, size, time-out
    HELD_OUT = "held-out"  # the gate refused it: queue full, waited too long, model failed
    CLIENT_GONE = "client-gone"
    CUT = "cut"  # ended by `Front.cut`
    LOST = "lost"  # llama-server died and the request could not be replayed
    POISON = "poison"  # llama-server died twice under it


class RequestRecord(NamedTuple):
    """One finished request. Never holds a body, a key or a query."""

    method: str
    path: str
    status: int  # 0 where nothing was answered
    outcome: Outcome
    request_id: str
    duration_s: float
    hold_s: float  # waiting at the gate
    first_byte_s: float | None  # from the head until the first event or body byte; None where there was none
    request_bytes: int  # bodies
    response_bytes: int
    deaths: int  # how many llama-servers died under it
    model: str = ""
    usage: Usage | None = None  # as llama-server says at the end of an answer
    events: int = 0  # of a stream that have passed


class FrontObserver(Protocol):
    """Is told what happens. Called on the loop, often: must return at once and not raise."""

    def request_waiting(self) -> None:
        """A request has begun to wait at the gate."""
        ...

    def request_finished(self, record: RequestRecord) -> None:
        """A request is over."""
        ...

    def upstream_lost(self, generation: int) -> None:
        """A connection died with a request on it, or none can be made. Told once a generation. The owner
        answers, sooner or later, with `open`, `hold` or `refuse` (also where llama-server is alive)."""
        ...

    async def count_tokens(self, socket_path: str, path: str, body: bytes) -> int | None:
        """How many tokens the prompt in `body` has, as the llama-server at this socket counts at `path`; None
        where it does not say. Never raises. The one thing here that may take time."""
        ...

    def progress(self) -> None:
        """llama-server sent a data event or a byte of a body."""
        ...
