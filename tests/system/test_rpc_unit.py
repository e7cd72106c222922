"""`llamad-rpc@`: a model over the devices of another host, here one in a network namespace."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.netns import far_host
from tests.system.conftest import Bed, chat, run, wait_for

UNIT = "llamad-rpc@50052"
DROP_IN = Path("/etc/systemd/system/llamad-rpc@50052.service.d/far.conf")


@pytest.fixture
def lender(bed: Bed) -> Iterator[str]:
    """Another host that lends its CPU; its address."""
    with far_host("lender", 3) as host:
        DROP_IN.parent.mkdir(parents=True, exist_ok=True)
        DROP_IN.write_text(f"[Service]\nNetworkNamespacePath=/run/netns/lender\nEnvironment=LLAMAD_RPC_HOST={host}\n")
        run("systemctl", "daemon-reload")
        bed.ctl("start", UNIT)
        try:
            yield f"{host}:50052"
        finally:
            bed.ctl("stop", UNIT)
            DROP_IN.unlink()
            run("systemctl", "daemon-reload")


def test_a_model_on_a_lent_device_counts_its_memory_and_outlives_a_death(bed: Bed, lender: str) -> None:
    url = bed.define("tiny", vulkan=False, extra=f'[placement]\ncontext = 4096\nrpc = ["{lender}"]\n')
    bed.ctl("start", "llamad@tiny", timeout=300)
    assert "on RPC0" in bed.show("llamad@tiny", "StatusText")
    assert chat(url, tokens=4)[0] == 200
    child, server = bed.child_pid("tiny"), bed.show(UNIT, "MainPID")
    (device,) = json.loads(run("llamad", "plan", "tiny", "--json").stdout)["devices"]
    assert device["name"] == "RPC0" and device["total_mib"] > 1, device
    (lease,) = json.loads(run("llamad", "status", "--json").stdout)["leases"]
    assert lease["promised_mib"][f"rpc:{lender}/0"] >= bed.tiny.stat().st_size >> 20, lease
    assert (bed.child_pid("tiny"), bed.show(UNIT, "MainPID")) == (child, server), "a device that is held is not asked"
    assert chat(url, tokens=4)[0] == 200
    asking = threading.Thread(target=chat, args=(url,), kwargs={"tokens": 300})
    asking.start()
    os.kill(child, signal.SIGKILL)
    asking.join(60)
    wait_for(lambda: bed.child_pid("tiny") not in (0, child) and chat(url, tokens=2)[0] == 200, "it answers again", 90)
    assert "on RPC0" in bed.show("llamad@tiny", "StatusText")
    assert bed.show(UNIT, "ActiveState") == "active"


def test_the_unit_as_it_is_shipped(bed: Bed) -> None:
    run("systemd-analyze", "security", "--threshold=15", "--no-pager", "llamad-rpc@50061")
    run("systemd-analyze", "verify", "--recursive-errors=no", "/usr/lib/systemd/system/llamad-rpc@.service")
    bed.ctl("start", "llamad-rpc@50061")
    try:
        def listening() -> list[str]:
            rows = run("ss", "-Hltn").stdout.splitlines()
            return [row.split()[3] for row in rows if row.split()[3].endswith(":50061")]

        wait_for(listening, "it listens", 20)
        assert listening() == ["127.0.0.1:50061"], "this machine only"
        pid = int(bed.show("llamad-rpc@50061", "MainPID"))
        owner = os.stat(f"/proc/{pid}").st_uid
        assert owner not in (0, int(run("id", "-u", "_llamad").stdout)), "a user of its own"
        ignored = next(line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn"))
        assert int(ignored, 16) >> (signal.SIGPIPE - 1) & 1, "a client that goes away does not end it"
        os.kill(pid, signal.SIGABRT)
        wait_for(lambda: bed.show("llamad-rpc@50061", "MainPID") not in ("0", str(pid)), "it is started again", 20)
        bed.ctl("start", "llamad-rpc@gpu1", check=False)
        wait_for(lambda: bed.show("llamad-rpc@gpu1", "ActiveState") == "failed", "no port: it stays failed", 20)
        assert "must be a port" in run("journalctl", "-u", "llamad-rpc@gpu1", "--no-pager").stdout
    finally:
        bed.ctl("stop", "llamad-rpc@50061", "llamad-rpc@gpu1", check=False)
