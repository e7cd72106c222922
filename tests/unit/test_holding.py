"""The gate: who passes, who waits, in which order, and who is refused."""

from __future__ import annotations

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
    it.leave()
    assert it.in_flight == 0


def test_requests_wait_until_it_opens_and_go_in_order() -> None:
    it, _, told = gate(at_once=1)
    requests = enter(it, 3)
    assert (it.waiting, told, it.is_open) == (3, ["waiting"] * 3, False)
    it.open("/a")
    assert admitted(requests) == [0]
    it.leave()
    assert admitted(requests) == [0, 1]
    it.leave()
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
    it.leave()
    it.enter(first)
    it.open("/b")
    assert [target.generation for target in first.targets] == [1, 2]
    assert second.targets == []
    it.leave()
    assert second.targets == [Target(2, "/b")]


def test_one_that_waits_for_a_later_generation_does_not_block_the_others() -> None:
    it, _, _ = gate()
    it.open("/a")
    [dead] = enter(it)
    dead.after = 1
    it.leave()
    it.enter(dead)
    assert it.waiting == 1
    assert enter(it)[0].targets


def test_one_whose_connection_alone_died_is_admitted_again_after_settling() -> None:
    it, clock, _ = gate()
    it.open("/a")
    [request] = enter(it)
    request.after = 1
    it.leave()
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
    it.leave()
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
            it.leave()

    requests = [Instant() for _ in range(50)]
    for request in requests:
        it.enter(request)
    it.open("/a")
    assert all(len(request.targets) == 1 for request in requests)
    assert (it.in_flight, it.waiting) == (0, 0)
