"""What else on this host gets in llama-server's way: Debian's own unit, and the file that it always reads."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from llamad.service.doctor.finding import Seen, ok, warn
from llamad.service.doctor.host import Host

NAME = "others"
CONFIG_INI = "/etc/llama.cpp/config.ini"
DEBIANS_UNIT = "llama-server.service"
_MOST_KEYS = 5


def check(host: Host) -> Iterable[Seen]:
    """Both of them."""
    unit = host.systemd.unit(DEBIANS_UNIT)
    bad = False
    if unit.is_active or (unit.is_enabled and not unit.is_masked):
        bad = True
        what = f"{DEBIANS_UNIT} {'runs' if unit.is_active else 'is enabled'}"
        why = "it takes device memory and port 8080 without being planned for"
        yield warn(NAME, what, about=DEBIANS_UNIT, why=why, cure=f"systemctl disable --now {DEBIANS_UNIT}")
    keys = [line.partition("=")[0].strip() for line in host.tree.text(CONFIG_INI).splitlines()
            if "=" in line and not line.strip().startswith(("#", ";"))]  # fmt: skip
    if keys:
        bad = True
        named = ", ".join(keys[:_MOST_KEYS]) + (", ..." if len(keys) > _MOST_KEYS else "")
        why = f"llama-server reads it always, and whatever llamad does not state follows it: {named}"
        path = shlex.quote(CONFIG_INI)
        yield warn(NAME, "it changes llama-server", about=CONFIG_INI, why=why, cure=f"mv {path} {path}.unused")
    if not bad:
        yield ok(NAME, f"no {DEBIANS_UNIT}, no {CONFIG_INI}")
