"""The limits of each model's unit: locked memory, memory and tasks of its control group, and hidden devices."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Iterator

from llamad.config.loaded import Loaded
from llamad.service.doctor.finding import Finding, Seen, error, ok, unseen, warn
from llamad.service.doctor.host import Host
from llamad.service.doctor.systemd import UNLIMITED, Unit, unit_of
from llamad.units import MIB, format_bytes, pad

NAME = "limits"
LEAST_TASKS = 64
OWN_BYTES = 64 * MIB
"""llamad itself, beside llama-server."""
PLAN_S = 15.0


def check(host: Host, loaded: Loaded) -> Iterable[Seen]:
    """One model's unit."""
    unit = host.systemd.unit(unit_of(loaded.name))
    if unit["LoadState"] != "loaded":
        return  # masked, or not installed: the units' check tells
    found: list[Seen] = [*_locked(host, unit, loaded), *_hidden(host, unit, loaded.name),
                         *_tasks(host, unit, loaded.name), *_memory(host, unit, loaded)]  # fmt: skip
    yield from found or [ok(NAME, "none is too low", about=loaded.name)]


def _locked(host: Host, unit: Unit, loaded: Loaded) -> Iterator[Finding]:
    limit_bytes = unit.number("LimitMEMLOCK")
    if limit_bytes >= UNLIMITED:
        return
    locks = "mlock" in loaded.definition.placement.load_mode
    why = f'load_mode = "{loaded.definition.placement.load_mode}" locks the model' if locks else "ROCm locks memory"
    cure = host.systemd.without(unit, "LimitMEMLOCK") or _drop_in(unit, "LimitMEMLOCK=infinity")
    what = f"only {format_bytes(limit_bytes)} of memory may be locked (LimitMEMLOCK=)"
    yield (error if locks else warn)(NAME, what, about=loaded.name, why=why, cure=cure)


def _drop_in(unit: Unit, line: str) -> str:
    folder = shlex.quote(f"/etc/systemd/system/{unit.name}.d")
    text = shlex.quote(f"[Service]\\n{line}\\n")  # printf ends the lines: the whole command must be one
    return f"mkdir -p {folder} && printf {text} >{folder}/limits.conf && systemctl daemon-reload"


def _hidden(host: Host, unit: Unit, name: str) -> Iterator[Finding]:
    wrong = []
    if unit["PrivateDevices"] == "yes":
        wrong.append("PrivateDevices")
    if unit["DevicePolicy"] == "strict":
        wrong.append("DevicePolicy")
    cure = host.systemd.without(unit, *wrong)
    if wrong and cure:
        what = f"{' and '.join(f'{key}=' for key in wrong)} hides GPUs from the unit"
        yield error(NAME, what, about=name, why=f"said by {host.systemd.line_of(unit, wrong[0])}", cure=cure)


def _tasks(host: Host, unit: Unit, name: str) -> Iterator[Finding]:
    most = unit.number("TasksMax", "EffectiveTasksMax")
    wanted = LEAST_TASKS + 2 * (os.cpu_count() or 1)
    if most < wanted:
        own = unit.number("TasksMax") < wanted
        what = f"only {most} threads may be started (TasksMax=)"
        why = f"llama-server starts up to {wanted}"
        cure = host.systemd.without(unit, "TasksMax") if own else ""
        where = unit.name if own else unit["Slice"] or unit.name
        set_it = f"systemctl set-property {shlex.quote(where)} TasksMax=4096"
        yield error(NAME, what, about=name, why=why, cure=cure or set_it)


def _memory(host: Host, unit: Unit, loaded: Loaded) -> Iterator[Seen]:
    limit_bytes = unit.number("MemoryMax", "MemoryHigh", "EffectiveMemoryMax", "EffectiveMemoryHigh")
    own_bytes = unit.number("MemoryMax", "MemoryHigh")
    if own_bytes >= UNLIMITED and not _slice_limits(host, unit, limit_bytes):
        return
    needed = _planned_bytes(host, loaded.name)
    if needed is None:
        yield unseen(NAME, f"whether {format_bytes(limit_bytes)} of memory are enough: there is no plan",
                     about=loaded.name)  # fmt: skip
    elif limit_bytes < needed:
        own = own_bytes <= limit_bytes
        what = f"{format_bytes(limit_bytes)} of memory are allowed, and the plan needs {format_bytes(needed)}"
        whose = "MemoryMax= or MemoryHigh= of the unit" if own else f"a limit of {unit['Slice']}"
        why = f"{whose}: the kernel kills llama-server"
        cure = host.systemd.without(unit, "MemoryMax", "MemoryHigh") if own else ""
        where = unit.name if own else unit["Slice"]
        enough = f"{pad(needed + needed // 4, 256 * MIB) // MIB}M"
        set_it = f"systemctl set-property {shlex.quote(where)} MemoryMax={enough} MemoryHigh=infinity"
        yield error(NAME, what, about=loaded.name, why=why, cure=cure or set_it)


def _slice_limits(host: Host, unit: Unit, limit_bytes: int) -> bool:
    """Whether a slice above has less than the machine. (What is in effect is never more than that.)"""
    lines = host.tree.trusted_text("/proc/meminfo").splitlines()
    total = next((line.split()[1] for line in lines if line.startswith("MemTotal:")), "0")
    return total.isdecimal() and limit_bytes < int(total) * 1024 * 0.98 and bool(unit["Slice"])


def _planned_bytes(host: Host, name: str) -> int | None:
    """The host memory that the plan needs, with llamad's own. None where there is no plan."""
    command = (*host.own_command, "--config", str(host.config), "plan", "--json", "--computed", name)
    answer = host.commands.ask(*command, deadline_s=PLAN_S)
    try:
        plan = json.loads(answer.text if answer and answer.status == 0 else "")
        return int(float(plan["host"]["total_mib"]) * MIB) + OWN_BYTES
    except (ValueError, LookupError, TypeError):
        return None
