"""The running llama-server, as the supervisor sees it."""

from __future__ import annotations

from llamad.engine import api
from llamad.supervision.launch import Launch


class ServerEngine:
    """Talks to the child's unix socket."""

    async def healthy(self, socket_path: str) -> bool:
        return (await api.health(socket_path)).ok

    async def warm_up(self, launch: Launch, deadline_s: float) -> float:
        result = await api.warm_up(
            launch.socket_path,
            launch.warm_up_tokens,
            mode=launch.mode,
            vocabulary_tokens=launch.vocabulary_tokens,
            deadline_s=deadline_s,
        )
        return result.seconds
