"""A thousand random histories of models in one process: every one starts in the end, and never on another's bytes.

The drivers are simulated: bytes are taken in pieces after the promise, seen late, and given back late. The ledger, its
files and its locks are real.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from llamad.errors import BusyError
from llamad.ledger.arithmetic import MOST_PASSES
from llamad.ledger.booking import Booking, GaveUpWaiting, MustWait
from llamad.ledger.lease import Phase
from llamad.ledger.ledger import BYTES_BACK_S, Ledger
from llamad.units import MIB

CARD = 1000 * MIB
PLACES = ("GPU-a", "GPU-b")


class World:
    """The cards, as their driver shows them, and the time."""

    def __init__(self, folder: Path, choose: random.Random) -> None:
        self.folder, self.choose = folder, choose
        self.now_s = 1000.0
        self.free = dict.fromkeys(PLACES, CARD)
        self.late: list[tuple[float, str, int]] = []
        """Bytes that come back later: when, where, how many."""

    def tick(self) -> None:
        self.now_s += self.choose.uniform(0.0, 1.0)
        for row in [row for row in self.late if row[0] <= self.now_s]:
            self.late.remove(row)
            self.free[row[1]] += row[2]


class Model:
    """One model, a step at a time, as a scheduler lets it."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.need = world.choose.randint(1, 9) * 100 * MIB
        self.place, self.taken, self.lives = "", 0, 1
        self.reading: dict[str, int] | None = None
        self.booking: Booking | None = None
        self.ready, self.read_s = 0, 0.0

    def step(self) -> None:
        booking = self.booking
        if booking is None:
            self.booking = booking = Booking(Ledger(self.world.folder, self.name, now=lambda: self.world.now_s))
            booking.start_wait_s = 1e6
            booking.ledger.take()
        elif self.ready:
            self._live()
        elif self.place:
            self._take()
        elif self.reading is None:
            booking.look()
            self.read_s = self.world.now_s
            self.reading = dict(self.world.free)  # and much may happen before it is planned on
        else:
            self._plan(booking, self.reading)
            self.reading = None

    def _plan(self, booking: Booking, reading: dict[str, int]) -> None:
        try:
            with booking.step(reading) as step:
                left = step.available
                best = max(PLACES, key=lambda place: left[place])
                if left[best] < self.need and self.world.now_s - self.read_s > BYTES_BACK_S:
                    return  # too old a reading to say that there will never be room
                if left[best] < self.need:
                    step.lacks(best, self.need - left[best], PLACES)
                    raise BusyError("does not fit an empty card")
                step.promise({best: self.need}, source=self.world.choose.choice(["1", "2"]), parallel_loads=2)
        except MustWait:
            return
        self.place = best
        booking.loading(booking.promise_id, 1)

    def _take(self) -> None:
        """A piece more, as llama-server does; all of it is ready."""
        world, booking = self.world, self.booking
        assert booking is not None
        piece = min(self.need - self.taken, world.choose.randint(2, 5) * 100 * MIB)
        assert world.free[self.place] >= piece, f"{self.name}: {piece} of {world.free[self.place]} on {self.place}"
        world.free[self.place] -= piece
        self.taken += piece
        if self.taken == self.need:
            booking.settled(booking.promise_id, 1, 0)
            self.ready += 1
        elif world.choose.random() < 0.5:
            booking.progress(booking.promise_id, {self.place: self.taken})

    def _live(self) -> None:
        """It ends after a while, cleanly or not; or its llama-server dies and comes back."""
        fate = self.world.choose.random()
        booking = self.booking
        assert booking is not None
        if fate < 0.3:
            self.give_back()
            booking.ledger.release()
        elif fate < 0.6:
            self.give_back()
            booking.ledger.close()
        else:
            return
        self.booking, self.ready, self.lives = None, 0, self.lives - 1

    def give_back(self) -> None:
        if self.taken:
            at_s = self.world.now_s + self.world.choose.uniform(0.0, BYTES_BACK_S / 4)
            self.world.late.append((at_s, self.place, self.taken))
        self.place, self.taken = "", 0


@pytest.mark.parametrize("batch", range(20))
def test_random_histories(tmp_path: Path, batch: int) -> None:
    for seed in range(batch * 50, batch * 50 + 50):
        folder = tmp_path / str(seed)
        folder.mkdir()
        play(World(folder, random.Random(seed)), seed)


def play(world: World, seed: int) -> None:
    models = [Model(world, f"m{n}") for n in range(world.choose.randint(2, 5))]
    living = list(models)
    for _ in range(3000):
        world.tick()
        model = world.choose.choice(living)
        model.step()
        if not model.lives:
            living.remove(model)
        if not living:
            break
    assert not living, f"seed {seed}: {[(m.name, m.need, m.ready) for m in living]} never ended"
    last = Ledger(world.folder, "end")
    with last.transaction() as transaction:
        assert transaction.others == []
    last.close()


def test_a_large_one_is_not_passed_for_ever(tmp_path: Path) -> None:
    """Small ones come and go without end; the large one gets its card."""
    now_s = 0.0

    def model(name: str) -> Booking:
        booking = Booking(Ledger(tmp_path, name, now=lambda: now_s))
        booking.start_wait_s = 1e6
        booking.ledger.take()
        return booking

    def attempt(booking: Booking, need: int) -> bool:
        booking.look()
        try:
            with booking.step({"GPU-a": 10}) as step:
                if step.available["GPU-a"] < need:
                    step.lacks("GPU-a", need - step.available["GPU-a"], ())
                step.promise({"GPU-a": need})
        except MustWait:
            return False
        return True

    small = [model("s0"), model("s1")]
    assert attempt(small[0], 4)
    large = model("large")
    assert not attempt(large, 8)
    started = 0
    for n in range(2, 20):
        now_s += 20.0
        started += attempt(small[-1], 4)
        small.append(model(f"s{n}"))
        small[0].ledger.release()
        small.pop(0)
        if attempt(large, 8):
            break
    else:
        pytest.fail("it starved")
    assert started <= MOST_PASSES
    with large.ledger.transaction() as transaction:
        assert transaction.own and transaction.own.phase is Phase.PROMISED


def test_nobody_waits_where_waiting_is_not_allowed(tmp_path: Path) -> None:
    first, second = (Booking(Ledger(tmp_path, name)) for name in ("first", "second"))
    for booking in (first, second):
        booking.ledger.take()
    with first.step({"GPU-a": 10}) as step:
        step.promise({"GPU-a": 8})
    second.look()
    with pytest.raises(GaveUpWaiting), second.step({"GPU-a": 10}) as step:
        step.lacks("GPU-a", 3, ())
