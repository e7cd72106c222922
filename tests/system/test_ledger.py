"""The ledger between real units, under the shipped sandbox."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamad.ledger.ledger import Ledger
from tests.system.conftest import ETC, Bed, run, wait_for

LEDGER = Path("/run/llamad/ledger")
SLOW = Path("/usr/local/bin/llama-server-slow")
# The model `first` never gets ready; what it leaves behind in a session of its own has its descriptors.
SLOW_TEXT = """#!/bin/sh
case " $* " in *" --fit off "*)
    case " $* " in *" --alias first "*)
        setsid sh -c 'echo $$ >/tmp/ledger-left; exec sleep 600' &
        exec sleep 600;;
    esac;;
esac
exec /usr/bin/llama-server "$@"
"""


@pytest.fixture
def slow(bed: Bed) -> Iterator[Bed]:
    """Two models that each want more than half of what is free; the first one loads for ever."""
    SLOW.write_text(SLOW_TEXT)
    SLOW.chmod(0o755)
    settings = ETC / "llamad.toml"
    saved = settings.read_text()
    settings.write_text(f'[host]\nserver = "{SLOW}"\n')
    for name in ("first", "second"):
        bed.define(name, extra=f'[placement]\nvram_margin = "{more_than_half_mib()}MiB"\n')
    yield bed
    bed.ctl("kill", "-s", "KILL", "llamad@first", check=False)
    bed.ctl("stop", "llamad@first", "llamad@second", check=False)
    settings.write_text(saved)
    SLOW.unlink()


def more_than_half_mib() -> int:
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) * 6 // 10 // 1024


def leases() -> dict[str, str]:
    """Phases by name, as anybody may read them."""
    as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]
    shown = json.loads(run(*as_nobody, "llamad", "status", "--json").stdout)
    return {lease["name"]: lease["phase"] for lease in shown["leases"]}


def alive() -> set[str]:
    """The names of all leases whose locks are held."""
    ledger = Ledger(LEDGER, "probe")
    with ledger.transaction() as transaction:
        found = {lease.name for lease in transaction.others}
    ledger.close()
    return found


def status_of(bed: Bed, name: str) -> str:
    return bed.show(f"llamad@{name}", "StatusText")


def load_first_and_let_second_wait(bed: Bed) -> None:
    bed.ctl("start", "--no-block", "llamad@first")
    wait_for(lambda: leases().get("first") == "loading", "the first one loads")
    bed.ctl("start", "--no-block", "llamad@second")
    wait_for(lambda: "waiting for" in status_of(bed, "second"), "the second one waits")


@pytest.mark.alone
def test_units_see_each_others_promises_and_their_end(slow: Bed) -> None:
    load_first_and_let_second_wait(slow)
    assert "on Vulkan0, held by first (" in status_of(slow, "second") or "the host, held by" in status_of(slow, "second")
    assert "place 1 in the queue" in status_of(slow, "second")
    assert leases() == {"first": "loading", "second": "waiting"}
    text = run("llamad", "status").stdout
    assert "Memory promised" in text and "(loading)" in text and "waiting for" in text
    assert slow.show("llamad@second", "ActiveState") == "activating"
    waiting = slow.events("second", "waiting-for-memory")
    assert len(waiting) == 1 and "held by first" in waiting[0]["LLAMAD_CAUSE"]
    slow.ctl("mask", "--runtime", "llamad@first")  # or systemd would start it again
    try:
        killed_s = time.monotonic()
        slow.ctl("kill", "-s", "KILL", "llamad@first")
        wait_for(lambda: "first" not in alive(), "its lease ends", 1.0)
        assert time.monotonic() - killed_s < 1.0
        wait_for(lambda: slow.show("llamad@second", "ActiveState") == "active", "the second one serves")
        assert leases() == {"second": "settled"}
        assert slow.events("second", "memory-granted")
    finally:
        slow.ctl("unmask", "--runtime", "llamad@first")


@pytest.mark.alone
def test_a_stop_ends_the_wait(slow: Bed) -> None:
    load_first_and_let_second_wait(slow)
    began_s = time.monotonic()
    slow.ctl("stop", "llamad@second")
    assert time.monotonic() - began_s < 3.0
    assert slow.show("llamad@second", "Result") == "success"
    assert leases() == {"first": "loading"}


def test_a_wait_in_vain_is_75_and_tried_again(slow: Bed) -> None:
    file = ETC / "second.toml"
    file.write_text(file.read_text() + "[limits]\nstart_wait_s = 1\n")
    load_first_and_let_second_wait(slow)
    wait_for(lambda: slow.events("second", "gave-up-waiting"), "it gives up", 20.0)
    wait_for(lambda: int(slow.show("llamad@second", "NRestarts")) >= 1, "systemd tries again", 20.0)


def test_a_lease_outlives_llamad_as_long_as_something_of_llama_server_lives(slow: Bed) -> None:
    """In the foreground: systemd would end all of it."""
    serving = subprocess.Popen(["llamad", "serve", "first"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    left = Path("/tmp/ledger-left")  # a unit has a /tmp of its own
    left.unlink(missing_ok=True)
    try:
        wait_for(lambda: leases().get("first") == "loading" and left.exists() and left.read_text().strip(), "it loads")
        slow.ctl("start", "--no-block", "llamad@second")
        wait_for(lambda: "held by first" in status_of(slow, "second"), "the second one waits")
        serving.kill()
        serving.wait(10)
        time.sleep(2.0)
        assert "held by first" in status_of(slow, "second")
        slow.ctl("start", "--no-block", "llamad@first")
        wait_for(lambda: "a former llama-server of this model" in status_of(slow, "first"), "its successor waits")
        slow.ctl("stop", "llamad@first")
        assert "held by first" in status_of(slow, "second")
        os.kill(int(left.read_text()), signal.SIGKILL)
        wait_for(lambda: slow.show("llamad@second", "ActiveState") == "active", "the second one serves")
    finally:
        serving.kill()
        serving.wait(10)
        if left.exists() and left.read_text().strip():
            run("kill", "-9", left.read_text().strip(), check=False)


def test_what_is_left_after_a_life(bed: Bed) -> None:
    bed.define("tiny")
    bed.ctl("start", "llamad@tiny")
    wait_for(lambda: leases() == {"tiny": "settled"}, "the lease settles")
    assert {path.name for path in LEDGER.iterdir() if not path.name.startswith(".")} == {
        "tiny.lock", "tiny.json", "tiny.owner"
    }  # fmt: skip
    child = bed.child_pid("tiny")
    held = [os.readlink(fd) for fd in Path(f"/proc/{child}/fd").iterdir()]
    assert str(LEDGER / "tiny.lock") in held and str(LEDGER / "tiny.owner") not in held
    assert not any(".ledger" in path for path in held)
    bed.ctl("restart", "llamad@tiny", timeout=60)
    wait_for(lambda: leases() == {"tiny": "settled"}, "the lease settles again")
    bed.ctl("stop", "llamad@tiny")
    assert leases() == {}
    assert not [path.name for path in LEDGER.iterdir() if not path.name.startswith(".")]
