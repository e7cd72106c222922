"""All checks, and what each of them is run for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from llamad.config.loaded import Loaded
from llamad.errors import LlamadError
from llamad.service.doctor import (
    account,
    addresses,
    definitions,
    disks,
    driver,
    engine,
    folders,
    gpus,
    leases,
    limits,
    others,
    units,
)
from llamad.service.doctor.finding import Finding, Report, Unseen
from llamad.service.doctor.host import Host
from llamad.service.doctor.runner import DEADLINE_S, Check, Job, run_jobs

_OF_THE_HOST: tuple[tuple[str, Check], ...] = (
    (units.SYSTEMD, units.check_systemd),
    (account.NAME, account.check),
    (gpus.MODULES, gpus.check_modules),
    (gpus.NODES, gpus.check_nodes),
    (driver.DRIVER, driver.check_driver),
    (driver.KERNEL_LOG, driver.check_kernel_log),
    (folders.NAME, folders.check),
    (disks.NAME, disks.check),
    (leases.NAME, leases.check),
    (others.NAME, others.check),
    (definitions.HOST_SETTINGS, definitions.check_host_settings),
    (addresses.NAME, addresses.check),
)


def examine(host: Host, deadline_s: float = DEADLINE_S) -> Report:
    """Run every check, each bounded in time, and put together what they found."""
    seen = list(dict.fromkeys(run_jobs([*_jobs(host, deadline_s)])))
    return Report(
        root=host.is_root,
        findings=tuple(one for one in seen if isinstance(one, Finding)),
        unseen=tuple(one for one in seen if isinstance(one, Unseen)),
    )


def _jobs(host: Host, deadline_s: float) -> Iterator[Job]:
    host.systemd.units([*(f"llamad@{name}.service" for name in host.names), *_FIRST_UNITS])  # asked once for all
    for name, check in _OF_THE_HOST:
        yield Job(name, partial(check, host), deadline_s=deadline_s)
    for name in host.names:
        found = host.loaded(name)
        late = partial(definitions.hangs, host, found, deadline_s) if isinstance(found, Loaded) else None
        yield Job(definitions.NAME, partial(definitions.check, host, name), name, deadline_s, late)
        if isinstance(found, Loaded):
            yield Job(limits.NAME, partial(limits.check, host, found), name, deadline_s + limits.PLAN_S)
            longest_s = max(deadline_s, 4 * found.host.query_s)
            yield Job(engine.NAME, partial(engine.check, host, engine.target_of(host, found)), name, longest_s)
    if not host.usable():
        yield from _engine_of_host(host, deadline_s)
    # Last: its command is to start again what failed, once the reason is cured.
    yield Job(units.UNITS, partial(units.check_units, host), deadline_s=deadline_s)


def _engine_of_host(host: Host, deadline_s: float) -> Iterator[Job]:
    try:
        target = engine.target_of_host(host)
    except LlamadError:
        return  # the settings' check tells
    longest_s = max(deadline_s, 4 * target.host.query_s)
    yield Job(engine.NAME, partial(engine.check, host, target), "", longest_s)


_FIRST_UNITS = (units.ROUTER, units.TARGET, others.DEBIANS_UNIT)
