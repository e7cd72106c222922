"""Builds the bed's root directory once and keeps it in a cache, one folder a recipe.

Everything that mounts runs in a mount namespace and a pid namespace of its own that end with this process: a build
that is killed leaves files (removed by the next one) but no mount and no process.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bed import host
from bed.processes import DIES_WITH_US, OWN_NAMESPACES
from bed.recipe import BUILDER, COMPONENTS, PACKAGES, PIP_PACKAGES, SUITE, fingerprint
from bed.report import BedError, elapsed_s, say

CACHE = Path("/var/cache/llamad-testbed")
_SCRIPTS = Path(__file__).parent
_TEST_SUPPORT = Path(__file__).parents[2] / "tests/support"

_INSIDE = "/run/llamad-build"  # where the scripts are seen in the root while it is set up


@contextmanager
def locked(path: Path, *, waiting_for: str) -> Iterator[None]:
    """Hold the flock of `path`; says what it waits for when another process has it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for {waiting_for}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cached_root() -> Path:
    """Where the root of the present recipe lies, built or not."""
    return CACHE / fingerprint(host.architecture()) / "root"


def build(*, fresh: bool = False) -> Path:
    """The root directory of the present recipe; builds it if it is not there yet, or again with `fresh`.

    Raises BedError with the end of the log when the build fails.
    """
    CACHE.mkdir(parents=True, exist_ok=True, mode=0o755)
    with locked(CACHE / "build.lock", waiting_for="another build of the test bed"):
        root = cached_root()
        if root.is_dir() and not fresh:
            os.utime(root.parent / "in-use.lock")
            return root
        if root.is_dir() and _is_used(root.parent):
            msg = "a bed that is up stands on the root to be replaced: packaging/testbed down"
            raise BedError(msg)
        _remove(CACHE.glob("new.*"))
        new = CACHE / f"new.{os.getpid()}"
        try:
            _build_into(new)
            _remove([root.parent])
            new.rename(root.parent)
        except BaseException:
            _remove([new])
            raise
        _remove_old(keep=root.parent)
    return root


def _build_into(new: Path) -> None:
    host.install_needed()
    began_s = elapsed_s()
    url = host.mirror()
    say(
        f"building the test bed, once: Debian {SUITE} from {url}, {len(PACKAGES)} packages and what they need"
    )
    new.mkdir(mode=0o755)
    (new / "in-use.lock").touch()
    log = new / "build.log"
    root = new / "root"
    _run(_mmdebstrap(root, url), log=log, doing="installing Debian")
    with _seen_inside(root, host.network_environment()) as (binds, environment):
        say("setting it up: users, services, Python packages")
        _run(
            _chroot(root, binds, environment, [f"{_INSIDE}/setup.sh", BUILDER, *PIP_PACKAGES]),
            log=log,
            doing="setup.sh",
        )
        say("compiling shaders for the software Vulkan device")
        _run(_chroot(root, binds, {}, [f"{_INSIDE}/shaders.sh", _INSIDE]), log=log, doing="shaders.sh")
    (root / "etc/resolv.conf").unlink(missing_ok=True)  # this machine's: the bed has no network
    say(f"the test bed is built, in {elapsed_s() - began_s:.0f} s")


def _mmdebstrap(root: Path, url: str) -> list[str]:
    options = [
        # Mirrors may lag behind the date until which the index is valid; signatures are checked all the same.
        'Acquire::Check-Valid-Until "false"',
        'Acquire::Languages "none"',
        *host.apt_options(),
    ]
    excluded = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
    return [
        *("mmdebstrap", "--mode=root", "--variant=minbase", f"--keyring={host.KEYRING}"),
        f"--include={','.join(PACKAGES)}",
        *(f"--aptopt={option}" for option in options),
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in excluded),
        *(SUITE, str(root), f"deb {url} {SUITE} {COMPONENTS}"),
    ]


@contextmanager
def _seen_inside(
    root: Path, environment: Mapping[str, str]
) -> Iterator[tuple[list[tuple[Path, Path]], dict[str, str]]]:
    """What of the host a set-up inside `root` must see: (source, place in the root) to bind, and the environment.

    Folders that are made in the root to bind on are gone afterwards.
    """
    wanted = [Path("/etc/resolv.conf"), Path("/etc/ssl/certs/ca-certificates.crt")]
    binds = [(path, path) for path in wanted if path.exists()]
    binds += [(path, path) for path in host.local_paths(environment.values())]
    binds += [(_SCRIPTS / name, Path(_INSIDE) / name) for name in ("setup.sh", "shaders.sh")]
    binds.append((_TEST_SUPPORT, Path(_INSIDE) / "tests/support"))
    made: list[Path] = []
    try:
        for source, place in binds:
            made += _make_place(root / place.relative_to("/"), is_folder=source.is_dir())
        yield [(source, root / place.relative_to("/")) for source, place in binds], dict(environment)
    finally:
        for path in reversed(made):
            path.rmdir() if path.is_dir() else path.unlink()


def _make_place(path: Path, *, is_folder: bool) -> list[Path]:
    """Make what is missing of `path`; the list of what was made, outermost first."""
    missing = [parent for parent in reversed(path.parents) if not parent.exists()]
    for parent in missing:
        parent.mkdir(mode=0o755)
    if path.exists():
        return missing
    if is_folder:
        path.mkdir(mode=0o755)
    else:
        path.touch()
    return [*missing, path]


def _chroot(
    root: Path, binds: Iterable[tuple[Path, Path]], environment: Mapping[str, str], command: Sequence[str]
) -> list[str]:
    script = 'root=$1; shift; while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done; shift; '
    script += 'mount -t proc proc "$root/proc"; mount --rbind /dev "$root/dev"; exec chroot "$root" "$@"'
    places = [str(path) for bind in binds for path in bind]
    clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", **environment}
    variables = [f"{name}={value}" for name, value in clean.items()]
    return ["sh", "-ec", script, "sh", str(root), *places, "--", "env", "-i", *variables, "sh", *command]


def _run(command: Sequence[str], *, log: Path, doing: str) -> None:
    """Run a step of the build in a namespace of its own; its `I:` lines are shown, all lines go to `log`."""
    with log.open("a") as file:
        child = subprocess.Popen(
            [*DIES_WITH_US, *OWN_NAMESPACES, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert child.stdout is not None
        try:
            for line in child.stdout:
                file.write(line)
                if line.startswith("I: "):
                    say(f"  {line[3:].strip()[:100]}")
            status = child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        msg = f"{doing} failed with status {status}; the end of its log:\n{tail}"
        raise BedError(msg)


def _remove_old(*, keep: Path) -> None:
    """Remove roots of other recipes but the one used last, which a switch of branches would want back.

    A root that a running bed stands on stays in any case.
    """
    others = sorted((lock for lock in CACHE.glob("*/in-use.lock") if lock.parent != keep), key=_last_used)
    _remove(lock.parent for lock in others[:-1] if not _is_used(lock.parent))


def _last_used(lock: Path) -> float:
    return lock.stat().st_mtime


def _is_used(folder: Path) -> bool:
    """Whether a running bed holds the lock of this root."""
    with (folder / "in-use.lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)
