"""systemd itself, and llamad's units: masked, failed, waiting to be tried again, not started with the system."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterable, Iterator

from llamad.service.deaths import read_deaths
from llamad.service.doctor.finding import Finding, Seen, error, ok, unseen, warn
from llamad.service.doctor.folders import STATE
from llamad.service.doctor.host import Host
from llamad.service.doctor.systemd import Unit, unit_of
from llamad.service.neighbours import enabled_names

SYSTEMD, UNITS = "systemd", "units"
OLDEST = 254
TARGET, ROUTER, TEMPLATE = "llamad.target", "llamad.service", "llamad@.service"
_MASK = "/dev/null"


def check_systemd(host: Host) -> Iterable[Seen]:
    """Its version."""
    if not host.systemd.runs:
        yield unseen(SYSTEMD, "units: systemd does not run here")
        return
    answer = host.commands.ask("systemctl", "--version")
    version = re.search(r"^systemd (\d+)", answer.text if answer else "")
    if version is None:
        yield unseen(SYSTEMD, "its version: systemctl does not answer")
    elif int(version[1]) < OLDEST:
        why = f"the units need {OLDEST}: Debian 13, Ubuntu 26.04 or later"
        yield error(SYSTEMD, f"systemd {version[1]} is too old", why=why, cure="apt-get dist-upgrade")
    else:
        yield ok(SYSTEMD, f"systemd {version[1]}")


def check_units(host: Host) -> Iterable[Seen]:
    """Every unit of llamad that systemd knows or that belongs to a definition."""
    if not host.systemd.runs:
        return
    template = _masked_template(host)
    models = [host.only] if host.only else sorted({*host.names, *host.systemd.instances})
    units = host.systemd.units([*map(unit_of, models), ROUTER, TARGET])
    findings = [*template]
    for unit in units:
        findings += _one(host, unit, by_template=bool(template))
    findings += [] if host.only else [*_at_boot(host), *_left_over(host)]
    if any(unit["NeedDaemonReload"] == "yes" for unit in units):
        what, why = "unit files changed on disk", "systemd still has the old ones"
        findings.append(warn(UNITS, what, why=why, cure="systemctl daemon-reload"))
    if not findings:
        active = sum(unit.is_active for unit in units if unit.name != TARGET)
        findings = [ok(UNITS, f"{active} of {len(units) - 1} run, none failed")]
    yield from findings


def _masked_template(host: Host) -> list[Finding]:
    for folder in ("/etc/systemd/system", "/run/systemd/system"):
        if host.tree.link(f"{folder}/{TEMPLATE}") == _MASK:
            return [error(UNITS, "it is masked", about=TEMPLATE, why="no model can be started",
                          cure=f"systemctl unmask {TEMPLATE}")]  # fmt: skip
    return []


def _one(host: Host, unit: Unit, *, by_template: bool) -> Iterator[Finding]:
    name = shlex.quote(unit.name)
    if unit.is_masked:
        if not (by_template and unit.name.startswith("llamad@")):
            yield error(UNITS, "it is masked", about=unit.name, why="it cannot be started",
                        cure=f"systemctl unmask {name}")  # fmt: skip
    elif unit["ActiveState"] == "failed":
        what = f"it failed ({unit['Result']}, status {unit['ExecMainStatus']})"
        yield error(UNITS, what, about=unit.name, why=_last_cause(host, unit), cure=f"systemctl restart {name}")
    elif unit["SubState"].startswith("auto-restart"):
        what = f"it is tried again and again (status {unit['ExecMainStatus']})"
        yield error(UNITS, what, about=unit.name, why=_last_cause(host, unit), cure=f"systemctl restart {name}")


def _last_cause(host: Host, unit: Unit) -> str:
    """What its status says, and the last death of its llama-server where that can be read."""
    words = [unit["StatusText"]]
    if unit.name.startswith("llamad@"):
        model = unit.name.removeprefix("llamad@").removesuffix(".service")
        try:
            deaths = read_deaths(host.tree.path(f"{STATE}/{model}"))
        except OSError:
            deaths = []
        for death in deaths[-1:]:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(death.at_s))
            words.append(f"last death of llama-server, {when}: {death.text}")
    return "; ".join(filter(None, words)) or f"see journalctl -u {unit.name} -x -e"


def _at_boot(host: Host) -> Iterator[Finding]:
    target, router = host.systemd.unit(TARGET), host.systemd.unit(ROUTER)
    wanted = [*enabled_names(host.tree.path("/etc/systemd/system/llamad.target.wants"))]
    wanted += ["the router"] if router.is_enabled else []
    if wanted and target.properties and not target.is_enabled and not target.is_masked:
        why = f"{', '.join(wanted)} will not start with the system"
        yield warn(UNITS, "it is not enabled", about=TARGET, why=why, cure=f"systemctl enable {TARGET}")


def _left_over(host: Host) -> Iterator[Finding]:
    """Units that are enabled and have no definition."""
    for name in enabled_names(host.tree.path("/etc/systemd/system/llamad.target.wants")):
        if name not in host.names:
            what = f"it is enabled, and there is no {host.config}/{name}.toml"
            yield warn(UNITS, what, about=unit_of(name), cure=f"systemctl disable {shlex.quote(unit_of(name))}")
