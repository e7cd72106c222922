"""Loading a model now and unloading it now, whoever serves it: its unit, or the router. Blocking."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llamad.config.listen import Listen, parse_listen
from llamad.config.load import load_definition
from llamad.config.loaded import Loaded
from llamad.errors import AccessError, BusyError, ChildError
from llamad.ledger.handover import ask_back
from llamad.ledger.ledger import Ledger
from llamad.service.keys import first_key
from llamad.service.paths import SYSTEM_RUN
from llamad.service.systemctl import ROUTER_UNIT, Units, unit_of
from llamad.service.upkeep import require_definition

if TYPE_CHECKING:
    import ssl

CREDENTIALS = Path("/etc/credstore")
SLACK_S = 30.0
_BODY = b'{"content": "a"}'


def is_routers_to_load(loaded: Loaded, units: Units) -> bool:
    """Whether a load is for the router: it runs, and neither a unit nor the admin alone is to start the model."""
    if not units.are_there() or not units.is_active(ROUTER_UNIT) or loaded.definition.start == "manual":
        return False
    unit = units.show(loaded.name)
    return unit.get("UnitFileState") != "enabled" and unit.get("ActiveState") not in ("active", "activating")


def load(name: str, root: Path, units: Units, say: Callable[[str], None]) -> int:
    """Have a model loaded: by the router where it runs, else by its unit; returns when it serves.

    Raises ConfigError, BusyError, AccessError, ChildError where the router cannot.
    """
    require_definition(name, root)
    loaded = load_definition(name, root)
    if is_routers_to_load(loaded, units):
        say(f"the router loads {name}")
        wait_s = loaded.definition.limits.wait_s + SLACK_S
        host = loaded.host
        ask_router(name, parse_listen(host.listen), keys_for(name, loaded), wait_s, host.tls_cert)
        return 0
    if not units.are_there():
        raise AccessError("there is no systemd here", fix=f"`llamad serve {name}`, or a request to a router that runs")
    say(f"starting llamad@{name}: this returns when a token was generated")
    return units.order("start", unit_of(name))


def keys_for(name: str, loaded: Loaded) -> str:
    """An API key that opens the model behind the router; empty where none is asked for or can be read.

    A model that has keys of its own is opened by those alone.
    """
    own = (CREDENTIALS / f"llamad.api-key.{name}", loaded.definition.api_keys_file)
    common = (CREDENTIALS / "llamad.api-key.llamad", loaded.host.api_keys_file)
    return first_key((*own, *common))


class _Local(http.client.HTTPConnection):
    """To an address of this host, which shows this certificate and no other where it has one."""

    def __init__(self, listen: Listen, certificate: str | None, timeout_s: float) -> None:
        self._listen = listen
        self._certificate = certificate
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host) or "localhost"
        super().__init__(host, listen.port or 80, timeout=timeout_s)

    def connect(self) -> None:
        if self._listen.kind == "tcp":
            super().connect()
        else:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(str(SYSTEM_RUN / "api" / self._listen.path))
        if self._certificate is not None:
            self.sock = _trusting(self._certificate).wrap_socket(self.sock)


def _trusting(certificate: str) -> ssl.SSLContext:
    """Trusts one certificate, whatever name is in it: the address is this host's."""
    import ssl  # most addresses have none

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(certificate)
    return context


def ask_router(name: str, listen: Listen, key: str, wait_s: float, certificate: str | None = None) -> None:
    """Send the router a small request that needs the model. Raises ChildError, BusyError, AccessError."""
    connection = _Local(listen, certificate, wait_s)
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        connection.request("POST", f"/upstream/{name}/tokenize", _BODY, headers)
        answer = connection.getresponse()
        said = answer.read(2000).decode("utf-8", "replace")
    except TimeoutError:
        raise BusyError(f"the router has not loaded {name}", why=f"not within {wait_s:g} s", fix=_look(name)) from None
    except (OSError, http.client.HTTPException) as error:
        what, fix = f"the router on {listen} does not answer", "`systemctl status llamad`"
        raise BusyError(what, why=str(error), fix=fix) from None
    finally:
        connection.close()
    if answer.status == 401:
        raise AccessError("the router asks for an API key", fix="run it as root, who can read the keys")
    if answer.status == 404:
        what = f"the router does not know {name}"
        raise ChildError(what, why="its definition is newer than what the router read", fix="`systemctl reload llamad`")
    if answer.status >= 400:
        raise ChildError(f"the router cannot load {name}", why=_message(said), fix=_look(name))


def _message(said: str) -> str:
    """What an error says."""
    try:
        return str(json.loads(said)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return said[:200]


def _look(name: str) -> str:
    return f"`llamad status {name}`"


def unload_from_router(name: str, ledger_folder: Path, loaded: Loaded) -> bool:
    """Have the router unload a model; False where the router does not have it. As the router's own user.

    Its requests are finished first. Raises BusyError.
    """
    limits = loaded.definition.limits
    if loaded.definition.start == "always":
        why = 'it has start = "always"'
        raise BusyError(f"the router would load {name} again at once", why=why, fix=f"`llamad edit {name}`")
    return ask_back(Ledger(ledger_folder, name), limits.drain_s + 2 * limits.stop_s + SLACK_S)
