"""Delays between starts."""

from __future__ import annotations

from llamad.supervision.backoff import Backoff


def test_the_first_death_of_a_child_that_served_is_answered_at_once() -> None:
    backoff = Backoff(5, lambda: 0.0)
    backoff.ready_at(100.0)
    assert backoff.next_delay_s(110.0) == 0.0
    backoff.ready_at(111.0)
    assert backoff.next_delay_s(130.0) == 1.0, "a second one in a row is not"


def test_delays_double_up_to_thirty_seconds_with_a_tenth_of_jitter() -> None:
    backoff = Backoff(99, lambda: 1.0)
    delays = [backoff.next_delay_s(0.0) for _ in range(9)]
    assert [round(d, 3) for d in delays] == [0.55, 1.1, 2.2, 4.4, 8.8, 17.6, 33.0, 33.0, 33.0]


def test_giving_up_and_being_forgiven() -> None:
    backoff = Backoff(2, lambda: 0.0)
    backoff.next_delay_s(0.0)
    assert backoff.may_retry()
    backoff.next_delay_s(0.0)
    assert not backoff.may_retry()
    backoff.forgive()
    assert backoff.may_retry()


def test_a_child_that_died_while_loading_is_not_started_at_once() -> None:
    assert Backoff(5, lambda: 0.0).next_delay_s(1000.0) == 0.5
