"""Who makes room: properties of the choice, against looking at all sets."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from llamad.supervision.residency import Decision, Resident, choose, least_resident_s

PLACES = ["GPU-a", "GPU-b", "host"]
sizes = st.dictionaries(st.sampled_from(PLACES), st.integers(1, 100), min_size=1)
seconds = st.floats(0, 200).map(lambda value: round(value, 1))
residents = st.lists(
    st.builds(
        Resident, name=st.sampled_from("abcdefgh"), holds=sizes, idle_s=seconds, load_s=seconds, resident_s=seconds,
        pinned=st.booleans(), fresh=st.booleans(), leaving=st.booleans(),
    ),
    max_size=7, unique_by=lambda one: one.name,
)  # fmt: skip
needs = st.dictionaries(st.sampled_from(PLACES), st.integers(1, 250), min_size=1, max_size=2)
FLOOR_S = 30.0


def may_go(one: Resident) -> bool:
    settled = one.resident_s >= least_resident_s(one.load_s, FLOOR_S)
    return settled and not (one.pinned or one.fresh or one.leaving)


def enough(missing: dict[str, int], gone: list[Resident], everybody: list[Resident]) -> bool:
    leaving = [one for one in everybody if one.leaving]
    return any(
        sum(one.holds.get(place, 0) for one in [*gone, *leaving]) >= size for place, size in missing.items()
    )


@given(needs, residents)
def test_only_who_may_go_goes_and_only_if_that_suffices(missing: dict[str, int], everybody: list[Resident]) -> None:
    decision = choose(missing, everybody, FLOOR_S)
    gone = [one for one in everybody if one.name in decision.evict]
    assert all(may_go(one) for one in gone)
    if gone:
        assert enough(missing, gone, everybody)
        assert not any(enough(missing, list(fewer), everybody) for fewer in combinations(gone, len(gone) - 1))


@given(needs, residents)
def test_the_set_is_a_smallest_one_and_busy_ones_go_only_where_idle_ones_do_not_suffice(
    missing: dict[str, int], everybody: list[Resident]
) -> None:
    decision = choose(missing, everybody, FLOOR_S)
    candidates = [one for one in everybody if may_go(one)]
    idle = [one for one in candidates if one.idle_s > 0]
    for group in (idle, candidates):
        smallest = next(
            (
                count
                for count in range(len(group) + 1)
                if any(enough(missing, list(chosen), everybody) for chosen in combinations(group, count))
            ),
            None,
        )
        if smallest is not None:
            assert len(decision.evict) == smallest
            return
    assert decision.evict == ()


@given(needs, residents)
def test_the_order_of_the_residents_does_not_matter(missing: dict[str, int], everybody: list[Resident]) -> None:
    assert choose(missing, everybody, FLOOR_S) == choose(missing, everybody[::-1], FLOOR_S)


@given(needs, residents)
def test_waiting_for_a_moment_ends_in_a_decision(missing: dict[str, int], everybody: list[Resident]) -> None:
    """Who waits is never asked to come back for nothing, for ever: each moment lets one more go."""
    for _ in range(len(everybody) + 1):
        decision = choose(missing, everybody, FLOOR_S)
        if decision.after_s is None:
            return
        assert decision.evict == () and decision.after_s > 0
        passed_s = decision.after_s + 0.001
        everybody = [one._replace(resident_s=one.resident_s + passed_s) for one in everybody]
    raise AssertionError("asked to come back more often than there are models")


def test_the_longest_idle_for_its_load_time_goes() -> None:
    quick = Resident("quick", {"g": 10}, idle_s=100, load_s=2, resident_s=500)
    slow = Resident("slow", {"g": 10}, idle_s=300, load_s=60, resident_s=500)
    assert choose({"g": 5}, [quick, slow]) == Decision(("quick",))
    assert choose({"g": 15}, [quick, slow]) == Decision(("quick", "slow"))
    assert choose({"g": 25}, [quick, slow]) == Decision()


def test_a_model_stays_for_three_times_its_load_and_the_floor() -> None:
    assert (least_resident_s(5, 30), least_resident_s(20, 30)) == (30, 60)
    young = Resident("young", {"g": 10}, idle_s=20, load_s=20, resident_s=20)
    assert choose({"g": 10}, [young]) == Decision(after_s=40)


def test_a_busy_model_cannot_keep_others_out() -> None:
    busy = Resident("busy", {"g": 10}, idle_s=0, load_s=1, resident_s=100)
    idle = Resident("idle", {"g": 4}, idle_s=50, load_s=1, resident_s=100)
    assert choose({"g": 4}, [busy, idle]) == Decision(("idle",))
    assert choose({"g": 8}, [busy, idle]) == Decision(("busy",))
    assert choose({"g": 8}, [busy._replace(fresh=True), idle]) == Decision()
    assert choose({"g": 8}, [busy._replace(leaving=True), idle]) == Decision()


def test_any_one_of_several_places_will_do() -> None:
    one = Resident("one", {"GPU-a": 10}, idle_s=10, load_s=1, resident_s=100)
    two = Resident("two", {"GPU-b": 10}, idle_s=90, load_s=1, resident_s=100)
    assert choose({"GPU-a": 5, "GPU-b": 5}, [one, two]) == Decision(("two",))


def test_many_models_are_no_matter_of_minutes() -> None:
    many = [
        Resident(f"m{n}", {"g": 1 + n % 7}, idle_s=float(n + 1), load_s=1, resident_s=100) for n in range(60)
    ]
    decision = choose({"g": 100}, many)
    assert sum(one.holds["g"] for one in many if one.name in decision.evict) >= 100
