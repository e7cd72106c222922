"""Who listens on which TCP port, and which process and unit that is: from /proc, where root sees all."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_address

from llamad.config.listen import Listen
from llamad.frozen import dataclass
from llamad.service.doctor.tree import Tree

_LISTEN = "0A"


@dataclass(frozen=True)
class Listening:
    """A listening TCP socket."""

    address: Listen
    inode: str


@dataclass(frozen=True)
class Process:
    """Who has a file open."""

    pid: int
    command: str
    unit: str
    """Its unit of the system; "" for none, or one of a user's own."""

    def __str__(self) -> str:
        return f"{self.command} (process {self.pid}" + (f" of {self.unit})" if self.unit else ")")


def listening(tree: Tree) -> Iterator[Listening]:
    """Every listening TCP socket of this network."""
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in tree.trusted_text(file).splitlines()[1:]:
            words = line.split()
            if len(words) > 9 and words[3] == _LISTEN:
                host, _, port = words[1].partition(":")
                yield Listening(Listen("tcp", _address(host), int(port, 16)), words[9])


def _address(text: str) -> str:
    """As /proc/net writes it: numbers of 32 bits, each as this machine has it in memory."""
    numbers = (int(text[at : at + 8], 16) for at in range(0, len(text), 8))
    return str(ip_address(b"".join(struct.pack("=I", number) for number in numbers)))


def takes(other: Listen, wanted: Listen) -> bool:
    """Whether a socket leaves no room for another; one for all of IPv6 takes the port of IPv4 too."""
    everything = other.port == wanted.port and other.host == "::"
    return everything or other.collides(wanted)


def owners(tree: Tree, target: str) -> list[Process]:
    """The processes that have this open (`socket:[123]`, or the path of a file), as far as they can be seen."""
    found = []
    for name in tree.names("/proc"):
        if not name.isdecimal():
            continue
        folder = f"/proc/{name}/fd"
        if any(tree.link(f"{folder}/{fd}") == target for fd in tree.names(folder)):
            found.append(_process(tree, int(name)))
    return found


def _process(tree: Tree, pid: int) -> Process:
    command = tree.trusted_text(f"/proc/{pid}/comm").strip()
    parts = [part for line in tree.trusted_text(f"/proc/{pid}/cgroup").splitlines() for part in line.split("/")]
    # The outermost is systemd's. What is below is named by whom it was handed to: a user, a container.
    service = next((part for part in parts if part.endswith(".service")), "")
    return Process(pid, command, "" if service.startswith("user@") else service)
