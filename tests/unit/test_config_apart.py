"""Definitions judged in another process: the same results and the same errors, and no parser or schema here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llamad.config import apart
from llamad.config.apart import Apart
from llamad.config.kept import load_all_kept, load_kept
from llamad.config.load import load_all, load_definition
from llamad.errors import ConfigErrors, LlamadError

ROOT = Path(__file__).parents[2]
MISTAKES = {
    "one": 'model = "/m/a.gguf"\n[placement]\ncontxt = 4096\n',
    "several": 'modle = "x"\n[placement]\nparalel = 2\nubatch = "big"\n',
    "syntax": 'model = "/m/a.gguf"\n[placement\n',
    "bytes": 'model = "/m/\udcff.gguf"\n',
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "llamad.toml").write_text("[limits]\ndrain_s = 5\n")
    (tmp_path / "phi4.toml").write_text('model = "/m/a.gguf"\nlisten = "127.0.0.1:8081"\n[placement]\ncontext = 4096\n')
    (tmp_path / "phi4.toml.d").mkdir()
    (tmp_path / "phi4.toml.d" / "10.toml").write_text('aliases = ["\\u00e4"]\n[environment]\nGGML_B = "1"\n')
    (tmp_path / "other.toml").write_text('model = "/m/b.gguf"\n')
    return tmp_path


def test_the_same_definition(root: Path) -> None:
    with Apart() as judge:
        assert load_kept("phi4", root, judge=judge) == load_definition("phi4", root)
        assert load_all_kept(root, judge=judge) == load_all(root)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_same_errors(root: Path, mistake: str) -> None:
    (root / "bad.toml").write_bytes(MISTAKES[mistake].encode("utf-8", "surrogateescape"))
    with pytest.raises(LlamadError) as direct:
        load_definition("bad", root)
    with Apart() as judge, pytest.raises(LlamadError) as found:
        load_kept("bad", root, judge=judge)
    assert type(found.value) is type(direct.value)
    assert str(found.value) == str(direct.value)
    assert found.value.exit_code is direct.value.exit_code
    if isinstance(direct.value, ConfigErrors):
        assert isinstance(found.value, ConfigErrors)
        assert [type(one) for one in found.value.problems] == [type(one) for one in direct.value.problems]


@pytest.mark.parametrize("program", ["import sys; sys.exit(3)", "print('garbage')", "print('{}')", "print('[1]')"])
def test_where_the_other_process_fails_the_judging_is_done_here(
    root: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(apart, "_PROGRAM", program)
    with Apart() as judge:
        assert load_kept("phi4", root, judge=judge) == load_definition("phi4", root)
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    with Apart() as judge:
        assert load_kept("other", root, judge=judge) == load_definition("other", root)


def test_nothing_of_it_stays_here(root: Path) -> None:
    """First, after a change, and after a mistake; and no process is left."""
    script = """
import json, subprocess, sys
from pathlib import Path
from llamad.config.apart import Apart
from llamad.config.kept import load_kept
from llamad.errors import LlamadError
root = Path(sys.argv[1])
for text in ('model = "/m/a.gguf"\\n', 'model = "/m/c.gguf"\\n', 'modle = 1\\n'):
    (root / "phi4.toml").write_text(text)
    try:
        with Apart() as judge:
            load_kept("phi4", root, root / "cache.json", judge=judge)
    except LlamadError as error:
        print(error, file=sys.stderr)
children = Path("/proc/self/task").joinpath(str(__import__("os").getpid()), "children").read_text()
print(json.dumps([sorted(sys.modules), children]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(root)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    modules, children = json.loads(done.stdout)
    assert not {"pydantic", "tomllib", "llamad.config.schema", "llamad.config.problems"} & set(modules)
    assert "modle" in done.stderr and "did you mean" in done.stderr
    assert children.strip() == ""
