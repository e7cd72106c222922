"""No device: never ready, retried for ever, explained; with `allow_cpu` it serves and says so."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.system.conftest import Bed, chat, run, wait_for


def test_without_a_device_the_unit_is_retried_and_says_why(bed: Bed) -> None:
    bed.define("tiny", vulkan=False)
    assert bed.ctl("start", "llamad@tiny", check=False).returncode != 0
    wait_for(lambda: int(bed.show("llamad@tiny", "NRestarts")) >= 4, "four retries", 30)
    wait_for(lambda: bed.show("llamad@tiny", "SubState").startswith("auto-restart"), "waits for the next", 30, 0.01)
    assert bed.show("llamad@tiny", "ExecMainStatus") == "69"
    assert bed.show("llamad@tiny", "ActiveState") == "activating", "retried, not failed"
    assert not bed.events("tiny", "ready")
    event = bed.events("tiny", "no-device")[0]
    assert event["LLAMAD_FIX"] != "-" and "allow_cpu" in event["LLAMAD_FIX"] + event["MESSAGE"]
    explained = run("journalctl", "-x", "-b", "--no-pager", "LLAMAD_EVENT=no-device", "LLAMAD_MODEL=tiny").stdout
    assert "allow_cpu" in explained and "tried again for ever" in explained, "the catalog's words"
    assert "device" in bed.show("llamad@tiny", "StatusText")
    delay = bed.show("llamad@tiny", "RestartUSecNext")
    assert delay != bed.show("llamad@tiny", "RestartUSec"), "each retry waits longer"


def test_a_device_that_appears_is_used_without_a_human(bed: Bed) -> None:
    bed.define("tiny", vulkan=False)
    bed.ctl("start", "llamad@tiny", check=False)
    bed.define("tiny")
    wait_for(lambda: bed.show("llamad@tiny", "ActiveState") == "active", "ready after the device appeared", 60)
    assert "Vulkan0" in bed.show("llamad@tiny", "StatusText")


def test_allow_cpu_serves_and_says_so(bed: Bed) -> None:
    url = bed.define("tiny", vulkan=False, extra="[placement]\nallow_cpu = true")
    bed.ctl("start", "llamad@tiny")
    assert "CPU" in bed.show("llamad@tiny", "StatusText")
    assert bed.events("tiny", "serving-on-cpu")
    assert chat(url)[0] == 200


def test_an_engine_that_is_replaced_on_disk_is_told_and_used_by_the_next_child(bed: Bed) -> None:
    url = bed.define("tiny")
    bed.ctl("start", "llamad@tiny")
    child = bed.child_pid("tiny")
    (library, *_) = sorted(Path("/usr/lib").glob("*/libggml-base.so.*"))
    os.utime(library.resolve())  # what an upgrade does to it, as far as it can be seen
    bed.ctl("reload", "llamad@tiny")
    wait_for(lambda: "installed b" in bed.show("llamad@tiny", "StatusText"), "the status says so", 30)
    text = bed.show("llamad@tiny", "StatusText")
    assert text.startswith("ready: ") and text.endswith("(other files)"), text
    assert "installed b" in run("llamad", "status", "tiny").stdout
    (record,) = bed.events("tiny", "engine-replaced")
    assert record["LLAMAD_FIX"] == "systemctl restart llamad@tiny"
    assert bed.child_pid("tiny") == child and chat(url)[0] == 200, "nothing is restarted for it"
    os.kill(child, signal.SIGKILL)
    wait_for(lambda: len(bed.events("tiny", "ready")) == 2, "ready again", 60)
    wait_for(lambda: "installed b" not in bed.show("llamad@tiny", "StatusText"), "the new child is what is installed", 30)
    assert len(bed.events("tiny", "planned")) == 2, "and was planned with what it can do"
