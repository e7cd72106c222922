"""What the ledger decides, held against rules that must hold for any ledger."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamad.ledger.arithmetic import (
    MOST_PASSES,
    OVERDUE_S,
    Departed,
    Request,
    all_outstanding,
    is_back,
    judge,
    may_come_back,
    outstanding,
    place_in_queue,
    visible,
)
from llamad.ledger.lease import HOST, Lease, Phase, from_json, to_json

PLACES = ["GPU-a", "GPU-b", HOST]
sizes = st.dictionaries(st.sampled_from(PLACES), st.integers(0, 100))
names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,9}", fullmatch=True)
leases = st.builds(
    Lease, name=names, phase=st.sampled_from(Phase), id=st.uuids().map(str), promised=sizes, visible=sizes, free=sizes,
    wants=sizes, why=st.text(max_size=20), ticket=st.integers(0, 9), passed=st.integers(0, 5),
    until_s=st.integers(0, 100).map(float), source=st.sampled_from(["1", "2"]), names=st.just({"GPU-a": "CUDA0"}),
    pids=st.tuples(st.integers(1, 9999)), lacks=sizes,
)  # fmt: skip


@given(leases)
def test_a_lease_survives_its_file(lease: Lease) -> None:
    assert from_json(to_json(lease), lease.name) == lease


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", "null", '{"name":"b","phase":"settled"}', '{"name":"a"}', '{"name":"a","phase":"dead"}',
        '{"name":"a","phase":"settled","promised":{"g":-1}}', '{"name":"a","phase":"settled","promised":{"g":true}}',
        '{"name":"a","phase":"settled","promised":{"g":1e3}}', '{"name":"a","phase":"settled","promised":[1]}',
        '{"name":"a","phase":"settled","promised":{"g":9999999999999999999}}', "[" * 100_000,
        '{"name":"a","phase":"waiting","until_s":NaN}', '{"name":"a","phase":"waiting","until_s":1e999}',
        '{"name":"a","phase":"waiting","pids":{"a":1}}', '{"name":"a","phase":"waiting","why":7}', "\0" * 50,
        '{"name":"a","phase":"waiting","names":{"g":1}}', '{"name":"a","phase":["waiting"]}',
    ],
)  # fmt: skip
def test_what_is_no_lease_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        from_json(text, "a")


@given(leases, sizes, sizes)
def test_no_byte_is_visible_that_was_not_promised_nor_before_it_is_taken(lease: Lease, held: dict[str, int],
                                                                       seen: dict[str, int]) -> None:  # fmt: skip
    shown = visible(lease, held)
    assert all(0 <= size <= lease.promised[place] for place, size in shown.items())
    if lease.phase not in (Phase.LOADING, Phase.SETTLED):
        assert not shown
    left = outstanding(lease, shown)
    for place, size in left.items():
        assert 0 <= size <= lease.promised[place]
        assert size + shown.get(place, 0) == lease.promised[place]
    if lease.phase in (Phase.PROMISED, Phase.RETURNING):
        assert outstanding(lease, seen) == lease.promised, "whatever was seen before is of another promise"


@given(st.lists(leases, max_size=6), st.integers(0, 5))
def test_a_lease_that_came_later_counts_in_full(found: list[Lease], known: int) -> None:
    """Its bytes may have been free when the drivers were asked, however many are taken by now."""
    seen = {lease.id: visible(lease) for lease in found[:known]}
    total = all_outstanding(found, seen)
    for place in PLACES:
        least = sum(
            lease.promised.get(place, 0) for lease in found[known:] if lease.phase is not Phase.WAITING
        )
        most = sum(lease.promised.get(place, 0) for lease in found if lease.phase is not Phase.WAITING)
        assert least <= total.get(place, 0) <= most


def waiter(name: str, ticket: int, wants: int, *, passed: int = 0, place: str = "GPU-a", until_s: float = 1e6) -> Lease:
    wanted = {place: wants} if wants else {}
    return Lease(name, Phase.WAITING, name, wants=wanted, ticket=ticket, passed=passed, until_s=until_s, source="1")


def ask(takes: int, *others: Lease, free: int = 100, ticket: int = 0, source: str = "2", **rest: int) -> tuple[bool, tuple[str, ...]]:
    verdict = judge(Request({"GPU-a": takes}, ticket, source, **rest), others, {"GPU-a": free}, 0.0)
    return verdict.go, verdict.passing or verdict.behind


def test_a_smaller_one_passes_three_times_and_no_more() -> None:
    first = waiter("big", 1, 150)
    for count in range(MOST_PASSES):
        assert ask(80, first._replace(passed=count)) == (True, ("big",))
    assert ask(80, first._replace(passed=MOST_PASSES)) == (False, ("big",))
    assert ask(150, first) == (False, ("big",)), "as large is not smaller"
    assert ask(80, waiter("big", 1, 150, place="GPU-b")) == (True, ()), "on another device it is no passing"


def test_who_could_start_is_not_robbed_but_what_it_leaves_may_be_had() -> None:
    ready = waiter("first", 1, 60)
    assert ask(50, ready) == (False, ("first",))
    assert ask(40, ready) == (True, ()), "there is room for both"


def test_the_queue_is_in_the_order_of_arrival() -> None:
    line = [waiter("one", 1, 150), waiter("two", 2, 150), waiter("three", 3, 150)]
    assert ask(90, *line[:1], *line[2:], ticket=2) == (True, ("one",)), "three came later and is not passed"
    assert [place_in_queue(n, line, 0.0) for n in (1, 2, 3)] == [1, 2, 3]
    overdue = line[0]._replace(until_s=1.0, passed=MOST_PASSES)
    assert ask(90, overdue) == (False, ("one",))
    now_s = 1.0 + OVERDUE_S + 1.0
    assert judge(Request({"GPU-a": 90}), [overdue], {"GPU-a": 100}, now_s).go, "it should have given up: it hangs"


def test_one_file_system_is_read_by_one_model_at_a_time() -> None:
    loading = Lease("a", Phase.LOADING, "a", promised={"GPU-b": 1}, source="1")
    assert ask(10, loading, source="1") == (False, ("a",))
    assert ask(10, loading, source="1", parallel_loads=2) == (True, ())
    assert ask(10, loading, source="2") == (True, ())
    assert ask(10, loading._replace(phase=Phase.SETTLED), source="1") == (True, ())
    assert ask(10, loading._replace(phase=Phase.PROMISED), source="1") == (False, ("a",))
    assert ask(10, loading, source="1", loads=False) == (True, ())
    assert ask(10, waiter("next", 1, 0), source="1") == (False, ("next",)), "its turn comes first"
    assert ask(10, waiter("next", 2, 0), source="1", ticket=1) == (True, ())
    assert ask(10, waiter("poor", 1, 150), source="1") == (True, ("poor",)), "who lacks memory keeps nobody from loading"


@given(st.lists(leases, max_size=8, unique_by=lambda lease: lease.name), sizes, st.integers(0, 9), sizes)
def test_some_of_a_queue_can_always_go(found: list[Lease], free: dict[str, int], ticket: int, takes: dict[str, int]) -> None:
    """Nobody waits for a queue that waits for him: behind stands only who came earlier, or who loads."""
    request = Request(takes, ticket, "1")
    verdict = judge(request, found, free, 0.0)
    assert verdict == judge(request, found[::-1], free, 0.0) or verdict.for_turn
    by_name = {lease.name: lease for lease in found}
    for name in verdict.behind:
        other = by_name[name]
        loading = other.phase in (Phase.PROMISED, Phase.LOADING) and verdict.for_turn
        assert loading or (other.phase is Phase.WAITING and (not ticket or other.ticket < ticket))
    for name in verdict.passing:
        other = by_name[name]
        assert verdict.go and other.passed < MOST_PASSES
        assert not any(free.get(place, 0) >= size for place, size in other.wants.items())
        assert all(takes[place] < size for place, size in other.wants.items() if takes.get(place))


def test_bytes_that_can_come_back_are_worth_a_wait() -> None:
    held = Lease("a", Phase.SETTLED, "a", promised={"GPU-a": 30})
    gone = Departed(Lease("b", Phase.SETTLED, "b", {"GPU-a": 20, "GPU-b": 70}), 0.0)
    assert may_come_back(["GPU-a"], [held], [gone]) == 50
    assert may_come_back(["GPU-a", "GPU-b"], [held], [gone]) == 70
    assert may_come_back(["GPU-a"], [], []) == 0
    loading = held._replace(phase=Phase.LOADING)
    assert may_come_back(["GPU-a"], [loading], [], {"GPU-a": 30}) == 60, "counted twice, it comes back twice"


def test_the_bytes_of_a_former_run_are_back_when_as_much_is_free_as_before_it() -> None:
    former = Departed(Lease("a", Phase.SETTLED, "a", {"GPU-a": 60}, free={"GPU-a": 100}), 0.0)
    assert not is_back(former, {"GPU-a": 40}, [], 5)
    assert is_back(former, {"GPU-a": 95}, [], 5)
    other = Lease("b", Phase.SETTLED, "b", promised={"GPU-a": 50})
    assert is_back(former, {"GPU-a": 50}, [other], 5), "another model has taken some since"
    assert is_back(former, {"GPU-b": 1}, [], 5), "the device is gone, and its memory with it"
