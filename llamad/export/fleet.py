"""Several llamad hosts as other programs see them: where each answers, and which models they may have. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from urllib.parse import quote

from llamad.config.keys import shown
from llamad.config.listen import DEFAULT_LISTEN, parse_listen
from llamad.errors import UsageError
from llamad.frozen import dataclass

SYSTEM = "system"
DEFAULT_PORT = parse_listen(DEFAULT_LISTEN).port
_HOST = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?))(?::(?P<port>[0-9]{1,5}))?"
)
_EXAMPLE = "write for example --hosts gpu1,gpu2:8081,[fd00::3]:8080"


@dataclass(frozen=True)
class Host:
    """One llamad: of a router, or of a single model. `name` is a host name or an IP address, without brackets."""

    name: str
    port: int

    @property
    def address(self) -> str:
        """`gpu1:8080`, `[fd00::3]:8080`."""
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether it answers this machine only, and so looks at the Host of each request."""
        try:
            return ip_address(self.name).is_loopback
        except ValueError:
            return self.name == "localhost"

    @property
    def is_numeric(self) -> bool:
        """Whether it is named by an IP address."""
        return ":" in self.name or self.name.replace(".", "").isdecimal()

    @property
    def word(self) -> str:
        """The address as one word of letters, digits, `.`, `-` and `_`; no two hosts have the same."""
        return f"{self.name.replace(':', '_')}_{self.port}"


@dataclass(frozen=True)
class Model:
    """A model by the name of its definition; `aliases` are the other names that requests may have for it."""

    name: str
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All names."""
        return (self.name, *self.aliases)

    @property
    def health_path(self) -> str:
        """Where a host says whether it has the model ready."""
        return f"/health?model={quote(self.name, safe='')}"


@dataclass(frozen=True)
class Fleet:
    """What a configuration is made for. `listen`: where the balancer itself listens. `tls_ca`: the hosts speak HTTPS,
    with certificates of the authority in this file, or of those that the system trusts (SYSTEM); empty: HTTP.
    """

    hosts: tuple[Host, ...]
    models: tuple[Model, ...]
    listen: str
    tls_ca: str = ""

    @property
    def scheme(self) -> str:
        """Of the hosts' addresses."""
        return "https" if self.tls_ca else "http"

    @property
    def host_advice(self) -> str:
        """A comment where some hosts answer this machine only; empty else."""
        local = ", ".join(host.address for host in self.hosts if host.is_local)
        return f"# {local}: write the name that clients use here into allowed_hosts there.\n" if local else ""


def parse_hosts(texts: Iterable[str]) -> tuple[Host, ...]:
    """The hosts of `--hosts A[:PORT],B`, which may be there several times. Raises UsageError."""
    words = [word.strip() for text in texts for word in text.split(",")]
    hosts = tuple(_host(word) for word in words if word)
    if not hosts:
        raise UsageError("--hosts names no host", fix=_EXAMPLE)
    twice = {host.address for host in hosts if hosts.count(host) > 1}
    if twice:
        raise UsageError(f"--hosts names {', '.join(sorted(twice))} twice", fix=_EXAMPLE)
    return hosts


def _host(word: str) -> Host:
    match = _HOST.fullmatch(word)
    if match is None:
        raise UsageError(f'--hosts: "{shown(word)}" is no host', fix=_EXAMPLE)
    port = int(match["port"] or DEFAULT_PORT)
    if not 1 <= port <= 65535:
        raise UsageError(f"--hosts {word}", why=f"{port} is no port", fix="write a port from 1 to 65535")
    if match["v6"] is None:
        return Host(match["name"].lower(), port)
    try:
        return Host(str(ip_address(match["v6"])), port)
    except ValueError:
        raise UsageError(f"--hosts {word}", why=f'"{match["v6"]}" is no IPv6 address', fix=_EXAMPLE) from None


def usable(models: Iterable[Model]) -> tuple[tuple[Model, ...], tuple[str, ...]]:
    """The models with the aliases that a configuration file can hold, each name once; and those that it cannot.

    A name goes before an alias; of two models with one alias the first has it, as behind a router.
    """
    models = list(models)
    taken = {model.name for model in models}
    found: list[Model] = []
    left: list[str] = []
    for model in models:
        aliases: list[str] = []
        for alias in model.aliases:
            if not alias.isascii() or not alias.isprintable():
                left.append(alias)
            elif alias not in taken:
                taken.add(alias)
                aliases.append(alias)
        found.append(Model(model.name, tuple(aliases)))
    return tuple(found), tuple(left)


def made_by(kind: str, fleet: Fleet, about: Sequence[str]) -> str:
    """The comment at the head of a configuration."""
    hosts = ",".join(host.address for host in fleet.hosts)
    hosts += f" --tls-ca {fleet.tls_ca}" if fleet.tls_ca else ""
    return "".join(f"# {line}".rstrip() + "\n" for line in (f"Made by `llamad export {kind} --hosts {hosts}`.", *about))
