"""What the relay is told of a llama-server: a pool only where slots share one, and what an answer may have by default."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from llamad.service.opening import opening_of


def launch(slots: int = 4, unified: bool = True, mode: str = "completion", max_tokens: int | None = None, direct: bool = False) -> Any:
    plan = SimpleNamespace(context_tokens=4096, slots=slots, unified_cache=unified)
    sampling = SimpleNamespace(max_tokens=max_tokens)
    return SimpleNamespace(plan=plan, mode=mode, definition=SimpleNamespace(sampling=sampling, is_direct=direct))


def test_slots_that_share_a_cache_share_its_tokens() -> None:
    assert opening_of(launch()) == {"pool_tokens": 4096, "default_output_tokens": 1024}
    assert opening_of(launch(max_tokens=100))["default_output_tokens"] == 100


@pytest.mark.parametrize("alone", [{"slots": 1}, {"unified": False}, {"mode": "embedding"}, {"mode": "rerank"}, {"direct": True}])
def test_elsewhere_no_request_can_take_tokens_from_another(alone: dict[str, Any]) -> None:
    assert opening_of(launch(**alone)) == {"pool_tokens": None, "default_output_tokens": None}
