"""A host for the checks of the doctor: files below a folder, commands that answer what a test says, no real user."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llamad.config.access import Identity
from llamad.errors import DeviceError
from llamad.hardware.device import Device
from llamad.service.doctor.finding import Finding, Seen, Severity
from llamad.service.doctor.host import ASK_S, Answer, Host
from llamad.service.doctor.tree import Space, Tree

ROOT = Path(__file__).parents[2]
ME, MY_GROUP = os.getuid(), os.getgid()
OTHER = 4242
GIB = 1 << 30
NOW_S = 1_790_000_000.0


class FakeTree(Tree):
    """Files below a folder, with as much room as the test says, and folders that never answer."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.spaces: dict[str, Space] = {}

    def space(self, path: str) -> Space | None:
        return self.spaces.get(path, Space(100 * GIB, 1000, False)) if self.exists(path) else None

    def write(self, path: str, text: str, mode: int = 0o644) -> Path:
        """A file, with the folders above it."""
        place = self.path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)
        return place

    def folder(self, path: str, mode: int = 0o755) -> Path:
        """A folder, with those above it."""
        place = self.path(path)
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(mode)
        return place

    def lead(self, path: str, target: str) -> None:
        """A link."""
        place = self.path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)


class FakeCommands:
    """Answers by the beginning of a command, the longest one that is known; units by their properties."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, ...], Answer | None] = {}
        self.units: dict[str, dict[str, str]] = {}
        self.installed: set[str] = set()
        self.asked: list[tuple[str, ...]] = []

    def say(self, *argv: str, text: str = "", status: int = 0) -> None:
        self.answers[argv] = Answer(status, text)

    def ask(self, *argv: str, deadline_s: float = ASK_S, told: str = "") -> Answer | None:
        self.asked.append(argv)
        if argv[:2] == ("systemctl", "show"):
            return Answer(0, "\n".join(map(self._block, argv[argv.index("--") + 1 :])))
        known = [words for words in self.answers if argv[: len(words)] == words]
        return self.answers[max(known, key=len)] if known else None

    def has(self, program: str) -> bool:
        return program in self.installed

    def _block(self, name: str) -> str:
        unit = {"Id": name, "LoadState": "loaded", "ActiveState": "inactive", **self.units.get(name, {})}
        return "".join(f"{key}={value}\n" for key, value in unit.items())


@dataclass
class FakeAccounts:
    """Users and groups by name. `root` is who runs the test, so that what the test makes is root's."""

    users: dict[str, Identity] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)

    def identity(self, user: str) -> Identity | None:
        return self.users.get(user)

    def group(self, name: str) -> int | None:
        return self.groups.get(name)


class FakeSandbox:
    """Says of every engine what the test says."""

    def __init__(self) -> None:
        self.is_the_units = True
        self.answer: Answer | None = None
        self.ran: list[tuple[str, Sequence[str], Mapping[str, str]]] = []

    def run(self, name: str, argv: Sequence[str], env: Mapping[str, str], deadline_s: float) -> Answer | None:
        self.ran.append((name, argv, env))
        return self.answer


class FakeNvml:
    """What NVIDIA's driver shows, or why it shows nothing."""

    def __init__(self) -> None:
        self.found: list[Device] = []
        self.error: DeviceError | None = None
        self.absence = ""

    def devices(self) -> list[Device]:
        if self.error:
            raise self.error
        return self.found


@dataclass
class Fakes:
    """A host and what it is made of."""

    host: Host
    tree: FakeTree
    commands: FakeCommands
    accounts: FakeAccounts
    sandbox: FakeSandbox
    nvml: FakeNvml
    root: Path

    def define(self, name: str, text: str) -> Path:
        """A definition."""
        path = self.root / f"etc/llamad/{name}.toml"
        path.write_text(text)
        return path

    def gpu(self, address: str, vendor: str, driver: str = "", *, nodes: Iterable[str] = ()) -> None:
        """A GPU on the PCI bus."""
        folder = f"/sys/bus/pci/devices/{address}"
        self.tree.write(f"{folder}/vendor", f"{vendor}\n")
        self.tree.write(f"{folder}/class", "0x030000\n")
        if driver:
            self.tree.lead(f"{folder}/driver", f"../../../bus/pci/drivers/{driver}")
        for node in nodes:
            self.tree.folder(f"{folder}/drm/{node}")


def make_host(tmp_path: Path, *, user_uid: int = ME, is_root: bool = True, only: str = "") -> Fakes:
    """A host where nothing is wrong, without a GPU and without a definition."""
    root = tmp_path / "root"
    tree, commands, sandbox, nvml = FakeTree(root), FakeCommands(), FakeSandbox(), FakeNvml()
    groups = {"root": MY_GROUP, "_llamad": MY_GROUP, "render": 106, "video": 44}
    service = Identity("_llamad", user_uid, frozenset({MY_GROUP, 106, 44}))
    accounts = FakeAccounts({"root": Identity("root", ME, frozenset()), "_llamad": service}, groups)
    for folder in ("etc/llamad", "sys/bus/pci/devices", "run/systemd/system", "proc/self", "proc/net"):
        tree.folder(f"/{folder}")
    tree.write("/proc/self/mountinfo", "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n")
    text = (ROOT / "packaging/tmpfiles/llamad.conf").read_text()
    tree.write("/usr/lib/tmpfiles.d/llamad.conf", text)
    for words in (line.split() for line in text.splitlines() if line.startswith("d ")):
        tree.folder(words[1], int(words[2], 8))
    commands.say("systemctl", "--version", text="systemd 257 (257.4-1)\n+PAM\n")
    commands.say("systemctl", "list-units")
    commands.say("journalctl")
    commands.units["llama-server.service"] = {"LoadState": "not-found"}
    commands.units["llamad.target"] = {"UnitFileState": "enabled"}
    sandbox.answer = Answer(0, engine_says())
    server = tmp_path / "llama-server"
    shutil.copy("/bin/true", server)
    (root / "etc/llamad/llamad.toml").write_text(f'[host]\nserver = "{server}"\n')
    host = Host(
        sandbox, nvml, config=root / "etc/llamad", tree=tree, commands=commands, accounts=accounts, is_root=is_root,
        now_s=lambda: NOW_S, only=only, backends_of=lambda _server, _env: frozenset({"cpu", "vulkan"}),
    )  # fmt: skip
    return Fakes(host, tree, commands, accounts, sandbox, nvml, root)


HELP = "".join(
    f"{flag} X  words\n" for flag in ("--model", "--host", "--ctx-size", "--fit", "--log-jsonl", "--load-mode")
)


def engine_says(
    *, devices: str = "  Vulkan0: A card (1000 MiB, 900 MiB free)", status: int = 0, help_: str = HELP, model: int = 0
) -> str:
    """What the look at an engine prints."""
    parts = [("model", "GGUF", model), ("version", "version: 0.7.0 (build 11669, commit x)", 0), ("help", help_, 0)]
    parts.append(("devices", f"Available devices:\n{devices}\n", status))
    return "".join(f"== llamad: {name}\n{text}\n== llamad: status {code}\n" for name, text, code in parts)


def wrong(seen: Iterable[Seen]) -> list[Finding]:
    """The findings that are not well."""
    return [one for one in seen if isinstance(one, Finding) and one.severity is not Severity.OK]


def the_one(seen: Iterable[Seen]) -> Finding:
    """The only finding that is not well."""
    found = wrong(seen)
    assert len(found) == 1, found
    return found[0]


Check = Callable[[Host], Iterable[Seen]]
