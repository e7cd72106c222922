"""No verb runs an engine binary as root: GGUF parsers of llama.cpp meet hostile files.

Under systemd the verb is run again by systemd-run in the unit's own sandbox, so that what it can read and
which devices it sees are what the service will see; elsewhere it becomes the service's user.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Sequence
from pathlib import Path

from llamad.errors import AccessError

USER = "_llamad"
_SANDBOX_PREFIXES = (
    "Protect", "Private", "Restrict", "SystemCall", "Device", "Capability", "Ambient", "NoNewPrivileges",
    "LockPersonality", "MemoryDenyWriteExecute", "RemoveIPC", "UMask", "LimitMEMLOCK", "LimitNOFILE", "LimitCORE",
    "SupplementaryGroups", "ReadOnlyPaths", "ReadWritePaths", "InaccessiblePaths", "TasksMax", "Environment",
    "Nice", "CPU", "NUMA", "Memory",  # a measurement is to have what the service has
)  # fmt: skip


# What systemd makes for the unit, with the modes of the unit's *Directory= settings.
_ROUTER_FOLDERS = (
    ("/run/llamad/router", 0o711), ("/var/lib/llamad/router", 0o700), ("/var/cache/llamad/.router", 0o700)
)  # fmt: skip
_FOLDERS = (("/run/llamad/model", 0o711), ("/var/lib/llamad/state", 0o700), ("/var/cache/llamad", 0o700))


def drop_root(name: str = "", *, router: bool = False) -> None:
    """As root, become the service's user for good. Raises AccessError without that user.

    With a model's name, or for the router, the folders are made first, as systemd makes them for the unit.
    """
    if os.geteuid() != 0:
        return
    user = _service_user()
    for parent, mode in _FOLDERS if name else ():
        _make_folder(os.path.join(parent, name), mode, user)
    for folder, mode in _ROUTER_FOLDERS if router else ():
        _make_folder(folder, mode, user)
    os.setgroups(os.getgrouplist(USER, user.pw_gid))
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.environ["HOME"] = user.pw_dir


def _service_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        raise AccessError(
            "llamad does not run llama-server as root",
            why=f"there is no user {USER}",
            fix="run it as an ordinary user, or install the package",
        ) from None


def _make_folder(folder: str, mode: int, user: pwd.struct_passwd) -> None:
    try:
        os.mkdir(folder, mode)
    except FileExistsError:
        return
    except OSError as error:
        fix = "install the package, or run systemd-tmpfiles --create"
        raise AccessError(f"cannot make {folder}", why=error.strerror or "", fix=fix) from error
    os.chmod(folder, mode)
    os.chown(folder, user.pw_uid, user.pw_gid)


def rerun_in_sandbox(argv: list[str], unit: str, cache: Path | None) -> int | None:
    """As root under systemd, run `llamad ARGV` in the sandbox of `unit`: its exit code. None: carry on here.

    `cache` is the one folder that may be written, if it exists. Without systemd the process drops to the
    service's user and carries on.
    """
    if os.geteuid() != 0:
        return None
    import subprocess  # not for `serve`

    if not can_sandbox():
        drop_root()
        return None
    command = sandbox_command([*own_command(), *argv], unit, cache)
    sys.stdout.flush()
    return subprocess.run(command, check=False).returncode


def can_sandbox() -> bool:
    """Whether systemd is here to make a sandbox."""
    import shutil  # not for `serve`: it brings the compressors along

    return Path("/run/systemd/system").is_dir() and shutil.which("systemd-run") is not None


def sandbox_command(argv: Sequence[str], unit: str, cache: Path | None, *more: str) -> list[str]:
    """What root runs to have `argv` in the sandbox of `unit`, as its user. `more`: options of systemd-run."""
    properties = [f"User={USER}", "WorkingDirectory=/", *sandbox_of(unit)]
    if cache is not None and cache.is_dir():
        properties.append(f"ReadWritePaths={cache}")
    command = ["systemd-run", "--pipe", "--wait", "--collect", "--quiet", "--service-type=exec"]
    command += [f"--property={text}" for text in properties]
    return [*command, *more, "--", *argv]


def run_as_service(
    config: Path, argv: list[str], name: str, *, sandboxed: bool, words: str, limit_s: float
) -> tuple[int, str]:
    """As root, run `llamad ARGV`, a verb and its words, over the definitions of `config` as the service's user: its
    exit code and what it wrote to stdout.

    `sandboxed`: in the sandbox of the model's unit, with the unit's state and cache folders and its devices, where
    there is systemd; it sees no other process there. `words` is what it reads from stdin. It is stopped when we are
    interrupted, and after `limit_s` seconds. Raises AccessError without that user.
    """
    import subprocess

    from llamad.measure.stopped import ends_interrupt  # only who measures

    own_unit = f"llamad-{argv[0]}-{name}-{os.getpid()}.service"
    command = [*own_command(), "--config", str(config.absolute()), *argv]
    under_systemd = sandboxed and can_sandbox()
    if under_systemd:
        gpu = f"llamad-gpu@{name}.service"
        properties = [
            f"StateDirectory=llamad/state/{name}", "StateDirectoryMode=0700", f"CacheDirectory=llamad/{name}",
            "CacheDirectoryMode=0700", f"Wants={gpu}", f"After={gpu}", f"RuntimeMaxSec={limit_s:.0f}",
            "KillMode=mixed", "UMask=0077",
        ]  # fmt: skip
        more = (f"--unit={own_unit}", *(f"--property={text}" for text in properties))
        command = sandbox_command(command, f"llamad@{name}.service", None, *more)
    else:
        command = [*_as_user(name), *command]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0)
    with ends_interrupt():
        try:
            return_text, _ = process.communicate(words, timeout=limit_s + 60)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            if under_systemd:
                subprocess.run(["systemctl", "stop", own_unit], check=False)
            else:
                process.terminate()
            process.wait()
            raise KeyboardInterrupt from None
    return process.returncode, return_text


def _as_user(name: str) -> list[str]:
    """What to put before a command that is to run as the service's user; makes the model's folders."""
    user = _service_user()
    for parent, mode in _FOLDERS:
        _make_folder(os.path.join(parent, name), mode, user)
    who = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups", "--reset-env"]
    return ["setpriv", *who, "--"]


def own_command() -> list[str]:
    """How this very llamad is started again."""
    script = Path(sys.argv[0])
    if script.name == "llamad" and script.is_absolute() and os.access(script, os.X_OK):
        return [str(script)]
    return [sys.executable, "-m", "llamad"]


def sandbox_of(unit: str) -> list[str]:
    """The unit's sandbox settings with all drop-ins, as `Key=value`, in their order; [] if it is unknown."""
    import subprocess

    shown = subprocess.run(
        ["systemctl", "cat", "--no-pager", unit], capture_output=True, text=True, check=False
    )
    return parse_sandbox(shown.stdout)


def parse_sandbox(text: str) -> list[str]:
    """The sandbox lines of the [Service] sections of a unit's text; continuation lines joined."""
    found: list[str] = []
    section = ""
    for line in text.replace("\\\n", " ").splitlines():
        stripped = line.strip()
        if stripped.startswith("["):
            section = stripped
        elif section == "[Service]" and stripped.startswith(_SANDBOX_PREFIXES):
            key, _, value = stripped.partition("=")
            if "%" not in value:
                found.append(f"{key.strip()}={' '.join(value.split())}")
    return found
