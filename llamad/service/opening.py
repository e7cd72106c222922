"""What a lane must know of the llama-server that it is opened for, and llama-server's own count of tokens."""

from __future__ import annotations

from typing import TypedDict

from llamad.engine.api import ApiError, count_tokens
from llamad.supervision.launch import Launch


class Opening(TypedDict):
    """The arguments of `Lane.open` that come from a launch."""

    pool_tokens: int | None
    default_output_tokens: int | None


def opening_of(launch: Launch) -> Opening:
    """A cache that the slots share is filled by all requests together: past its end llama-server fails them all."""
    plan = launch.plan
    direct = launch.definition.is_direct  # nobody can count what others ask for there
    shared = not direct and plan.unified_cache and plan.slots > 1 and launch.mode == "completion"
    if not shared:
        return Opening(pool_tokens=None, default_output_tokens=None)
    written = launch.definition.sampling.max_tokens
    share_tokens = max(1, plan.context_tokens // plan.slots)
    return Opening(pool_tokens=plan.context_tokens, default_output_tokens=written or share_tokens)


async def count_or_none(socket_path: str, path: str, body: bytes) -> int | None:
    """As llama-server counts; None where it does not say."""
    try:
        return await count_tokens(socket_path, path, body)
    except ApiError:
        return None
