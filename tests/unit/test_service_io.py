"""Notify and journal protocols against real sockets; listening sockets and their store."""

from __future__ import annotations

import array
import json
import os
import socket
import stat
import struct
from pathlib import Path

import pytest

from llamad.config.listen import parse_listen
from llamad.errors import BusyError
from llamad.service.journal import NativeJournal
from llamad.service.notify import SystemdNotifier, ascii_line, watchdog_interval_s
from llamad.service.sockets import listen_on, store_name, stored_sockets
from llamad.service.status import StatusFile, read_status


class Ear:
    """A notify socket that remembers messages and descriptors."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(5)

    def hear(self) -> tuple[str, list[int]]:
        size = array.array("i").itemsize
        data, ancillary, _, _ = self.socket.recvmsg(65536, socket.CMSG_SPACE(8 * size))
        fds = array.array("i")
        for level, kind, content in ancillary:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            fds.frombytes(content[: len(content) - len(content) % size])
        return data.decode(), list(fds)


@pytest.fixture
def ear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ear:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return Ear(tmp_path / "notify")


def test_status_is_one_ascii_line(ear: Ear) -> None:
    SystemdNotifier(os.environ["NOTIFY_SOCKET"]).send(READY=1, STATUS="ctx 8192 \u2192 4096\nok\u2026")
    assert ear.hear()[0].splitlines() == ["READY=1", "STATUS=ctx 8192 ? 4096 ok?"]
    assert len(ascii_line("x" * 9999)) == 500


def test_a_descriptor_travels_with_its_name(ear: Ear) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        SystemdNotifier(os.environ["NOTIFY_SOCKET"]).store("listen-a", [server.fileno()])
        text, fds = ear.hear()
        assert text == "FDSTORE=1\nFDNAME=listen-a\n"
        with socket.socket(fileno=fds[0]) as copy:
            assert copy.getsockname() == server.getsockname()


def test_the_watchdog_is_fed_at_half_its_time() -> None:
    assert watchdog_interval_s({"WATCHDOG_USEC": "30000000"}) == 15.0
    assert watchdog_interval_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}) is None
    assert watchdog_interval_s({}) is None


def test_journal_records_have_the_native_form(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        journal = NativeJournal(path)
        journal.record("one\ntwo", "err", "llamad", LLAMAD_EVENT="ready")
        data = server.recv(65536)
    text = b"one\ntwo"
    assert b"MESSAGE\n" + struct.pack("<Q", len(text)) + text + b"\n" in data
    assert b"PRIORITY=3\n" in data and b"LLAMAD_EVENT=ready\n" in data


def test_a_journal_that_does_not_listen_blocks_nobody(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        journal = NativeJournal(path)
        for _ in range(2_000):
            journal.record("x" * 500, "info", "llamad")
        assert journal.dropped > 0
    NativeJournal(str(tmp_path / "nothing")).record("x", "info", "llamad")


def folders(tmp_path: Path) -> tuple[Path, Path]:
    runtime, public = tmp_path / "run", tmp_path / "api"
    runtime.mkdir()
    public.mkdir()
    return runtime, public


def test_an_address_is_bound_stored_and_taken_back(tmp_path: Path, ear: Ear) -> None:
    runtime, public = folders(tmp_path)
    notifier = SystemdNotifier(os.environ["NOTIFY_SOCKET"])
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    listen = parse_listen(f"127.0.0.1:{port}")
    first = listen_on(listen, 0o600, {}, notifier, runtime, public).sockets[0]
    text, fds = ear.hear()
    assert store_name(listen) in text
    kept = socket.socket(fileno=fds[0])
    client = socket.create_connection(("127.0.0.1", port))  # waits in the queue while nobody accepts
    first.close()
    second = listen_on(listen, 0o600, {store_name(listen): kept}, notifier, runtime, public).sockets[0]
    second.setblocking(True)
    accepted, _ = second.accept()
    client.sendall(b"x")
    assert accepted.recv(1) == b"x"
    with pytest.raises(BusyError):
        listen_on(listen, 0o600, {}, notifier, runtime, public)
    for sock in (second, accepted, client):
        sock.close()


def test_a_unix_socket_has_its_mode_and_its_public_name(tmp_path: Path, ear: Ear) -> None:
    runtime, public = folders(tmp_path)
    notifier = SystemdNotifier(os.environ["NOTIFY_SOCKET"])
    listening = listen_on(parse_listen("unix:tiny.sock"), 0o660, {}, notifier, runtime, public)
    name = public / "tiny.sock"
    assert stat.S_IMODE(name.stat().st_mode) == 0o660
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(name))
    listening.sockets[0].close()


def test_what_systemd_hands_over_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stored_sockets({"LISTEN_FDS": "1", "LISTEN_PID": "1"}) == {}
    environ = {"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "a"}
    assert stored_sockets(environ) == {} and environ == {}


def test_the_public_status_is_readable_and_whole(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        StatusFile(tmp_path, "tiny").update(state="ready", text="ok")
    finally:
        os.umask(old)
    (tmp_path / "x").mkdir()
    assert stat.S_IMODE((tmp_path / "status.json").stat().st_mode) == 0o644
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "ready"
    assert read_status(tmp_path.name, tmp_path.parent) is not None
    (tmp_path / "status.json").write_text("{garbage")
    assert read_status(tmp_path.name, tmp_path.parent) is None


def test_a_full_disk_costs_a_stale_status_only(tmp_path: Path) -> None:
    status = StatusFile(tmp_path / "missing", "tiny")
    status.update(state="ready")
    assert status.failed
