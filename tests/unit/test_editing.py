"""`llamad edit`: what was not checked is not installed, and what was there stays as it was."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llamad.config.load import load_definition
from llamad.errors import BusyError, ChildError, ConfigError
from llamad.service.editing import Answer, Desk, Outcome, edit, locked
from llamad.service.editor import find_editor, run_editor
from tests.support.gguf_fuzz import keys, model
from tests.support.gguf_writer import write_gguf

ROOT = Path(__file__).parents[2]


class Admin:
    """Edits by functions in their turn, and answers in turn."""

    def __init__(self, *edits: Callable[[Path], object], answers: str = "", refusal: str = "", status: int = 0) -> None:
        self.edits = list(edits)
        self.status = status
        self.answers = list(answers)
        self.refusal = refusal
        self.said: list[str] = []
        self.lines: list[int] = []
        self.planned: list[tuple[str, str]] = []

    def desk(self) -> Desk:
        return Desk(self._edit, lambda: Answer(self.answers.pop(0)), self.said.append, self._plan, sandboxed=False)

    def _edit(self, copy: Path, line: int) -> int:
        self.lines.append(line)
        self.edits.pop(0)(copy)
        return self.status

    def _plan(self, name: str, folder: Path) -> str:
        self.planned.append((name, (folder / f"{name}.toml").read_text()))
        assert load_definition(name, folder).definition.model
        return self.refusal.replace("FOLDER", str(folder))


def writes(text: str) -> Callable[[Path], object]:
    return lambda copy: copy.write_text(text)


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    root = tmp_path / "etc"
    root.mkdir()
    write_gguf(tmp_path / "m.gguf", keys("llama"), model(), None)
    (root / "phi4.toml").write_text(f'model = "{tmp_path}/m.gguf"\n')
    (root / "other.toml").write_text(f'model = "{tmp_path}/m.gguf"\nlisten = "127.0.0.1:8082"\n')
    return root


def good(etc: Path, more: str = "") -> str:
    return f'model = "{etc.parent}/m.gguf"\n{more}'


def test_a_right_edit_is_planned_with_everything_and_installed(etc: Path) -> None:
    file = etc / "phi4.toml"
    file.chmod(0o640)
    (etc / "llamad.toml").write_text("[placement]\ncontext_min = 512\n")
    admin = Admin(writes(good(etc, "[placement]\nparallel = 2\n")))
    assert edit("phi4", file, etc, admin.desk()) is Outcome.INSTALLED
    assert load_definition("phi4", etc).definition.placement.parallel == 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert admin.said == [] and admin.planned == [("phi4", file.read_text())]
    assert sorted(os.listdir(etc)) == ["llamad.toml", "other.toml", "phi4.toml"]


def test_an_edit_that_changes_nothing_does_nothing(etc: Path) -> None:
    file = etc / "phi4.toml"
    before = file.stat()
    admin = Admin(lambda copy: copy.write_bytes(copy.read_bytes()))
    assert edit("phi4", file, etc, admin.desk()) is Outcome.UNCHANGED
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert admin.planned == []


def test_a_mistake_has_its_place_and_can_be_edited_again_or_left(etc: Path) -> None:
    file = etc / "phi4.toml"
    before = file.read_bytes()
    wrong, found = good(etc, "[placement]\nparalel = 2\n"), list[str]()
    admin = Admin(writes(wrong), lambda copy: found.append(copy.read_text()), answers="ex")
    assert edit("phi4", file, etc, admin.desk()) is Outcome.LEFT
    assert admin.said[0] == f"{file}:3:1: placement.paralel: unknown key; did you mean parallel?"
    assert found == [wrong]
    assert admin.lines == [0, 3]  # the editor is opened at the mistake
    assert file.read_bytes() == before and admin.planned == []


def test_a_mistake_can_be_installed_by_who_insists(etc: Path) -> None:
    file = etc / "phi4.toml"
    assert edit("phi4", file, etc, Admin(writes("modle = 1\n"), answers="Q").desk()) is Outcome.INSTALLED
    assert file.read_text() == "modle = 1\n"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ('listen = "127.0.0.1:8082"\n', r"phi4.toml:2:1: listen: 127.0.0.1:8082 is taken by other"),
        ('aliases = ["other"]\n', r"phi4.toml:2:12: aliases\[0\]: \"other\" is a name of other"),
        ("[placement]\ncontext = 99999999\n", "phi4.toml:3:1: placement.context: 99999999 is more than"),
    ],
)
def test_what_only_the_world_shows_is_a_mistake_too(etc: Path, more: str, says: str) -> None:
    admin = Admin(writes(good(etc, more)), answers="x")
    assert edit("phi4", etc / "phi4.toml", etc, admin.desk()) is Outcome.LEFT
    assert re.search(says, admin.said[0]), admin.said


def test_a_model_that_is_not_there_and_a_plan_that_cannot_be_made(etc: Path) -> None:
    admin = Admin(writes('model = "/none/m.gguf"\n'), answers="x")
    assert edit("phi4", etc / "phi4.toml", etc, admin.desk()) is Outcome.LEFT
    assert "phi4.toml:1:1: model: /none/m.gguf" in admin.said[0]
    admin = Admin(writes(good(etc, "start = 'always'\n")), answers="x", refusal="FOLDER/phi4.toml:2:1: it does not fit\n")
    assert edit("phi4", etc / "phi4.toml", etc, admin.desk()) is Outcome.LEFT
    assert admin.said == [f"{etc}/phi4.toml:2:1: it does not fit"]


def test_a_drop_in_is_judged_with_all_that_it_stands_over(etc: Path) -> None:
    folder = etc / "phi4.toml.d"
    folder.mkdir()
    (folder / "20-more.toml").write_text("[placement]\nparallel = 3\n")
    new = folder / "10-new.toml"
    admin = Admin(writes("[placement]\nparallel = 2\ncontext = 512\n"))
    assert edit("phi4", new, etc, admin.desk()) is Outcome.INSTALLED
    placement = load_definition("phi4", etc).definition.placement
    assert (placement.parallel, placement.context) == (3, 512)
    assert stat.S_IMODE(new.stat().st_mode) == 0o644
    admin = Admin(writes("[placement]\nubatch = 'x'\n"), answers="x")
    assert edit("phi4", new, etc, admin.desk()) is Outcome.LEFT
    assert admin.said[0].startswith(f"{new}:2:1: placement.ubatch")
    admin = Admin(lambda copy: 0)
    assert edit("phi4", folder / "30-none.toml", etc, admin.desk()) is Outcome.UNCHANGED
    assert not (folder / "30-none.toml").exists()


def test_the_settings_of_the_host_are_judged_with_every_definition(etc: Path) -> None:
    file = etc / "llamad.toml"
    admin = Admin(writes("[host]\nwatch = 5\n"), answers="x")
    assert edit("llamad", file, etc, admin.desk()) is Outcome.LEFT
    assert admin.said[0].startswith(f"{file}:2:1: host.watch")
    admin = Admin(writes("[placement]\nubatch = 4096\nbatch = 64\n"), answers="x")
    assert edit("llamad", file, etc, admin.desk()) is Outcome.LEFT
    assert len(admin.said) == 1 and str(file) in admin.said[0]
    assert not file.exists()
    assert edit("llamad", file, etc, Admin(writes("[host]\nwatch = false\n")).desk()) is Outcome.INSTALLED


def test_what_fails_changes_nothing(etc: Path) -> None:
    file = etc / "phi4.toml"
    before = file.read_bytes()
    with pytest.raises(ChildError, match="ended with 3"):
        edit("phi4", file, etc, Admin(writes("x"), status=3).desk())
    with pytest.raises(ChildError, match="copy is gone"):
        edit("phi4", file, etc, Admin(lambda copy: copy.unlink()).desk())
    assert file.read_bytes() == before

    def race(copy: Path) -> None:
        file.write_text(good(etc, "# theirs\n"))
        copy.write_text(good(etc, "# ours\n"))

    with pytest.raises(ConfigError, match="changed by somebody else meanwhile"):
        edit("phi4", file, etc, Admin(race).desk())
    assert file.read_text() == good(etc, "# theirs\n")


def test_two_editors_at_once_are_refused_and_the_first_one_ends_it(etc: Path) -> None:
    file = etc / "phi4.toml"
    (etc / "link.toml").symlink_to(file)
    with locked(file):
        for name in ("phi4.toml", "link.toml"):
            with pytest.raises(BusyError, match=r"is being edited") as caught, locked(etc / name):
                pytest.fail("two had the lock")
            assert caught.value.why in ("", f"by process {os.getpid()}")
        with locked(etc / "other.toml"):
            pass
        file.with_suffix(".new").write_text("replaced")
        file.with_suffix(".new").rename(file)
    with locked(file):
        pass


def test_the_lock_ends_with_its_process(etc: Path) -> None:
    code = f"from llamad.service.editing import locked\nfrom pathlib import Path\nwith locked(Path({str(etc / 'phi4.toml')!r})):\n print(1, flush=True)\n input()"
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"1\n"
        with pytest.raises(BusyError), locked(etc / "phi4.toml"):
            pytest.fail("two had the lock")
    finally:
        holder.kill()
        holder.wait()
    with locked(etc / "phi4.toml"):
        pass


def test_which_editor(tmp_path: Path) -> None:
    have = {"sensible-editor", "vi"}
    which = lambda name: name if name in have else None  # noqa: E731
    assert find_editor({"VISUAL": "code --wait", "EDITOR": "vi"}, which) == ["code", "--wait"]
    assert find_editor({"VISUAL": " ", "EDITOR": "vi"}, which) == ["vi"]
    assert find_editor({}, which) == ["sensible-editor"]
    with pytest.raises(ChildError, match="there is no editor"):
        find_editor({}, lambda _name: None)
    with pytest.raises(ChildError, match="EDITOR is no command"):
        find_editor({"EDITOR": "'"}, which)
    script = tmp_path / "vim"
    script.write_text('#!/bin/sh\necho "$@" > "$2.said"\nexit 7\n')
    script.chmod(0o755)
    file = tmp_path / "a.toml"
    assert run_editor([str(script)], file, 12) == 7
    assert (tmp_path / "a.toml.said").read_text() == f"+12 {file}\n"
    with pytest.raises(ChildError, match="cannot run"):
        run_editor([str(tmp_path / "none")], file, 0)


def test_the_folder_of_a_drop_in_can_be_read_whatever_the_umask(etc: Path) -> None:
    before = os.umask(0o077)
    try:
        admin = Admin(writes("[placement]\nparallel = 2\n"))
        assert edit("phi4", etc / "phi4.toml.d" / "10-new.toml", etc, admin.desk()) is Outcome.INSTALLED
    finally:
        os.umask(before)
    assert stat.S_IMODE((etc / "phi4.toml.d").stat().st_mode) == 0o755


def test_where_there_is_no_folder_there_is_nothing_to_edit(etc: Path) -> None:
    """A link into nowhere too; both are said at once."""
    (etc / "llamad.toml").symlink_to("/nonexistent/folder/llamad.toml")
    code = (
        "import sys; from pathlib import Path; from llamad.errors import ConfigError\n"
        "from llamad.service.editing import locked\n"
        "for file in sys.argv[1:]:\n"
        "    try:\n        with locked(Path(file)): pass\n"
        "    except ConfigError as error: print(error)\n"
    )
    files = [str(etc / "none" / "llamad.toml"), str(etc / "llamad.toml")]
    done = subprocess.run(
        [sys.executable, "-c", code, *files], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout.count("there is no such folder") == 2
