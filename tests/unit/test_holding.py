"""The gate: who passes, who waits, in which order, and who is refused."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from llamad.front.holding import Gate, GateLimits, Refusal, Target


class StillClock:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        raise NotImplementedError


@dataclass(eq=False)
class Request:
    after: int = 0
    ticket: int = 0
    tokens: int = 0
    held_s: float = -1.0
    targets: list[Target] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def admitted(self, target: Target, held_s: float) -> None:
        self.targets.append(target)
        self.held_s = held_s

    def refused(self, refusal: Refusal, held_s: float) -> None:
        self.held_s = held_s
        self.refusals.append(refusal)


def gate(
    *, at_once: int | None = None, queue: int = 3, wait_s: float = 120.0
) -> tuple[Gate, StillClock, list[str]]:
    clock = StillClock()
    told: list[str] = []
    limits = GateLimits(at_once, queue, wait_s, retry_after_s=5.0, settle_s=2.0)
    return Gate(limits, clock, lambda: told.append("waiting")), clock, told


def enter(gate: Gate, count: int = 1) -> list[Request]:
    requests = [Request() for _ in range(count)]
    for request in requests:
        gate.enter(request)
    return requests


def admitted(requests: list[Request]) -> list[int]:
    return [index for index, request in enumerate(requests) if request.targets]


def test_open_gate_admits_at_once_and_counts() -> None:
    it, _, told = gate()
    assert it.open("/run/a.sock") == 1
    [request] = enter(it)
    assert request.targets == [Target(1, "/run/a.sock")]
    assert (it.in_flight, it.waiting, told) == (1, 0, [])
    it.leave(request)
    assert it.in_flight == 0


def test_requests_wait_until_it_opens_and_go_in_order() -> None:
    it, _, told = gate(at_once=1)
    requests = enter(it, 3)
    assert (it.waiting, told, it.is_open) == (3, ["waiting"] * 3, False)
    it.open("/a")
    assert admitted(requests) == [0]
    it.leave(requests[0])
    assert admitted(requests) == [0, 1]
    it.leave(requests[1])
    assert admitted(requests) == [0, 1, 2]
    assert it.waiting == 0


def test_past_the_queue_the_next_is_refused() -> None:
    it, _, _ = gate(queue=2)
    requests = enter(it, 3)
    assert [request.refusals for request in requests[:2]] == [[], []]
    [refusal] = requests[2].refusals
    assert (refusal.status, refusal.code, refusal.retry_after_s) == (503, "queue_full", 5.0)
    assert it.waiting == 2


def test_past_wait_s_the_waiting_are_refused_with_the_reason() -> None:
    it, clock, _ = gate(wait_s=10)
    [old] = enter(it)
    clock.now_s += 6
    [young] = enter(it)
    it.hold("the model loads")
    clock.now_s += 4
    it.expire()
    [refusal] = old.refusals
    assert (refusal.status, refusal.code) == (503, "wait_timeout")
    assert "the model loads" in refusal.message and old.held_s == 10
    assert young.refusals == [] and it.waiting == 1
    it.open("/a")
    assert young.targets and not old.targets
    assert young.held_s == 4


def test_hold_lets_those_in_flight_be_and_keeps_the_rest() -> None:
    it, _, _ = gate()
    it.open("/a")
    enter(it)
    it.hold("reload")
    [late] = enter(it)
    assert it.in_flight == 1 and not late.targets
    assert it.open("/b") == 2
    assert late.targets == [Target(2, "/b")]


def test_refuse_refuses_the_waiting_and_the_coming_until_it_opens() -> None:
    it, _, _ = gate()
    failed = Refusal(503, "failed", "the model failed", 30.0)
    [waiting] = enter(it)
    it.refuse(failed)
    [coming] = enter(it)
    assert waiting.refusals == coming.refusals == [failed]
    assert it.waiting == 0
    it.open("/a")
    assert enter(it)[0].targets


def test_a_request_whose_generation_died_waits_for_a_later_one_and_keeps_its_rank() -> None:
    it, _, _ = gate(at_once=1)
    it.open("/a")
    first, second = enter(it, 2)
    first.after = 1
    it.hold("restart")
    it.leave(first)
    it.enter(first)
    it.open("/b")
    assert [target.generation for target in first.targets] == [1, 2]
    assert second.targets == []
    it.leave(first)
    assert second.targets == [Target(2, "/b")]


def test_one_that_waits_for_a_later_generation_does_not_block_the_others() -> None:
    it, _, _ = gate()
    it.open("/a")
    [dead] = enter(it)
    dead.after = 1
    it.leave(dead)
    it.enter(dead)
    assert it.waiting == 1
    assert enter(it)[0].targets


def test_one_whose_connection_alone_died_is_admitted_again_after_settling() -> None:
    it, clock, _ = gate()
    it.open("/a")
    [request] = enter(it)
    request.after = 1
    it.leave(request)
    it.enter(request)
    clock.now_s += 1.9
    it.expire()
    assert len(request.targets) == 1
    clock.now_s += 0.1
    it.expire()
    assert len(request.targets) == 2


def test_a_returning_request_is_not_refused_for_a_full_queue() -> None:
    it, _, _ = gate(queue=1)
    it.open("/a")
    [returning] = enter(it)
    it.hold("restart")
    enter(it)
    it.leave(returning)
    returning.after = 1
    it.enter(returning)
    assert returning.refusals == [] and it.waiting == 2


def test_lost_holds_only_the_generation_that_is_open() -> None:
    it, _, _ = gate()
    it.open("/a")
    it.open("/b")
    it.lost(1)
    assert it.is_open
    it.lost(2)
    assert not it.is_open


def test_withdrawn_requests_are_forgotten() -> None:
    it, clock, _ = gate()
    gone, stays = enter(it, 2)
    clock.now_s += 3
    assert it.withdraw(gone) == 3
    assert it.withdraw(gone) == 0
    it.open("/a")
    assert not gone.targets and stays.targets


def test_new_limits_admit_those_that_wait() -> None:
    it, _, _ = gate(at_once=1)
    it.open("/a")
    requests = enter(it, 3)
    it.set_limits(GateLimits(None, 3, 1, 1, 1))
    assert admitted(requests) == [0, 1, 2]
    assert it.in_flight == 3


def test_admission_that_ends_at_once_inside_the_callback_admits_each_once() -> None:
    it, _, _ = gate(at_once=1, queue=50)

    class Instant(Request):
        def admitted(self, target: Target, held_s: float) -> None:
            super().admitted(target, held_s)
            it.leave(self)

    requests = [Instant() for _ in range(50)]
    for request in requests:
        it.enter(request)
    it.open("/a")
    assert all(len(request.targets) == 1 for request in requests)
    assert (it.in_flight, it.waiting) == (0, 0)


def of_tokens(it: Gate, *tokens: int) -> list[Request]:
    requests = [Request(tokens=count) for count in tokens]
    for request in requests:
        it.enter(request)
    return requests


def test_the_tokens_of_the_admitted_never_exceed_the_pool_and_nobody_is_passed() -> None:
    it, _, _ = gate(queue=10)
    it.open("/a", 100)
    requests = of_tokens(it, 60, 50, 30, 40)
    assert (admitted(requests), it.used_tokens, it.waiting) == ([0], 60, 3)  # 30 would fit, but 50 came before
    it.leave(requests[0])
    assert (admitted(requests), it.used_tokens) == ([0, 1, 2], 80)
    it.leave(requests[2])
    assert (admitted(requests), it.used_tokens) == ([0, 1, 2, 3], 90)


def test_one_that_takes_no_tokens_passes_those_that_wait_for_some() -> None:
    it, _, _ = gate()
    it.open("/a", 100)
    requests = of_tokens(it, 100, 1, 0)
    assert admitted(requests) == [0, 2]


def test_one_that_is_longer_than_the_pool_is_served_alone() -> None:
    it, _, _ = gate()
    it.open("/a", 100)
    requests = of_tokens(it, 500, 1)
    assert admitted(requests) == [0]
    it.leave(requests[0])
    assert admitted(requests) == [0, 1]
    [alone] = of_tokens(it, 101)
    assert not alone.targets
    it.leave(requests[1])
    assert alone.targets and it.used_tokens == 101


def test_a_count_makes_room_for_those_that_wait() -> None:
    told: list[int] = []
    limits = GateLimits(None, 9, 60.0, 5.0, 2.0)
    it = Gate(limits, StillClock(), lambda: None, lambda waiter: told.append(waiter.ticket))
    it.open("/a", 100)
    requests = of_tokens(it, 80, 30)
    assert told == [2]
    requests[1].tokens = 25
    it.recount(requests[1])
    assert not requests[1].targets and told == [2, 2]
    requests[0].tokens = 70
    it.recount(requests[0])
    assert requests[1].targets and it.used_tokens == 95
    for request in requests:
        it.leave(request)
    assert (it.used_tokens, it.in_flight) == (0, 0)


def test_tokens_of_a_former_llama_server_do_not_count() -> None:
    it, _, _ = gate()
    it.open("/a", 100)
    [old] = of_tokens(it, 90)
    it.open("/b", 100)
    [new] = of_tokens(it, 90)
    assert new.targets == [Target(2, "/b")]
    old.tokens = 10
    it.recount(old)
    it.leave(old)
    assert it.used_tokens == 90


def test_where_only_a_connection_was_lost_tokens_stay_taken() -> None:
    it, _, _ = gate()
    it.open("/a", 100)
    [old] = of_tokens(it, 90)
    it.open("/a", 100, same_server=True)
    [new] = of_tokens(it, 20)
    assert not new.targets and it.used_tokens == 90
    it.leave(old)
    assert new.targets == [Target(2, "/a")] and it.used_tokens == 20


def test_a_full_queue_before_a_model_that_answers_is_too_many_requests() -> None:
    it, _, _ = gate(at_once=1, queue=1)
    it.open("/a")
    assert enter(it, 3)[2].refusals[0].status == 429


def test_random_requests_never_overfill_the_pool_and_all_are_served() -> None:
    draw = random.Random(7)
    it, _, _ = gate(at_once=6, queue=1000)
    it.open("/a", 1000)
    waiting = of_tokens(it, *(draw.choice((0, 1, 40, 300, 990, 1000, 2500)) for _ in range(500)))
    served: list[Request] = []
    inside: list[Request] = []
    while waiting:
        come = [request for request in waiting if request.targets]
        waiting = [request for request in waiting if not request.targets]
        inside += come
        used = sum(request.tokens for request in inside)
        assert used <= 1000 or sum(bool(request.tokens) for request in inside) == 1
        assert used == it.used_tokens
        gone = inside.pop(draw.randrange(len(inside)))
        served.append(gone)
        it.leave(gone)
    assert len(served) + len(inside) == 500
    ranks = [request.ticket for request in served + inside if request.tokens]
    assert len(set(ranks)) == len(ranks)
