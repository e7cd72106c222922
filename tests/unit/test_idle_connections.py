"""Ten thousand connections that ask for nothing: the others are served as before, each costs little, and all are closed
by their time-out.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests/support"
CONNECTIONS = 10_000
REQUESTS = 400
IDLE_S = 10.0
CONNECTION_BYTES = 6 * 1024
"""The most that one may take here, beside what the kernel keeps of it."""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def descriptors(count: int) -> Iterator[None]:
    """Room for so many in this process, and in those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))
        except ValueError:
            pytest.skip(f"a limit of {hard} open files, and {count} are needed: raise LimitNOFILE= or `ulimit -Hn`")
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Served:
    """The relay in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        for name in ("relay_load", "relay_upstream"):
            subprocess.run(["cc", "-O2", "-o", folder / name, SUPPORT / f"{name}.c"], check=True)
        words = ["-m", "tests.support.relay_serve", "--client-idle-s", str(IDLE_S), str(self.port)]
        upstream = [folder / "upstream", folder / "journal", folder / "relay_upstream"]
        argv = [sys.executable, *words, *upstream, folder / "upstream", str(free_port()), "49"]
        self.process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None and self.process.stdout.readline() == b"ready\n"

    def memory_bytes(self) -> int:
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024

    def cpu_s(self) -> float:
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def request_cpu_s(self) -> float:
        """Processor time a request, of four clients. Every one is answered, or `relay_load` fails."""
        before_s = self.cpu_s()
        words = [self.folder / "relay_load", str(self.port), "4", str(REQUESTS), "500", "plain", "bench"]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, timeout=60)
        return (self.cpu_s() - before_s) / REQUESTS

    def end(self) -> None:
        self.process.communicate(b"x", timeout=30)


def connected(port: int, number: int) -> socket.socket:
    """One more idle client. From several addresses, for one has some 28,000 ports for all programs of a host."""
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
    sock.bind((f"127.0.0.{2 + number % 8}", 0))
    sock.connect(("127.0.0.1", port))
    return sock


def closed(clients: list[socket.socket], until_s: float) -> int:
    """How many of these the other side closes by then."""
    poller = select.epoll()
    by_fd = {sock.fileno(): sock for sock in clients}
    for fd in by_fd:
        poller.register(fd, select.EPOLLIN)
    while by_fd and (left_s := until_s - time.monotonic()) > 0:
        for fd, _ in poller.poll(left_s, 1024):
            assert by_fd[fd].recv(1) == b""
            poller.unregister(fd)
            by_fd.pop(fd).close()
    poller.close()
    return len(clients) - len(by_fd)


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_ten_thousand_idle_connections_harm_nobody_and_are_closed(tmp_path: Path) -> None:
    with descriptors(CONNECTIONS + 1000):
        served = Served(tmp_path)
        try:
            alone_s = min(served.request_cpu_s() for _ in range(3))
            before_bytes = served.memory_bytes()
            clients = [connected(served.port, number) for number in range(CONNECTIONS)]
            opened_s = time.monotonic()
            beside_s = min(served.request_cpu_s() for _ in range(3))
            each_bytes = (served.memory_bytes() - before_bytes) / CONNECTIONS
            gone = closed(clients, opened_s + IDLE_S + 30)
            after_s = served.request_cpu_s()
        finally:
            served.end()
    print(f"{each_bytes:.0f} B a connection; {alone_s * 1e6:.0f}, {beside_s * 1e6:.0f}, {after_s * 1e6:.0f} us a request")
    assert gone == CONNECTIONS
    assert beside_s < 2 * alone_s, "the others pay for idle ones"
    assert each_bytes < CONNECTION_BYTES
