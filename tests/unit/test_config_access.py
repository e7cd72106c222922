"""Who can read a model, and what stands in the way."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest

from llamad.config.access import Identity, Mode, SystemAccess, access_problem, may
from llamad.errors import ExitCode

LLAMAD = Identity("_llamad", 990, frozenset({990, 44}))


class FakeAccess:
    """A system of a few paths; a path that is not named does not exist."""

    def __init__(
        self, modes: dict[str, Mode], links: dict[str, str] | None = None, known: bool = True
    ) -> None:
        self._modes = {"/": Mode(0o755, 0, 0), **modes}
        self._links = links or {}
        self._known = known

    def identity(self, user: str) -> Identity | None:
        return LLAMAD if self._known and user == "_llamad" else None

    def mode(self, path: str) -> Mode | None:
        return self._modes.get(path)

    def real_path(self, path: str) -> str:
        return self._links.get(path, path)


OPEN = {"/srv": Mode(0o755, 0, 0), "/srv/models": Mode(0o755, 0, 0), "/srv/models/m.gguf": Mode(0o644, 0, 0)}
MODEL = "/srv/models/m.gguf"


def problem(modes: dict[str, Mode], path: str = MODEL, **rest: object) -> str:
    found = access_problem(path, access=FakeAccess({**OPEN, **modes}, **rest))  # type: ignore[arg-type]
    assert found is None or found.exit_code == ExitCode.NO_PERMISSION
    return str(found or "")


def test_a_readable_file_is_no_problem() -> None:
    assert problem({}) == ""


@pytest.mark.parametrize(
    ("path", "setting"),
    [
        ("/home/joe/m.gguf", "ProtectHome="),
        ("/root/m.gguf", "ProtectHome="),
        ("/run/user/1000/m.gguf", "ProtectHome="),
        ("/tmp/m.gguf", "PrivateTmp="),
        ("/var/tmp/m.gguf", "PrivateTmp="),
    ],
)
def test_trees_that_the_unit_does_not_see(path: str, setting: str) -> None:
    text = problem({path: Mode(0o644, 0, 0)}, path)
    assert setting in text
    assert "move it to /var/lib/llamad/models" in text
    assert "ermission denied" not in text
    readable = FakeAccess({path: Mode(0o644, 0, 0)})
    assert access_problem(path, sandboxed=False, access=readable) is None


def test_a_name_that_only_begins_like_such_a_tree() -> None:
    assert problem({"/homes": Mode(0o755, 0, 0), "/homes/m.gguf": Mode(0o644, 0, 0)}, "/homes/m.gguf") == ""


def test_a_link_into_such_a_tree() -> None:
    text = problem({}, MODEL, links={MODEL: "/home/joe/m.gguf"})
    assert "it leads to /home/joe/m.gguf, in /home" in text


def test_the_first_closed_folder_is_named() -> None:
    text = problem({"/srv": Mode(0o750, 0, 0), "/srv/models": Mode(0o700, 0, 0)})
    assert "the folder /srv is closed to the user _llamad" in text
    assert "setfacl -m u:_llamad:x /srv" in text


def test_an_unreadable_file_is_named() -> None:
    text = problem({MODEL: Mode(0o640, 0, 0)})
    assert "the file is not readable for the user _llamad" in text
    assert f"setfacl -m u:_llamad:r {MODEL}" in text


def test_the_target_of_a_link_must_be_reachable_too() -> None:
    modes = {"/data": Mode(0o700, 0, 0), "/data/m.gguf": Mode(0o644, 0, 0)}
    assert "the folder /data is closed" in problem(modes, links={MODEL: "/data/m.gguf"})


def test_what_cannot_be_told_is_no_problem() -> None:
    assert problem({}, "/none/m.gguf") == ""
    assert problem({MODEL: Mode(0, 0, 0)}, known=False) == ""


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20


@pytest.mark.parametrize(
    ("mode", "granted"),
    [
        (Mode(0o400, 990, 0), True),
        (Mode(0o044, 990, 990), False),  # the owner's bits decide, though the group may
        (Mode(0o040, 0, 44), True),
        (Mode(0o004, 0, 44), False),  # the group's bits decide, though others may
        (Mode(0o004, 0, 0), True),
        (
            Mode(
                0o070,
                0,
                0,
                acl((USER_OBJ, 6, NOBODY), (USER, 4, 990), (GROUP_OBJ, 0, NOBODY), (MASK, 7, NOBODY)),
            ),
            True,
        ),
        (
            Mode(
                0o010,
                0,
                0,
                acl((USER_OBJ, 6, NOBODY), (USER, 4, 990), (GROUP_OBJ, 0, NOBODY), (MASK, 1, NOBODY)),
            ),
            False,
        ),
        (
            Mode(
                0o074,
                0,
                0,
                acl((USER_OBJ, 6, NOBODY), (USER, 0, 990), (MASK, 7, NOBODY), (OTHER, 4, NOBODY)),
            ),
            False,
        ),
        (Mode(0o074, 0, 0, acl((USER_OBJ, 6, NOBODY), (GROUP, 4, 44), (MASK, 7, NOBODY))), True),
        (Mode(0o074, 0, 0, acl((USER_OBJ, 6, NOBODY), (GROUP, 0, 44), (MASK, 7, NOBODY))), False),
        (Mode(0o074, 0, 0, acl((USER_OBJ, 6, NOBODY), (USER, 0, 1000), (MASK, 7, NOBODY))), True),
        (Mode(0o070, 990, 0, acl((USER_OBJ, 0, NOBODY), (USER, 4, 990), (MASK, 7, NOBODY))), False),
        (Mode(0o004, 0, 0, b"\1\0\0\0garbage"), True),
    ],
)
def test_the_kernel_s_algorithm(mode: Mode, granted: bool) -> None:
    assert may(LLAMAD, mode, 4) is granted


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root to become another user"
)
def test_the_real_system_agrees_with_the_kernel() -> None:
    """What is computed for `nobody`, by root, is what `nobody` finds out by trying."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as base:  # pytest's own folders are closed to others
        Path(base).chmod(0o755)
        folder = Path(base, "folder")
        folder.mkdir()
        file = folder / "m.gguf"
        file.write_text("x")
        outcomes = set()
        for folder_mode, file_mode in (
            (0o755, 0o644),
            (0o700, 0o644),
            (0o755, 0o640),
            (0o711, 0o604),
            (0o750, 0o600),
        ):
            folder.chmod(folder_mode)
            file.chmod(file_mode)
            computed = access_problem(str(file), "nobody", sandboxed=False) is None
            assert computed is read_by_nobody(file)
            outcomes.add(computed)
        assert outcomes == {True, False}
        if (
            shutil.which("setfacl")
            and subprocess.run(["setfacl", "-m", "u:nobody:rx", folder], check=False).returncode == 0
        ):
            subprocess.run(["setfacl", "-m", "u:nobody:r", file], check=True)
            assert read_by_nobody(file)
            assert access_problem(str(file), "nobody", sandboxed=False) is None


def read_by_nobody(file: Path) -> bool:
    become = ["setpriv", "--reuid=nobody", "--clear-groups", "--regid=nogroup", "cat", str(file)]
    return subprocess.run(become, capture_output=True, timeout=20, check=False).returncode == 0


def test_an_unknown_user_is_nobody_on_the_real_system() -> None:
    assert SystemAccess().identity("no-such-user-here") is None
    assert SystemAccess().mode("/no/such/file\0") is None


def test_the_commands_of_an_advice_hold_no_back_quotes(tmp_path: Path) -> None:
    """They mark where a command ends."""
    folder = tmp_path / "a`b`c'd"
    folder.mkdir(mode=0o700)
    (folder / "m.gguf").touch()

    class Other(SystemAccess):
        def identity(self, user: str) -> Identity:
            return Identity(user, 990, frozenset({990}))

        def mode(self, path: str) -> Mode:
            return Mode(0o700 if path == str(folder) else 0o755, 0, 0)

    problem = access_problem(str(folder / "m.gguf"), sandboxed=False, access=Other())
    assert problem is not None and problem.fix.count("`") == 4
    command = re.findall("`([^`]+)`", problem.fix)[1]
    subprocess.run(["/bin/sh", "-c", command], check=True)
    assert folder.stat().st_mode & 0o777 == 0o701
