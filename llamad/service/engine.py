"""The running llama-server, as the supervisor sees it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from llamad.engine import api
from llamad.service.slots import SlotKeeper
from llamad.supervision.launch import Launch

SETTLE_POLL_S = 0.02


async def until_idle(endpoint: str, deadline_s: float) -> None:
    """Return when no slot of this llama-server is at work, when it does not say, or at the deadline."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + deadline_s
    try:
        while await api.busy_slots(endpoint, deadline_s) and loop.time() < until_s:  # noqa: ASYNC110
            await asyncio.sleep(SETTLE_POLL_S)
    except api.ApiError:
        return  # it cannot tell any more: the ladder's deadlines hold


class ServerEngine:
    """Talks to the child's unix socket. `slots` is the folder for its slots' prompt caches."""

    def __init__(self, slots: Path) -> None:
        self._keeper = SlotKeeper(slots)

    async def healthy(self, socket_path: str) -> bool:
        return await api.health(socket_path) is api.Health.READY

    async def figures(self, socket_path: str) -> str:
        try:
            return await api.slot_figures(socket_path)
        except api.ApiError:
            return ""

    async def save_prompts(self, launch: Launch) -> None:
        await self._keeper.save(launch)

    async def restore_prompts(self, launch: Launch) -> int:
        return await self._keeper.restore(launch)

    async def settle(self, socket_path: str, deadline_s: float) -> None:
        await until_idle(socket_path, deadline_s)

    async def warm_up(self, launch: Launch, deadline_s: float) -> float:
        result = await api.warm_up(
            launch.socket_path,
            tokens=launch.warm_up_tokens,
            vocab_tokens=launch.vocabulary_tokens,
            mode=launch.mode,
            deadline_s=deadline_s,
        )
        return result.seconds
