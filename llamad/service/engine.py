"""The running llama-server, as the supervisor sees it."""

from __future__ import annotations

from llamad.engine import api
from llamad.supervision.launch import Launch


class ServerEngine:
    """Talks to the child's unix socket."""

    async def healthy(self, socket_path: str) -> bool:
        return await api.health(socket_path) is api.Health.READY

    async def warm_up(self, launch: Launch, deadline_s: float) -> float:
        result = await api.warm_up(
            launch.socket_path,
            tokens=launch.warm_up_tokens,
            vocab_tokens=launch.vocabulary_tokens,
            mode=launch.mode,
            deadline_s=deadline_s,
        )
        return result.seconds
