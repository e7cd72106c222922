"""llama-server's slots: how many tokens each has cached, and their caches written to and read from files."""

from __future__ import annotations

from llamad.engine.api import ApiError, ask_json
from llamad.frozen import dataclass


@dataclass(frozen=True)
class Slot:
    """One slot. `tokens`: how many of its last prompt and answer it still has."""

    number: int
    is_busy: bool
    tokens: int


async def read_slots(socket_path: str, deadline_s: float) -> list[Slot]:
    """All slots as they are now. Raises ApiError."""
    answer = await ask_json(socket_path, "GET", "/slots", None, deadline_s)
    try:
        return [
            Slot(int(slot["id"]), bool(slot["is_processing"]), int(slot.get("n_prompt_tokens", 0)))
            for slot in answer
        ]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ApiError(
            "cannot read llama-server's /slots", why=f"{type(error).__name__}: {error}"
        ) from error


async def save_slot(socket_path: str, slot: int, file_name: str, deadline_s: float) -> int:
    """Have a slot's cache written to a file of the folder that the server was started with; how many tokens. Raises
    ApiError; what was written by then is for the caller to remove.
    """
    return await _act(socket_path, slot, "save", file_name, "n_saved", deadline_s)


async def restore_slot(socket_path: str, slot: int, file_name: str, deadline_s: float) -> int:
    """Have a file read into a slot; how many tokens. Raises ApiError, Refused where it does not fit this server."""
    return await _act(socket_path, slot, "restore", file_name, "n_restored", deadline_s)


async def _act(socket_path: str, slot: int, action: str, file_name: str, key: str, deadline_s: float) -> int:
    path = f"/slots/{slot}?action={action}"
    answer = await ask_json(socket_path, "POST", path, {"filename": file_name}, deadline_s)
    try:
        return int(answer[key])
    except (LookupError, TypeError, ValueError) as error:
        raise ApiError(
            f"cannot read llama-server's answer to {path}", why=f"{type(error).__name__}: {error}"
        ) from error
