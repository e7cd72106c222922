"""How deep a client's JSON may be, whatever the version of the standard library."""

from __future__ import annotations

import json

import pytest

from llamad.front.nesting import MOST_LEVELS, parsed


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_the_bound_is_the_same_everywhere(opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"

    def nested(levels: int) -> bytes:
        return opening * levels + b"1" + closing * levels

    assert parsed(nested(MOST_LEVELS)) == json.loads(nested(MOST_LEVELS))
    for levels in (MOST_LEVELS + 1, 30_000):
        with pytest.raises(RecursionError):
            parsed(nested(levels))


def test_much_that_is_flat_is_fine_and_garbage_is_no_json() -> None:
    flat = json.dumps([[1], {"a": [2]}] * 5_000).encode()
    assert parsed(flat) == json.loads(flat)
    with pytest.raises(ValueError):
        parsed(b"[" * 10)
