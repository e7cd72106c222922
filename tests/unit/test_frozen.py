"""Our quick `dataclass(frozen=True)` is the standard library's in everything but the guard against assignment."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamad import frozen
from llamad.planning.plan import Parts

Decorator = Callable[..., Any]


def made_by(decorator: Decorator) -> Any:
    class Sample:
        one: int
        two: tuple[str, ...] = ()
        quiet: float = dataclasses.field(default=0.0, repr=False)
        aside: list[int] = dataclasses.field(default_factory=list, compare=False)
        three: object = None

        @property
        def doubled(self) -> int:
            return self.one * 2

    Sample.__qualname__ = "Sample"
    return decorator(frozen=True)(Sample)


OURS, THEIRS = made_by(frozen.dataclass), made_by(dataclasses.dataclass)
VALUES = st.tuples(st.integers(0, 2), st.tuples(st.sampled_from("ab")), st.sampled_from([0.0, 1.0]), st.lists(st.integers(0, 1)))


@given(VALUES, VALUES)
def test_equality_hash_and_text_are_the_same(first: Any, second: Any) -> None:
    ours, others = (OURS(*first), OURS(*second)), (THEIRS(*first), THEIRS(*second))
    assert (ours[0] == ours[1]) == (others[0] == others[1])
    assert repr(ours[0]) == repr(others[0])
    assert hash(ours[0]) == hash(others[0])
    assert dataclasses.asdict(ours[0]) == dataclasses.asdict(others[0])
    assert dataclasses.replace(ours[0], one=9).doubled == 18
    assert ours[0] != others[0]


def test_the_rest_is_the_standard_library() -> None:
    assert OURS.__match_args__ == THEIRS.__match_args__
    assert [part.name for part in dataclasses.fields(OURS)] == [part.name for part in dataclasses.fields(THEIRS)]
    with pytest.raises(TypeError):
        OURS()
    with pytest.raises(TypeError):
        hash(OURS(1, three=[]))
    assert pickle.loads(pickle.dumps(Parts(1, 2))) == Parts(1, 2)


def test_methods_of_ones_own_stay() -> None:
    @frozen.dataclass(frozen=True)
    class Own:
        one: int

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 7

        def __repr__(self) -> str:
            return "own"

    assert Own(1) == Own(2)
    assert (hash(Own(1)), repr(Own(1))) == (7, "own")


def test_without_fields_all_are_equal() -> None:
    @frozen.dataclass(frozen=True)
    class Empty:
        pass

    assert Empty() == Empty()
    assert hash(Empty()) == hash(Empty())
