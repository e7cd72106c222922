"""llama-server as a model's unit will run it: which build, with which backends, and which devices it sees there."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llamad.config.access import SERVICE_USER
from llamad.config.definition import Host as HostSection
from llamad.config.definition import Placement
from llamad.config.load import load_host
from llamad.config.loaded import Loaded
from llamad.config.names import HOST_FILE
from llamad.engine.build import Capabilities
from llamad.engine.capabilities import parse_capabilities
from llamad.engine.devices import parse_devices
from llamad.engine.environment import child_environment
from llamad.engine.find import find_server
from llamad.errors import AccessError, LlamadError
from llamad.hardware.device import Device
from llamad.service.doctor.finding import Finding, Seen, error, ok, unseen, warn
from llamad.service.doctor.gpus import Gpu, gpus
from llamad.service.doctor.host import Answer, Host
from llamad.service.doctor.systemd import DROP_INS, unit_of

NAME = "engine"
CACHE_ROOT = "/var/cache/llamad"
DEBIANS = "/usr/bin/llama-server"
_JIT = "/usr/share/doc/llamad/examples/drop-in-software-vulkan.conf"
_PACKAGE = "llama.cpp-tools"
_WANTED_FLAGS = ("--fit", "--log-jsonl", "--load-mode")
"""What a build lacks that cannot tell its memory before it loads, or is older than every build that was tried."""
_SCRIPT = """
part() { echo "== llamad: $1"; shift; "$@" 2>&1; printf '\n== llamad: status %d\n' $?; }
[ -z "$2" ] || part model timeout --signal=KILL 3 head --bytes=4 -- "$2"
part version "$1" --version
part help "$1" --help
part devices "$1" --list-devices
"""
_PART = re.compile(r"^== llamad: (\w+)\n(.*?)^== llamad: status (\d+)$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Target:
    """Whose engine is looked at: a definition's, or (without a model) the host's own."""

    name: str
    model: str
    host: HostSection
    environment: Mapping[str, str]
    placement: Placement | None
    editable: str
    """The file that says whether the CPU will do."""
    settings: str
    """The host's llamad.toml."""


def target_of(host: Host, loaded: Loaded) -> Target:
    """A definition's."""
    about, file = loaded.definition, str(loaded.file)
    settings = str(host.config / HOST_FILE)
    return Target(loaded.name, about.model, loaded.host, about.environment, about.placement, file, settings)


def target_of_host(host: Host) -> Target:
    """For a host without a definition that could be loaded. Raises ConfigError for a llamad.toml with a mistake."""
    settings = load_host(host.config).settings
    return Target("", "", settings.host, settings.environment, None, "", str(host.config / HOST_FILE))


def check(host: Host, target: Target) -> Iterable[Seen]:
    """Build, backends and devices of one target."""
    env = child_environment(target.environment, Path(CACHE_ROOT, target.name or "llamad"))
    try:
        server = find_server(target.host.server, env.get("PATH", os.defpath))
    except LlamadError as problem:
        yield _no_server(target, problem)
        return
    look = _Look(host, target, server, env)
    answer = host.sandbox.run(target.name, ["/bin/sh", "-c", _SCRIPT, "sh", server, target.model], env,
                              target.host.query_s * 3)  # fmt: skip
    if answer is None or not (parts := {name: Answer(int(status), text) for name, text, status in
                                        _PART.findall(answer.text)}):  # fmt: skip
        yield look.silent(answer)
        return
    if not host.sandbox.is_the_units:
        yield unseen(NAME, "what the engine sees in the unit's sandbox: it needs root", about=target.name)
    yield from look.findings(parts)


def _no_server(target: Target, problem: LlamadError) -> Finding:
    cure = f"apt-get install {_PACKAGE}"
    if isinstance(problem, AccessError):
        cure = f"chmod a+rx {shlex.quote(target.host.server)}"
    elif os.path.exists(DEBIANS) and target.host.server != DEBIANS:
        cure = _use_debians(target)
    return error(NAME, problem.what, about=target.name, why=problem.why, cure=cure)


def _use_debians(target: Target) -> str:
    line = f"^server *= *.{re.escape(target.host.server)}."
    return f"sed -i {shlex.quote(f's|{line}|# &|')} {shlex.quote(target.settings)}"


class _Look:
    """What the parts of one run say."""

    def __init__(self, host: Host, target: Target, server: str, env: Mapping[str, str]) -> None:
        self._host = host
        self._target = target
        self._server = server
        self._backends = host.backends_of(server, env)
        self._about = target.name

    def silent(self, answer: Answer | None) -> Finding:
        unit = unit_of(self._about or "NAME")
        why = (answer.errors.strip().splitlines() or [""])[-1][:200] if answer else "no answer in time"
        what = f"{self._server} cannot be run in the sandbox of {unit}"
        return error(NAME, what, about=self._about, why=why, cure=self._list_devices())

    def _list_devices(self) -> str:
        """A command for root, which runs no engine as root."""
        return f"systemd-run --pipe --wait --property=User={SERVICE_USER} {shlex.quote(self._server)} --list-devices"

    def findings(self, parts: Mapping[str, Answer]) -> Iterator[Seen]:
        # 1: it cannot be read; killed, it hangs, which the definition's check tells without touching it again here.
        if "model" in parts and parts["model"].status == 1 and self._host.sandbox.is_the_units:
            yield from self._unreadable(parts["model"])
        try:
            caps = self._capabilities(parts)
        except LlamadError as problem:
            yield error(NAME, problem.what, about=self._about, why=problem.why, cure=self._newer())
            return
        missing = [flag for flag in _WANTED_FLAGS if not caps.has(flag)]
        if missing:
            what = f"{self._server} {caps.version} is old: it lacks {', '.join(missing)}"
            why = "its memory cannot be asked before it loads, so plans rest on formulas alone"
            yield warn(NAME, what, about=self._about, why=why, cure=self._newer())
        devices = parts.get("devices", Answer(1, ""))
        if devices.status != 0:
            yield self._crash(devices)
            return
        yield self._devices(caps, parse_devices(devices.text))

    def _capabilities(self, parts: Mapping[str, Answer]) -> Capabilities:
        help_, version = (parts.get(name, Answer(1, "")) for name in ("help", "version"))
        return parse_capabilities(self._server, help_.text, version.text, "")

    def _newer(self) -> str:
        if os.path.realpath(self._server) != DEBIANS and os.path.exists(DEBIANS):
            return _use_debians(self._target)
        return f"apt-get install {_PACKAGE}"

    def _unreadable(self, answer: Answer) -> Iterator[Finding]:
        """Where modes allow it and the sandbox does not: a security module, or a server of files that knows no root."""
        if self._host.tree.exists(self._target.model):
            from llamad.config.access import access_problem

            if access_problem(self._target.model) is None:
                what = f"{self._target.model} cannot be read in the sandbox: {answer.text.strip()[-120:]}"
                move = f"mv {shlex.quote(self._target.model)} /var/lib/llamad/models/"
                yield error(NAME, what, about=self._about, why="modes allow it, something else does not", cure=move)

    def _crash(self, answer: Answer) -> Finding:
        ended = f"signal {answer.status - 128}" if answer.status > 128 else f"status {answer.status}"
        what = f"llama-server cannot list its devices: {ended}"
        unit = self._host.systemd.unit(unit_of(self._about or "x"))
        if answer.status == 128 + 11 and unit["MemoryDenyWriteExecute"] == "yes":
            cure = f"install -D -m 644 {_JIT} {DROP_INS}/jit.conf && systemctl daemon-reload"
            why = "its driver compiles code at run time, which the sandbox forbids"
            return error(NAME, what, about=self._about, why=why, cure=cure)
        why = (answer.text.strip().splitlines() or [""])[0][:200]
        return error(NAME, what, about=self._about, why=why, cure=f"apt-get install --reinstall {_PACKAGE}")

    def _devices(self, caps: Capabilities, devices: list[Device]) -> Finding:
        driven = [gpu for gpu in gpus(self._host) if gpu.is_driven]
        has = ", ".join(sorted(self._backends)) or "built in"
        if devices:
            seen = ", ".join(device.name for device in devices)
            where = " in the sandbox" if self._host.sandbox.is_the_units else ""
            return ok(NAME, f"llama-server {caps.words} ({has}) sees {seen}{where}", about=self._about)
        placement = self._target.placement
        may_be_slow = placement is None or placement.allow_cpu
        if not driven and may_be_slow:
            return ok(NAME, f"llama-server {caps.words} ({has}), on the CPU", about=self._about)
        level = warn if may_be_slow else error
        what = f"llama-server {caps.words} sees no GPU" + (" and allow_cpu is not set" if not may_be_slow else "")
        why, cure = self._why_none(driven, has)
        return level(NAME, what, about=self._about, why=why, cure=cure)

    def _why_none(self, driven: list[Gpu], has: str) -> tuple[str, str]:
        """Why it offers no device, and what helps."""
        for gpu in driven:
            if self._backends and not self._backends & set(gpu.vendor.backends):
                why = f"no backend for the {gpu.vendor.name} GPU is installed, only: {has}"
                return why, f"apt-get install {gpu.vendor.packages}"
        unit = self._host.systemd.unit(unit_of(self._about)) if self._about else None
        hidden = self._host.systemd.without(unit, "PrivateDevices", "DevicePolicy", "DeviceAllow") if unit else ""
        if hidden:
            return "a drop-in of the unit hides the devices", hidden
        if any(name.startswith("GGML_VK_") for name in self._target.environment) and "vulkan" not in self._backends:
            why = f"the definition asks for Vulkan, and its backend is not installed, only: {has}"
            return why, "apt-get install libggml0-backend-vulkan mesa-vulkan-drivers"
        if driven and "vulkan" in self._backends:
            return "the GPU's Vulkan driver is missing", "apt-get install mesa-vulkan-drivers vulkan-tools"
        if driven:
            return f"its backends ({has}) find none; their own words are in this", self._list_devices()
        why = "there is no GPU with a driver; allow_cpu = true in [placement] lets the model run on the CPU"
        return why, f"${{EDITOR:-editor}} {shlex.quote(self._target.editable)}"
