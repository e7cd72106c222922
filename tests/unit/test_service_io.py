"""Notify and journal protocols against real sockets; listening sockets and their store."""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import socket
import stat
import struct
import time
from pathlib import Path

import pytest

from llamad.cli.status import print_table
from llamad.config.listen import parse_listen
from llamad.errors import AccessError, BusyError, ExitCode, os_error
from llamad.service.journal import NativeJournal
from llamad.service.notify import NoNotifier, SystemdNotifier, ascii_line, watchdog_interval_s
from llamad.service.overview import overview
from llamad.service.paths import Paths, user_run
from llamad.service.scene import Scene
from llamad.service.sockets import (
    Listening,
    _bind_error,
    listen_nowhere,
    listen_on,
    store_name,
    stored_sockets,
)
from llamad.service.start import Start
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


def test_a_service_manager_that_reads_nothing_stops_nobody(ear: Ear) -> None:
    """A process 1 that crashed keeps its socket and reads it no more; one that is gone refuses."""
    notifier = SystemdNotifier(os.environ["NOTIFY_SOCKET"])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sender.sendto(b"X=1", os.environ["NOTIFY_SOCKET"])
    with socket.create_server(("127.0.0.1", 0)) as server:
        for gone in (False, True):
            if gone:
                ear.socket.close()
                os.unlink(os.environ["NOTIFY_SOCKET"])
            began_s = time.monotonic()
            notifier.send(STATUS="x")
            notifier.store("listen-a", [server.fileno()])
            notifier.drop("listen-a")
            assert time.monotonic() - began_s < 2.0


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


def test_thousands_of_mistakes_still_reach_the_journal(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        server.settimeout(5)
        text = "\n".join(f"/etc/llamad/x.toml:{n}:1: \U0001f999: unknown key; delete it" for n in range(9_000))
        NativeJournal(path).record(text, "err", "llamad", LLAMAD_CAUSE=text, LLAMAD_FIX=text)
        assert b"x.toml:0:1:" in server.recv(1 << 20)


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


def test_where_another_process_owns_the_address_what_was_stored_is_let_go(ear: Ear) -> None:
    with socket.create_server(("127.0.0.1", 0)) as kept:
        listening = listen_nowhere({"listen-x": kept}, SystemdNotifier(os.environ["NOTIFY_SOCKET"]))
        assert listening.sockets == [] and kept.fileno() == -1
    assert {"FDSTOREREMOVE=1", "FDNAME=listen-x"} <= set(ear.hear()[0].split("\n"))


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


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[1]", '{"pid": true}', "", "\0" * 100, '{"pid": ' + "9" * 400 + "}",
     '{"pid": PID, "rate": NaN}', '{"pid": PID, "rate": -Infinity}', '{"pid": PID, "rate": 1e999}'],
    ids=["deep", "list", "bool", "empty", "nul", "long", "nan", "infinity", "beyond"],
)
def test_a_garbled_status_is_no_status(tmp_path: Path, text: str) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "status.json").write_text(text.replace("PID", str(os.getpid())))
    assert [model.state for model in overview(["tiny"], tmp_path)] == ["stopped"]


@pytest.mark.parametrize("depth", [40, 900])
def test_a_status_that_is_nested_deeply_is_none(tmp_path: Path, depth: int) -> None:
    """Reading it takes less of the stack than printing it would."""
    (tmp_path / "tiny").mkdir()
    text = f'{{"pid": {os.getpid()}, "x": {"[" * depth}{"]" * depth}}}'
    (tmp_path / "tiny" / "status.json").write_text(text)
    (model,) = overview(["tiny"], tmp_path)
    assert model.state == "stopped"


def test_a_pipe_as_status_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    os.mkfifo(tmp_path / "tiny" / "status.json")
    assert read_status("tiny", tmp_path) is None


def test_a_status_of_another_user_reaches_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny").mkdir()
    said = {"pid": os.getpid(), "state": "ready", "text": "\x1b[31m\nno\ud800", "since": 10**400}
    (tmp_path / "tiny" / "status.json").write_text(json.dumps(said))
    print_table(Scene(time.time(), overview(["tiny"], tmp_path), []))
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["NAME", "STATE", "SINCE"] and line.isprintable()
    assert (line.split()[:2], line.split()[-1]) == (["tiny", "ready"], "?[31m?no?")


def test_a_second_server_of_a_name_takes_nothing_from_the_first(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    paths = Paths(tmp_path, tmp_path, tmp_path, tmp_path / "ledger", tmp_path, None)
    first, second = (Start("tiny", tmp_path, {}, NativeJournal("/nonexistent"), NoNotifier(), paths) for _ in "12")
    first.take_name()
    first.status.update(state="ready")
    with pytest.raises(BusyError):
        second.take_name()
    second.finish()
    assert read_status(tmp_path.name, tmp_path.parent) is not None
    first.finish()
    assert read_status(tmp_path.name, tmp_path.parent) is None


@pytest.mark.parametrize("short", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE])
def test_a_lack_of_room_is_tried_again(short: int) -> None:
    """77 and 78 would leave the unit failed when the disk has long been emptied."""
    error = OSError(short, os.strerror(short))
    assert os_error("cannot make /run/x", error, "-").exit_code is ExitCode.TEMPORARY
    assert _bind_error("127.0.0.1:1", error).exit_code is ExitCode.TEMPORARY
    denied = os_error("cannot make /run/x", PermissionError(errno.EACCES, "denied"), "do that")
    assert denied.exit_code is ExitCode.NO_PERMISSION and denied.fix == "do that"
    assert _bind_error("192.0.2.1:1", OSError(errno.EADDRNOTAVAIL, "no")).exit_code is ExitCode.CONFIG


@pytest.mark.parametrize("squat", ["link", "open"])
def test_a_folder_that_others_can_write_into_holds_no_sockets(tmp_path: Path, squat: str) -> None:
    """/tmp/llamad-UID is a name that anybody can take first."""
    base, elsewhere = tmp_path / "llamad-1000", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if squat == "link":
        base.symlink_to(elsewhere)
    else:
        base.mkdir()
        base.chmod(0o777)
    run = base / "llamad"
    paths = Paths(run / "model/tiny", run / "state", run / "cache", run / "ledger", run / "api", None)
    with pytest.raises(AccessError, match="cannot be used"):
        paths.make(under_systemd=False)
    assert not list(elsewhere.iterdir()) and not run.exists()
    base.unlink() if squat == "link" else base.rmdir()
    paths.make(under_systemd=False)
    assert stat.S_IMODE(base.stat().st_mode) == 0o700 and paths.engine.is_dir()


def test_a_model_that_an_ordinary_user_serves_has_a_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = user_run(os.environ) / "model" / "tiny"
    folder.mkdir(parents=True)
    StatusFile(folder, "tiny").update(state="ready", text="ok")
    assert [model.state for model in overview(["tiny"], tmp_path / "system")] == ["ready"]


def test_nothing_but_the_ledger_is_left_in_the_foreground(tmp_path: Path) -> None:
    run = tmp_path / "own" / "llamad"
    paths = Paths(run / "model/tiny", run / "state", run / "cache", run / "ledger", run / "api", None)
    paths.make(under_systemd=False)
    start = Start("tiny", tmp_path, {}, NativeJournal("/nonexistent"), NoNotifier(), paths)
    start.take_name()
    start.__dict__["listening"] = Listening([], None)
    (paths.engine / "llama.sock").touch()
    start.finish()
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".ledger", "ledger.json"}
    assert (run / "public" / "ledger.json").read_text() == "[]\n"
