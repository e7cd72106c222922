"""The ledger's files and locks, with real processes that are stopped and killed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamad.errors import AccessError, BusyError
from llamad.ledger import folder as files
from llamad.ledger.booking import Booking, GaveUpWaiting, MustWait
from llamad.ledger.lease import HOST, Lease, Phase
from llamad.ledger.ledger import BYTES_BACK_S, Ledger
from llamad.ledger.public import read_public
from llamad.ledger.wake import Watch

ROOT = Path(__file__).parents[2]
CARD = {"GPU-a": 100, HOST: 1000}

# Serves NAME: takes 60 bytes, says so, and then does what its words on stdin say.
SERVER = """
import os, subprocess, sys
from pathlib import Path
from llamad.ledger.booking import Booking
from llamad.ledger.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), sys.argv[2])
booking = Booking(ledger)
ledger.take()
with booking.step({"GPU-a": 100, "host": 1000}) as step:
    step.promise({"GPU-a": 60})
print("promised", flush=True)
for line in sys.stdin:
    if line == "child\\n":
        child = subprocess.Popen(["sleep", "60"], pass_fds=ledger.lease_fds, stdout=subprocess.DEVNULL)
        print(child.pid, flush=True)
    if line == "lock\\n":
        with ledger.transaction():
            print("locked", flush=True)
            sys.stdin.readline()
"""


class Server:
    """A process that serves a model."""

    def __init__(self, folder: Path, name: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(folder), name], cwd=ROOT, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.heard() == "promised"

    def heard(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def tell(self, word: str) -> str:
        assert self.process.stdin
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.heard()

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(10)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path, "phi4")
    yield made
    made.end()
    for pipe in (made.process.stdin, made.process.stdout):
        assert pipe
        pipe.close()


def held_by_others(folder: Path, name: str = "probe") -> dict[str, int]:
    """What another model's planning would see as promised."""
    ledger = Ledger(folder, name)
    booking = Booking(ledger)
    booking.look()
    with ledger.transaction() as transaction:
        left = booking.reserved(transaction)
    ledger.close()
    return left


def gone_within(folder: Path, limit_s: float = 1.0) -> bool:
    end_s = time.monotonic() + limit_s
    while held_by_others(folder):
        if time.monotonic() > end_s:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.alone
def test_a_second_server_of_a_name_is_refused_at_once_and_told_by_whom(tmp_path: Path, server: Server) -> None:
    began_s = time.monotonic()
    with pytest.raises(BusyError, match=f"phi4 is served already: by process {server.process.pid}"):
        Ledger(tmp_path, "phi4").take()
    assert time.monotonic() - began_s < 0.1
    assert held_by_others(tmp_path) == {"GPU-a": 60}


def test_a_killed_server_holds_nothing(tmp_path: Path, server: Server) -> None:
    assert held_by_others(tmp_path) == {"GPU-a": 60}
    server.end()
    assert gone_within(tmp_path)
    assert not list(tmp_path.glob("phi4.*"))
    Ledger(tmp_path, "phi4").take()


def test_a_lease_lives_as_long_as_its_llama_server(tmp_path: Path, server: Server) -> None:
    child = int(server.tell("child"))
    server.end()
    assert not gone_within(tmp_path, 0.3)
    again = Ledger(tmp_path, "phi4")
    again.take()  # the name is free: nobody serves it
    with pytest.raises(MustWait, match="a former llama-server"):
        booking = Booking(again)
        booking.start_wait_s = 60
        with booking.step(CARD):
            pytest.fail("planned on bytes that are taken")
    assert held_by_others(tmp_path) == {"GPU-a": 60}
    os.kill(child, signal.SIGKILL)
    assert gone_within(tmp_path)


def test_a_stopped_holder_of_the_lock_is_named(tmp_path: Path, server: Server) -> None:
    assert server.tell("lock") == "locked"
    os.kill(server.process.pid, signal.SIGSTOP)
    with pytest.raises(BusyError, match=rf"phi4 \(process {server.process.pid}\) has it"):  # noqa: SIM117
        with Ledger(tmp_path, "other").transaction(0.2):
            pytest.fail("two hold the lock")
    os.kill(server.process.pid, signal.SIGKILL)
    with Ledger(tmp_path, "other").transaction(0.5) as transaction:
        assert transaction.others == []


@pytest.mark.parametrize("death", ["lock", "lease"])
def test_who_waits_is_woken_by_a_death(tmp_path: Path, server: Server, death: str) -> None:
    watch = Watch(tmp_path)
    assert watch.fd >= 0
    if death == "lock":
        server.tell("lock")
    began_s = time.monotonic()
    server.end()
    ready, _, _ = select.select([watch.fd], [], [], 1.0)
    assert ready and watch.read()
    assert gone_within(tmp_path, 0.3)
    assert time.monotonic() - began_s < 0.5
    watch.close()


def test_looking_wakes_nobody(tmp_path: Path, server: Server) -> None:
    """Or those that wait would wake each other for ever."""
    other = Ledger(tmp_path, "other")
    for _ in range(2):
        with other.transaction():
            pass
    watch = Watch(tmp_path)
    with other.transaction() as transaction:
        assert [lease.name for lease in transaction.others] == ["phi4"]
    ready, _, _ = select.select([watch.fd], [], [], 0.2)
    assert not ready
    watch.close()


@pytest.mark.parametrize("garbage", [b"", b"{", b"\xff\xfe", b"[" * 60_000, b'{"name":"other","phase":"settled"}'])
def test_garbage_in_a_lease_stops_nobody_and_is_told(tmp_path: Path, server: Server, garbage: bytes) -> None:
    (tmp_path / "phi4.json").write_bytes(garbage)
    ledger = Ledger(tmp_path, "other")
    ledger.take()
    booking = Booking(ledger)
    booking.look()
    with booking.step(CARD) as step:
        assert step.reserved == {}
        step.promise({"GPU-a": 10})
    assert booking.problems == (str(tmp_path / "phi4.json"),)
    server.end()
    assert gone_within(tmp_path, 1) is False and held_by_others(tmp_path) == {"GPU-a": 10}
    ledger.release()


def test_what_is_no_models_is_left_alone(tmp_path: Path) -> None:
    strangers = ["README", "Big.json", "-x.lock", "a b.json", "x" * 60 + ".lock", "note.txt"]
    for name in strangers:
        (tmp_path / name).touch()
    (tmp_path / ".gone.json.new").touch()  # what a writer left that was killed
    (tmp_path / "removed.json").write_text('{"name":"removed","phase":"settled","promised":{"GPU-a":50}}')
    (tmp_path / "removed.lock").touch()
    os.symlink("/etc/passwd", tmp_path / "link.json")
    assert held_by_others(tmp_path) == {"GPU-a": 50}, "when it ended is not known: it may be a moment ago"
    assert held_by_others(tmp_path) == {}
    assert {path.name for path in tmp_path.iterdir()} - {".ledger", ".departed"} == set(strangers)


def test_a_missing_folder_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match=r"no.such.*systemd-tmpfiles"):
        Ledger(tmp_path / "no" / "such", "tiny").take()


def test_a_lock_file_that_was_removed_does_not_make_two_ledgers(tmp_path: Path) -> None:
    one, two = Ledger(tmp_path, "one"), Ledger(tmp_path, "two")
    with one.transaction():
        pass
    (tmp_path / files.LEDGER_LOCK).unlink()
    with two.transaction(), pytest.raises(BusyError), one.transaction(0.05):
        pytest.fail("two hold the lock")


def test_a_life_in_the_ledger(tmp_path: Path) -> None:
    public = tmp_path / "public.json"
    folder = tmp_path / "ledger"
    folder.mkdir()
    ledger = Ledger(folder, "tiny", public)
    booking = Booking(ledger)
    ledger.take()
    with booking.step(CARD, {"GPU-a": "CUDA0"}) as step:
        step.promise({"GPU-a": 60, HOST: 100})
    promise = booking.promise_id
    assert held_by_others(folder) == {"GPU-a": 60, HOST: 100}
    booking.loading(promise, 4711)
    booking.progress(promise, {"GPU-a": 20})
    assert held_by_others(folder) == {"GPU-a": 40, HOST: 100}
    booking.settled("another", 4711, 70)
    assert held_by_others(folder) == {"GPU-a": 40, HOST: 100}, "a late word about an earlier promise"
    booking.settled(promise, 4711, 70)
    assert held_by_others(folder) == {"GPU-a": 0, HOST: 30}, "mapped files still look available"
    assert [(lease.name, lease.phase, lease.names) for lease in read_public(public)] == [
        ("tiny", Phase.SETTLED, {"GPU-a": "CUDA0", HOST: HOST})
    ]
    assert public.stat().st_mode & 0o777 == 0o644
    booking.returning(promise)
    assert held_by_others(folder) == {"GPU-a": 60, HOST: 100}
    ledger.release()
    assert held_by_others(folder) == {} and read_public(public) == []
    assert {path.name for path in folder.iterdir()} == {".ledger", ".departed"}


def test_what_the_driver_says_of_a_process_counts_while_it_loads(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "tiny")
    booking = Booking(ledger)
    ledger.take()
    with booking.step(CARD) as step:
        step.promise({"GPU-a": 60})
    booking.loading(booking.promise_id, 4711)
    other = Ledger(tmp_path, "other")
    (seen,) = other.seen(lambda: {"GPU-a": {4711: 25, 99: 70}, "GPU-b": {4711: 5}}).values()
    assert seen == {"GPU-a": 25}
    (seen,) = other.seen(lambda: {"GPU-a": {4711: 80}}).values()
    assert seen == {"GPU-a": 60}, "no more than was promised"
    ledger.release()


class Line:
    """Models of one process, on a clock of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_s = 1000.0

    def model(self, name: str, wait_s: float = 100.0) -> Booking:
        booking = Booking(Ledger(self.folder, name, now=lambda: self.now_s))
        booking.start_wait_s = wait_s
        booking.ledger.take()
        return booking


def promise(booking: Booking, need: int, free: int = 100, **rest: object) -> None:
    """Plan as a model of one size does."""
    booking.look()
    with booking.step({"GPU-a": free}, {"GPU-a": "CUDA0"}) as step:
        missing = need - step.available["GPU-a"]
        if missing > 0:
            step.lacks("GPU-a", missing, ())
            raise BusyError("does not fit")
        step.promise({"GPU-a": need}, **rest)  # type: ignore[arg-type]


def test_waiting_says_for_what_who_has_it_and_the_place(tmp_path: Path) -> None:
    line = Line(tmp_path)
    first, second, third, fourth = map(line.model, ["first", "second", "third", "fourth"])
    promise(first, 60)
    with pytest.raises(MustWait, match=r"waiting for 70 B on CUDA0, held by first \(60 B\); place 1 in the queue"):
        promise(second, 70)
    with pytest.raises(MustWait, match="place 2 in the queue"):
        promise(third, 80)
    promise(fourth, 10)
    with first.ledger.transaction() as transaction:
        assert {lease.name: lease.passed for lease in transaction.others} == {"second": 1, "third": 1, "fourth": 0}
    first.ledger.release()
    with pytest.raises(MustWait, match="after second"):
        promise(third, 80)  # it would fit, and it is not its turn
    assert second.look_for_change()
    promise(second, 70)
    assert held_by_others(tmp_path) == {"GPU-a": 80}


def test_a_wait_ends_with_its_time(tmp_path: Path) -> None:
    line = Line(tmp_path)
    first, second = line.model("first"), line.model("second")
    promise(first, 60)
    for _ in range(2):
        with pytest.raises(MustWait):
            promise(second, 70)
        line.now_s += 60.0
    with pytest.raises(GaveUpWaiting, match=r"waited 100 s for 70 B on CUDA0, held by first .*start_wait_s"):
        promise(second, 70)


def test_where_no_wait_can_help_nobody_waits(tmp_path: Path) -> None:
    line = Line(tmp_path)
    first, second = line.model("first"), line.model("second")
    promise(first, 20)
    with pytest.raises(BusyError, match="does not fit") as caught:
        promise(second, 130)
    assert not isinstance(caught.value, MustWait)
    first.loading(first.promise_id, 1)
    first.ledger.release()
    with pytest.raises(MustWait, match="others have just given back"):
        promise(second, 70, free=50)  # the driver is slow to show it
    line.now_s += BYTES_BACK_S
    with pytest.raises(BusyError, match="does not fit"):
        promise(second, 70, free=50)


def test_a_turn_to_load_renews_the_patience(tmp_path: Path) -> None:
    line = Line(tmp_path)
    one, two, three = map(line.model, ["one", "two", "three"])
    promise(one, 10, source="disk")
    with pytest.raises(MustWait, match="its turn to load, after one; place 1"):
        promise(two, 10, source="disk")
    with pytest.raises(MustWait, match="its turn to load, after one, two; place 2"):
        promise(three, 10, source="disk")
    line.now_s += 90.0
    one.loading(one.promise_id, 1)
    one.settled(one.promise_id, 1, 0)
    with pytest.raises(MustWait):
        promise(three, 10, source="disk")
    promise(two, 10, source="disk")
    line.now_s += 90.0
    with pytest.raises(MustWait):
        promise(three, 10, source="disk")


def test_a_successor_waits_for_the_bytes_of_a_killed_run(tmp_path: Path) -> None:
    server = Server(tmp_path, "phi4")
    (tmp_path / "phi4.json").write_text((tmp_path / "phi4.json").read_text().replace('"promised","', '"loading","', 1)
                                        .replace('"phase":"promised"', '"phase":"loading"'))  # fmt: skip
    server.end()
    booking = Booking(Ledger(tmp_path, "phi4"))
    booking.start_wait_s = 60
    booking.ledger.take()
    with pytest.raises(MustWait, match="the driver to show the memory of the former run"):
        promise(booking, 30, free=40 - 64 * (1 << 20))
    promise(booking, 60, free=100)
    booking.ledger.release()


def test_a_full_disk_refuses_a_start_and_lets_the_others_live(tmp_path: Path) -> None:
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from llamad.errors import BusyError
from llamad.ledger.booking import Booking
from llamad.ledger.ledger import Ledger
folder = Path(sys.argv[1])
def fill():
    '''Blocks by one file, inodes by many.'''
    fd = os.open(folder / "FILL", os.O_CREAT | os.O_WRONLY)
    try:
        while os.write(fd, b"x" * 4096): pass
    except OSError: pass
    try:
        for n in range(1000): (folder / f"FILL{{n}}").touch()
    except OSError: pass
first = Ledger(folder, "first"); first.take(); booking = Booking(first)
with booking.step({{"GPU-a": 100}}) as step: step.promise({{"GPU-a": 60}})
fill()
booking.loading(booking.promise_id, 4711)
booking.settled(booking.promise_id, 4711, 0)
with first.transaction() as t: print(t.own.phase)
second = Ledger(folder, "second")
try:
    second.take()
    print("took")
except BusyError as error:
    print(int(error.exit_code), error.why)
"""
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
         f'mount -t tmpfs -o size=32k,nr_inodes=12 none {tmp_path} && exec "$0" -c "$1" {tmp_path}',
         sys.executable, script],
        capture_output=True, text=True, timeout=60, cwd="/",
    )  # fmt: skip
    if "unshare" in done.stderr:
        pytest.skip("no user namespaces here")
    assert done.stdout.splitlines() == ["settled", "75 No space left on device"], done.stderr


@pytest.mark.alone
def test_a_transaction_costs_little(tmp_path: Path) -> None:
    """With twenty models, and all the reading and writing of a promise."""
    others = [Ledger(tmp_path, f"model{n}") for n in range(20)]
    for other in others:
        other.take()
        with other.transaction() as transaction:
            transaction.put(Lease(other.name, Phase.SETTLED, other.name, {"GPU-a": 1}, pids=(1,)))
    booking = Line(tmp_path).model("one")
    times = []
    for _ in range(15):
        began_s = time.process_time()
        promise(booking, 10)
        times.append(time.process_time() - began_s)
        with booking.ledger.transaction() as transaction:
            transaction.put((transaction.own or pytest.fail("no lease"))._replace(phase=Phase.SETTLED))
    assert sorted(times)[len(times) // 2] < 0.005


def test_what_comes_after_a_release_comes_too_late_until_the_name_is_taken_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "a")
    ledger.take()
    entered, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with ledger.transaction():
            entered.set()
            go_on.wait(10)

    holder, closer = threading.Thread(target=hold), threading.Thread(target=ledger.close)
    holder.start()
    assert entered.wait(10)
    closer.start()
    closer.join(0.2)
    assert closer.is_alive()  # no descriptor is closed under a transaction
    go_on.set()
    holder.join(10)
    closer.join(10)
    with pytest.raises(BusyError, match="given back"), ledger.transaction():
        pass
    ledger.take()
    with ledger.transaction() as transaction:
        assert transaction.begin()
    ledger.release()
