"""`llamad edit`: a copy is edited, checked, and only then put in the place of the file, as visudo does it. Blocking."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from llamad.config.files import read_all, read_definition, read_file
from llamad.config.load import judge, judge_host
from llamad.config.names import HOST_FILE, definition_names
from llamad.config.staged import staged
from llamad.config.write import make_folder, replace_definition
from llamad.errors import BusyError, ChildError, ConfigError, ConfigErrors, LlamadError, Where, os_error
from llamad.service.checks import check_loaded

HOST_NAME = "llamad"
"""Stands for the settings of the host."""


class Answer(StrEnum):
    """What to do with an edit that has a mistake."""

    AGAIN = "e"
    LEAVE = "x"
    INSTALL = "Q"


class Outcome(StrEnum):
    """How an edit ended."""

    UNCHANGED = "unchanged"
    INSTALLED = "installed"
    LEFT = "left"
    """Not saved: it had mistakes."""


@dataclass(frozen=True)
class Found:
    """What is wrong, a text each, and the line to begin at (0: none in this file)."""

    problems: tuple[str, ...] = ()
    line: int = 0


@dataclass(frozen=True)
class Desk:
    """What an edit is done with."""

    editor: Callable[[Path, int], int]
    """Opens a file, at a line if it is not 0; the exit status of the editor."""
    ask: Callable[[], Answer]
    say: Callable[[str], None]
    plan: Callable[[str, Path], str]
    """Why no plan can be made of a definition in this folder; empty where one can."""
    sandboxed: bool = True
    """Whether models are served by units, which do not see /home and /tmp."""


def edit(name: str, file: Path, root: Path, desk: Desk) -> Outcome:
    """Edit `file`, one that makes the definition `name` (or `llamad.toml`). Nothing is changed unless it was checked.

    Raises BusyError where somebody else edits it, ChildError where the editor fails, ConfigError where the file was
    changed meanwhile, AccessError.
    """
    with locked(root / f"{name}.toml"):
        before = read_file(file)
        text = before if before is not None else f"# Keys here win over those of {name}.toml.\n".encode()
        with tempfile.TemporaryDirectory(prefix="llamad-edit-") as scratch:
            return _edit_copy(Path(scratch) / file.name, name, file, root, before, text, desk)


def _edit_copy(
    copy: Path, name: str, file: Path, root: Path, before: bytes | None, text: bytes, desk: Desk
) -> Outcome:
    copy.write_bytes(text)
    line = 0
    while True:
        status = desk.editor(copy, line)
        if status != 0:
            raise ChildError(f"the editor ended with {status}", fix="nothing was changed; set VISUAL or EDITOR")
        try:
            content = copy.read_bytes()
        except OSError as error:
            raise ChildError("the edited copy is gone", why=str(error), fix="nothing was changed") from error
        if content == text:
            return Outcome.UNCHANGED
        found = judged(name, file, content, root, desk)
        for problem in found.problems:
            desk.say(problem)
        answer = desk.ask() if found.problems else Answer.INSTALL
        if answer is Answer.LEAVE:
            return Outcome.LEFT
        if answer is Answer.INSTALL:
            make_folder(file.parent)
            replace_definition(file, content, before)
            return Outcome.INSTALLED
        line = found.line


def judged(name: str, file: Path, content: bytes, root: Path, desk: Desk) -> Found:
    """What would be wrong if `file` had this content: schema, files that it names, then the plan."""
    try:
        if name == HOST_NAME:
            problems = _host_problems(root, content)
        else:
            problems = _problems(name, file, content, root, sandboxed=desk.sandboxed)
        if not problems and name != HOST_NAME:
            with staged(root, {file: content}) as folder:
                refused = desk.plan(name, folder).replace(str(folder), str(root)).strip()
            return Found((refused,), _line_in(refused, file)) if refused else Found()
    except ConfigErrors as error:
        problems = error.problems
    except LlamadError as error:
        problems = [error]
    places = [problem.where or Where("") for problem in problems]
    line = next((place.line for place in places if place.path == str(file)), 0)
    return Found(tuple(map(str, problems)), line)


def _problems(name: str, file: Path, content: bytes, root: Path, *, sandboxed: bool) -> list[LlamadError]:
    main = root / f"{name}.toml"
    contents = _with(read_definition(main, root), file, content)
    return check_loaded(judge(name, main, root, contents), root, sandboxed=sandboxed)


def _with(contents: Mapping[Path, bytes], file: Path, content: bytes) -> dict[Path, bytes]:
    """The files of a definition, the later over the earlier, with one changed or new among the drop-ins."""
    known = [*contents] if file in contents else [*contents, file]
    drop_ins = sorted(path for path in known if path.parent.suffix == ".d")
    others = [path for path in known if path not in drop_ins]
    return {path: content if path == file else contents[path] for path in (*others, *drop_ins)}


def _host_problems(root: Path, content: bytes) -> list[LlamadError]:
    """Of the settings themselves, and of the definitions that they are defaults for."""
    judge_host(root, {root / HOST_FILE: content})
    found: dict[str, LlamadError] = {}
    for name in definition_names(root):
        main = root / f"{name}.toml"
        try:
            contents = read_definition(main, root)
            contents.pop(root / HOST_FILE, None)
            judge(name, main, root, {root / HOST_FILE: content, **contents})
        except LlamadError as error:
            for problem in error.problems if isinstance(error, ConfigErrors) else [error]:
                found[str(problem)] = problem
    return list(found.values())


def _line_in(text: str, file: Path) -> int:
    match = re.search(re.escape(str(file)) + r":(\d{1,9}):", text)
    return int(match[1]) if match else 0


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Be the one who edits a definition. The lock is on the file itself (its folder where there is none), and ends
    with this process however it ends. Raises BusyError, AccessError, ConfigError where there is no folder for it.
    """
    fd = _lock(Path(os.path.realpath(file)))
    try:
        yield
    finally:
        os.close(fd)


def _lock(file: Path) -> int:
    while True:
        place = file if file.exists() else file.parent
        try:
            fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            if not file.parent.is_dir():  # a link that leads nowhere ends here too
                fix = "make it, or install the package"
                raise ConfigError("there is no such folder", where=Where(str(file.parent)), fix=fix) from None
            continue
        except OSError as error:
            raise os_error(f"cannot open {place}", error, "run it as root") from error
        try:
            if not os.access(place, os.W_OK):
                raise os_error(f"{place} cannot be written", PermissionError(13, "permission denied"), "run it as root")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(place) and os.path.samestat(os.fstat(fd), os.stat(place)):
                return fd
        except BlockingIOError:
            who = _holder(os.fstat(fd).st_ino)
            os.close(fd)
            raise BusyError(f"{file} is being edited", why=who, fix="wait until that editor has ended") from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # it was replaced in this very moment


def _holder(inode: int) -> str:
    """Who holds the lock, as far as the kernel tells."""
    for line in read_all([Path("/proc/locks")]).get(Path("/proc/locks"), b"").decode("ascii", "replace").splitlines():
        words = line.split()
        if len(words) > 5 and words[1] == "FLOCK" and words[5].endswith(f":{inode}"):
            return f"by process {words[4]}"
    return ""
