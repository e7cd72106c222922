"""Other hosts for a test in the bed: network namespaces, each reached at an address of its own. As root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


def ip(*words: str) -> None:
    """Run `ip`; raises CalledProcessError with what it said."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30)


@contextmanager
def far_host(name: str, network: int) -> Iterator[str]:
    """A namespace `name`, reached from here at the address given, 10.77.`network`.2; this end is 10.77.`network`.1.

    `ip netns exec NAME` runs a program there, NetworkNamespacePath=/run/netns/NAME a unit.
    """
    here, there = f"10.77.{network}.1", f"10.77.{network}.2"
    ip("netns", "add", name)
    try:
        ip("link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("address", "add", f"{here}/24", "dev", f"to-{name}")
        ip("link", "set", f"to-{name}", "up")
        ip("-n", name, "address", "add", f"{there}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", name, "link", "set", device, "up")
        yield there
    finally:
        ip("netns", "delete", name)  # takes both ends of the pair along, once no process is in it
