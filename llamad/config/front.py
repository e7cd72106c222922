"""`front = "direct"`: llama-server owns the address, and what llamad's own front does is not done. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from llamad.config.definition import Definition, Limits
from llamad.config.listen import DEFAULT_LISTEN, parse_listen
from llamad.config.problems import Problem

_OF_THE_FRONT = (
    "max_concurrent_requests", "queue_requests", "wait_s", "head_bytes", "body_bytes", "replay_bytes",
    "client_idle_s", "max_input_tokens", "max_output_tokens", "max_total_tokens", "heartbeat_s",
)  # fmt: skip
_FIX = 'delete it, or front = "relay"'


def front_problems(definition: Definition) -> Iterator[Problem]:
    """What is written and only llamad's own front could keep."""
    if not definition.is_direct:
        return
    what = "only llamad's own front does that"
    if parse_listen(definition.listen or DEFAULT_LISTEN).kind != "tcp":
        yield Problem(("front",), "llama-server can own no unix socket of this machine's users", "listen on host:port")
    for key in ("tls_cert", "admin_keys_file", "allowed_hosts"):
        if getattr(definition, key):
            yield Problem((key,), what, _FIX)
    usual = Limits()
    for key in _OF_THE_FRONT:
        if getattr(definition.limits, key) != getattr(usual, key):
            yield Problem(("limits", key), what, _FIX)
    if definition.cache.responses:
        yield Problem(("cache", "responses"), what, _FIX)
