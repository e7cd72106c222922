"""`llamad enable`, `disable`, `remove`, `load`, `unload` before a played systemd and a played router."""

from __future__ import annotations

import http.server
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamad.config.listen import parse_listen
from llamad.config.load import load_definition
from llamad.errors import (
    AccessError,
    BusyError,
    ChildError,
    ConfigError,
    ConfigErrors,
    LlamadError,
    UsageError,
)
from llamad.ledger import folder as files
from llamad.ledger.handover import ROUTER_NOTE, ask_back, look
from llamad.ledger.ledger import Ledger
from llamad.service import upkeep
from llamad.service.orders import ask_router, is_routers_to_load, keys_for, load, unload_from_router
from llamad.service.upkeep import backup_of, describe, disable, enable, removal, remove
from tests.support.certificates import make_certificate
from tests.support.gguf_fuzz import keys, model
from tests.support.gguf_writer import write_gguf


class PlayedUnits:
    """Remembers orders; `states` has ActiveState and UnitFileState by name."""

    def __init__(self, there: bool = True, router: bool = False, status: int = 0) -> None:
        self.there = there
        self.router = router
        self.status = status
        self.states: dict[str, tuple[str, str]] = {}
        self.orders: list[str] = []

    def are_there(self) -> bool:
        return self.there

    def show(self, name: str) -> dict[str, str]:
        active, enabled = self.states.get(name, ("inactive", "disabled"))
        return {"ActiveState": active, "UnitFileState": enabled}

    def is_active(self, unit: str) -> bool:
        return self.router if unit == "llamad.service" else self.states.get(unit[7:-8], ("",))[0] == "active"

    def order(self, *words: str) -> int:
        self.orders.append(" ".join(words))
        return self.status


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    root = tmp_path / "etc"
    root.mkdir()
    write_gguf(tmp_path / "m.gguf", keys("llama"), model(), None)
    (root / "phi4.toml").write_text(f'model = "{tmp_path}/m.gguf"\nlisten = "127.0.0.1:8081"\n')
    return root


def test_what_has_a_mistake_is_not_enabled(etc: Path) -> None:
    units = PlayedUnits()
    (etc / "bad.toml").write_text("modle = 1\n")
    with pytest.raises(ConfigError, match="modle"):
        enable("bad", etc, units, print)
    with pytest.raises(ConfigErrors, match="which the unit does not see"):  # it lies in /tmp
        enable("phi4", etc, units, print)
    with pytest.raises(UsageError, match="did you mean phi4"):
        enable("phi5", etc, units, print)
    assert units.orders == []


def test_enable_and_disable_say_what_they_do(etc: Path) -> None:
    units, said = PlayedUnits(router=True), list[str]()
    assert enable("phi4", etc, units, said.append, sandboxed=False) == 0
    assert units.orders == ["enable --now llamad@phi4.service"]
    assert "hands it over" in said[0] and said[-1] == "phi4 is served on 127.0.0.1:8081, now and after every boot"
    assert disable("phi4", etc, units, said.append) == 0
    assert units.orders[1:] == ["disable --now llamad@phi4.service"]
    assert "the definition stays" in said[-2] and "loads phi4 with the next request" in said[-1]


def test_what_is_only_misspelt_is_not_said_to_be_stopped(etc: Path) -> None:
    """systemd knows a unit of every name."""
    units, said = PlayedUnits(), list[str]()
    with pytest.raises(UsageError, match="no definition named phi5"):
        disable("phi5", etc, units, said.append)
    assert (units.orders, said) == ([], [])
    units.states["gone"] = ("active", "enabled")
    assert disable("gone", etc, units, said.append) == 0
    assert said == ["llamad@gone is stopped and does not start at boot"]


def test_a_unit_that_does_not_start_is_told_with_where_to_look(etc: Path) -> None:
    said: list[str] = []
    assert enable("phi4", etc, PlayedUnits(status=1), said.append, sandboxed=False) == 1
    assert "journalctl -u llamad@phi4" in said[-1] and len(said) == 2


def test_without_systemd_they_say_what_does_the_same(etc: Path) -> None:
    units = PlayedUnits(there=False)
    for verb, instead in ((enable, "`llamad serve phi4`"), (disable, "`llamad serve phi4`"), (load, "`llamad serve phi4`")):
        with pytest.raises(AccessError, match="there is no systemd") as caught:
            verb("phi4", etc, units, print)
        assert instead in str(caught.value)
    found = removal("phi4", etc, units)
    assert remove(found, units, print, purge=False, backup=True) == 0
    assert units.orders == [] and not (etc / "phi4.toml").exists()


def test_remove_stops_keeps_a_backup_and_says_what_stays(etc: Path) -> None:
    units = PlayedUnits(router=True)
    units.states["phi4"] = ("active", "enabled")
    (etc / "phi4.toml.d").mkdir()
    (etc / "phi4.toml.d" / "10-x.toml").write_text("")
    found = removal("phi4", etc, units)
    text = "\n".join(describe(found, purge=False, backup=True))
    assert "finishes its requests" in text and "disabled" in text
    assert f"moved to {etc}/phi4.toml.removed" in text and f"kept: {etc.parent}/m.gguf" in text
    said: list[str] = []
    assert remove(found, units, said.append, purge=False, backup=True) == 0
    assert units.orders == ["disable --now llamad@phi4.service", "reload llamad.service"]
    assert sorted(os.listdir(etc)) == ["phi4.toml.removed", "phi4.toml.removed.d"]
    assert (etc / "phi4.toml.removed.d" / "10-x.toml").exists() and (etc.parent / "m.gguf").exists()
    (etc / "phi4.toml").write_text("again")
    assert backup_of(etc / "phi4.toml") == etc / "phi4.toml.removed.2"


def test_a_unit_that_cannot_be_stopped_keeps_its_definition(etc: Path) -> None:
    units = PlayedUnits(status=1)
    units.states["phi4"] = ("active", "disabled")
    with pytest.raises(BusyError, match="cannot be stopped"):
        remove(removal("phi4", etc, units), units, print, purge=False, backup=True)
    assert (etc / "phi4.toml").exists()


def test_purge_deletes_what_was_learned_and_follows_no_link(etc: Path, tmp_path: Path) -> None:
    state, precious = tmp_path / "state", tmp_path / "precious"
    state.mkdir()
    precious.mkdir()
    (precious / "file").write_text("")
    (state / "inside").symlink_to(precious)
    (etc / "broken.toml").write_text("[")
    found = removal("broken", etc, PlayedUnits())
    assert found.model == ""
    found = upkeep.Removal(**{**vars(found), "left": (state,)})
    assert str(state) in describe(found, purge=True, backup=False)[-1]
    assert remove(found, PlayedUnits(), print, purge=True, backup=False) == 0
    assert not state.exists() and (precious / "file").exists() and os.listdir(etc) == ["phi4.toml"]
    (etc / "broken.toml").write_text("[")
    (tmp_path / "link").symlink_to(precious)
    found = upkeep.Removal(**{**vars(found), "left": (tmp_path / "link",)})
    units = PlayedUnits(router=True)
    with pytest.raises(LlamadError):
        remove(found, units, print, purge=True, backup=False)
    assert (precious / "file").exists()
    assert units.orders == ["reload llamad.service"]  # the definition is gone, whatever became of the caches


# -- load and unload ------------------------------------------------------------------------------------------------


def test_who_is_asked_to_load(etc: Path) -> None:
    loaded = load_definition("phi4", etc)
    units = PlayedUnits()
    assert not is_routers_to_load(loaded, units)
    units.router = True
    assert is_routers_to_load(loaded, units)
    for state in (("active", "disabled"), ("inactive", "enabled")):
        units.states["phi4"] = state
        assert not is_routers_to_load(loaded, units)
    assert load("phi4", etc, units, lambda _text: None) == 0
    assert units.orders == ["start llamad@phi4.service"]


class _Router(http.server.BaseHTTPRequestHandler):
    status = 200
    seen: list[tuple[str, str | None]]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, self.headers["Authorization"]))
        body = b'{"error": {"message": "no memory"}}'
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Not on the terminal."""


@pytest.fixture
def router() -> Iterator[tuple[int, type[_Router]]]:
    kind = type("Router", (_Router,), {"seen": []})
    server = http.server.HTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_port, kind
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_router_is_asked_by_a_request_for_the_model(router: tuple[int, type[_Router]]) -> None:
    port, kind = router
    for listen in (f"127.0.0.1:{port}", f"0.0.0.0:{port}"):
        ask_router("phi4", parse_listen(listen), "k1", 5)
    ask_router("phi4", parse_listen(f"127.0.0.1:{port}"), "", 5)
    assert kind.seen == [("/upstream/phi4/tokenize", "Bearer k1")] * 2 + [("/upstream/phi4/tokenize", None)]
    for status, error, says in ((401, AccessError, "API key"), (503, ChildError, "no memory"), (404, ChildError, "newer")):
        kind.status = status
        with pytest.raises(error, match=r"router") as caught:
            ask_router("phi4", parse_listen(f"127.0.0.1:{port}"), "", 5)
        assert says in str(caught.value)


def test_a_router_with_a_certificate_is_known_by_it(router: tuple[int, type[_Router]], tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    ours, key = make_certificate(tmp_path)
    theirs, _ = make_certificate(tmp_path / "theirs")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ours, key)
    kind = type("Router", (_Router,), {"seen": []})
    server = http.server.HTTPServer(("127.0.0.1", 0), kind)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        listen = parse_listen(f"127.0.0.1:{server.server_port}")
        ask_router("phi4", listen, "k", 20, str(ours))
        with pytest.raises(BusyError, match="certificate verify failed"):
            ask_router("phi4", listen, "k", 20, str(theirs))
        assert kind.seen == [("/upstream/phi4/tokenize", "Bearer k")]  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_router_that_does_not_answer() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        listen = parse_listen(f"127.0.0.1:{sock.getsockname()[1]}")
        with pytest.raises(BusyError, match="does not answer"):
            ask_router("phi4", listen, "", 5)
        sock.listen()
        with pytest.raises(BusyError, match="has not loaded phi4"):
            ask_router("phi4", listen, "", 0.05)


def test_the_key_of_the_model_goes_before_that_of_the_address(etc: Path) -> None:
    (etc / "a.keys").write_text("# ours\n\n own \nmore\n")
    (etc / "host.keys").write_text("common\n")
    (etc / "llamad.toml").write_text(f'[host]\napi_keys_file = "{etc}/host.keys"\n')
    assert keys_for("phi4", load_definition("phi4", etc)) == "common"
    (etc / "phi4.toml").write_text(f'model = "/m.gguf"\napi_keys_file = "{etc}/a.keys"\n')
    assert keys_for("phi4", load_definition("phi4", etc)) == "own"


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    folder = tmp_path / "ledger"
    folder.mkdir()
    return folder


def test_the_router_is_asked_to_let_go_and_nothing_is_taken(ledger: Path, etc: Path) -> None:
    routers = Ledger(ledger, "phi4")
    routers.take(ROUTER_NOTE)
    wanted = ledger / "phi4.wanted"

    def let_go() -> None:
        while not (wanted.exists() and files.is_held(str(wanted)) and look(routers).given_up):
            pass
        assert look(routers).wanted == look(routers).given_up == {"phi4"}
        routers.release()

    thread = threading.Thread(target=let_go)
    thread.start()
    assert unload_from_router("phi4", ledger, load_definition("phi4", etc))
    thread.join()
    assert not wanted.exists()
    Ledger(ledger, "phi4").take()  # it is free


def test_what_the_router_does_not_have_is_not_unloaded(ledger: Path, etc: Path) -> None:
    assert not ask_back(Ledger(ledger, "phi4"), 5)
    own = Ledger(ledger, "phi4")
    own.take()
    assert not ask_back(Ledger(ledger, "phi4"), 5), "it is a unit's"
    own.release()
    routers = Ledger(ledger, "phi4")
    routers.take(ROUTER_NOTE)
    with pytest.raises(BusyError, match="still has phi4"):
        ask_back(Ledger(ledger, "phi4"), 0.05)
    assert not (ledger / "phi4.wanted").exists()
    (etc / "phi4.toml").write_text('model = "/m.gguf"\nstart = "always"\n')
    with pytest.raises(BusyError, match="would load phi4 again"):
        unload_from_router("phi4", ledger, load_definition("phi4", etc))
    routers.release()
