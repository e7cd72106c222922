"""The user that serves models, and the groups that open GPUs to it."""

from __future__ import annotations

from collections.abc import Iterable

from llamad.config.access import SERVICE_USER
from llamad.service.doctor.finding import Seen, error, ok
from llamad.service.doctor.host import Host

NAME = "account"
GROUPS = ("render", "video")
_CURE = "systemd-sysusers llamad.conf"


def check(host: Host) -> Iterable[Seen]:
    """The user exists and is in the groups of GPUs."""
    if host.user is None:
        yield error(NAME, f"there is no user {SERVICE_USER}", why="every unit of llamad runs as it", cure=_CURE)
        return
    bad = False
    for group in GROUPS:
        number = host.accounts.group(group)
        if number is None:
            bad = True
            yield error(NAME, f"there is no group {group}", why="device nodes of GPUs belong to it", cure=_CURE)
        elif number not in host.user.gids:
            bad = True
            what, why = f"{SERVICE_USER} is not in the group {group}", "it may not open device nodes of GPUs"
            yield error(NAME, what, about=group, why=why, cure=_CURE)
    if not bad:
        yield ok(NAME, f"{SERVICE_USER} is in {' and '.join(GROUPS)}")
