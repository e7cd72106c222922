"""What is measured: the service that answers for a model now, how to reach it, and with which key. Blocking, quick."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from llamad.config.listen import DEFAULT_LISTEN, parse_listen
from llamad.config.loaded import Loaded
from llamad.errors import AccessError, BusyError
from llamad.front.keys import KeySet
from llamad.measure.client import Target
from llamad.measure.results import PlanInForce
from llamad.service.checks import PLAIN_STORES
from llamad.service.keys import first_key, first_key_in
from llamad.service.overview import is_number
from llamad.service.paths import ROUTER, RUNTIME_ROOT, SYSTEM_RUN, user_run
from llamad.service.router_paths import HOST_CREDENTIAL
from llamad.service.status import read_status
from llamad.text import printable

_BUSY = ("loading", "warming", "draining", "reloading", "stopping", "stuck")
"""States with a llama-server of the model that answers nobody, or soon will not."""

ServedBy = Literal["unit", "router", "temporary"]


@dataclass(frozen=True)
class Service:
    """A service that has the model loaded."""

    by: ServedBy
    target: Target
    status: Mapping[str, object]


def find_service(loaded: Loaded, environ: Mapping[str, str], key: str | None = None) -> Service | None:
    """The service that has a llama-server of this model, its unit's before the router's; None where none has.

    `key`: the API key to use; None: the first that can be found. Raises BusyError for one that does not answer yet.
    """
    own = user_run(environ)
    for by, folder in (
        ("unit", RUNTIME_ROOT),
        ("unit", own / "model"),
        ("router", SYSTEM_RUN / ROUTER),
        ("router", own / ROUTER),
    ):
        status = read_status(loaded.name, folder)
        if status is None or not _lives(status):
            continue
        state = printable(status.get("state"))
        if state in _BUSY:
            raise BusyError(f"{loaded.name} is {state}", why=printable(status.get("text", "")),
                            fix="wait until it is ready: `llamad status`")  # fmt: skip
        if state != "ready":
            continue
        run = SYSTEM_RUN if folder in (RUNTIME_ROOT, SYSTEM_RUN / ROUTER) else own
        return _service("unit" if by == "unit" else "router", loaded, run, status, key)
    return None


def _lives(status: Mapping[str, object]) -> bool:
    pid = status.get("pid")
    return is_number(pid) and Path(f"/proc/{pid}").is_dir()


def _service(
    by: Literal["unit", "router"], loaded: Loaded, run: Path, status: Mapping[str, object], key: str | None
) -> Service:
    definition, host = loaded.definition, loaded.host
    if by == "unit":
        listen, file, credential, model = definition.listen or DEFAULT_LISTEN, definition.api_keys_file, loaded.name, ""
    else:
        listen, file, credential, model = host.listen, host.api_keys_file, HOST_CREDENTIAL, loaded.name
    if key is None:
        key = stored_key(file, credential)
        if by == "router" and not key:
            key = stored_key(definition.api_keys_file, loaded.name)
    return Service(by, target_of(listen, run / "api", key, model), status)


def target_of(listen: str, sockets: Path, key: str, model: str) -> Target:
    """How to reach an address; one of all interfaces by its loopback."""
    address = parse_listen(listen)
    if address.kind == "unix":
        return Target(unix_path=str(sockets / address.path), key=key, model=model)
    ip = ip_address(address.host)
    host = ("127.0.0.1" if ip.version == 4 else "::1") if ip.is_unspecified else address.host
    return Target(host, address.port, key=key, model=model)


def stored_key(file: str | None, name: str) -> str:
    """The first API key of a file or of systemd's credential stores that this user can read; empty where there is
    none. Whether one is needed the service says.
    """
    return first_key((file, *(Path(store, f"llamad.api-key.{name}") for store in PLAIN_STORES)))


def parse_key(text: str) -> str:
    """The first key of a text with one a line, as the service reads it; empty for none. Raises ConfigError."""
    return first_key_in(text) if KeySet.from_text(text, "the keys") else ""


def read_key_file(path: Path) -> str:
    """The key of `--key-file`. Raises AccessError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AccessError(f"cannot read {path}", why=str(error), fix="name a file with one key a line") from error
    found = parse_key(text)
    if not found:
        raise AccessError(f"{path} has no key in it", fix="one key a line")
    return found


def plan_of(status: Mapping[str, object]) -> PlanInForce:
    """What a public status says of the plan; 0 and empty where it does not."""

    def count(key: str) -> int:
        value = status.get(key)
        return value if is_number(value) else 0

    def word(key: str) -> str:
        return printable(status.get(key, ""))[:20]

    flash = status.get("flash_attention")
    return PlanInForce(
        context_tokens=count("context_tokens"),
        slots=count("slots"),
        layers=count("layers"),
        layers_total=count("layers_total"),
        ubatch_tokens=count("ubatch_tokens") or None,
        flash_attention=flash if isinstance(flash, bool) else None,
        cache_type_k=word("cache_type_k"),
        cache_type_v=word("cache_type_v"),
        devices=tuple(share.name for share in device_shares(status)),
    )


@dataclass(frozen=True)
class DeviceShare:
    """What a planned device has of a model."""

    name: str
    uuid: str
    buffers_mib: float


def device_shares(status: Mapping[str, object]) -> list[DeviceShare]:
    """The planned devices."""
    devices = status.get("devices")
    found = []
    for row in devices if isinstance(devices, list) else ():
        if isinstance(row, dict):
            size = row.get("buffers_mib")
            name, uuid = (printable(row.get(key, ""))[:80] for key in ("name", "uuid"))
            found.append(DeviceShare(name, uuid, float(size) if isinstance(size, int | float) else 0.0))
    return found


def engine_of(status: Mapping[str, object]) -> str:
    """The version of llama-server that it says it runs."""
    return printable(status.get("engine", ""))[:200]




def request_tokens(status: Mapping[str, object], plan: PlanInForce) -> int:
    """What one request may have of the context."""
    return plan.context_tokens if status.get("unified_cache") is True else plan.context_tokens // max(1, plan.slots)


def given_key(file: str | None) -> str | None:
    """The key of `--key-file`, `-` being stdin; None where the option is not there. Raises AccessError."""
    if file is None:
        return None
    return parse_key(sys.stdin.read(1 << 16)) if file == "-" else read_key_file(Path(file))
