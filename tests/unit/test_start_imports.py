"""What a start loads: nothing that only parses, judges, or answers people. Each of these costs requests time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOT_FOR_A_START = {
    "pydantic", "annotated_types", "tomllib", "tomli_w", "argparse", "watchdog", "psutil", "difflib", "shutil",
    "llamad.config.schema", "llamad.config.load", "llamad.config.text", "llamad.cli.grammar",
    "llamad.planning.refuse", "llamad.supervision.cause", "llamad.supervision.signatures",
    "llamad.supervision.inquest", "llamad.engine.trial",
}  # fmt: skip
NOT_BEFORE_THE_SERVER_RUNS = {
    "asyncio", "logging", "ssl", "llamad.service.daemon", "llamad.front.head", "llamad.supervision.machine",
    "llamad.supervision.causes", "llamad.supervision.step_down",
}  # fmt: skip
START = """
import json, sys
from pathlib import Path
import llamad.cli.main, llamad.cli.serve
from llamad.config.kept import load_all_kept, load_kept
root, cache = map(Path, sys.argv[1:])
loaded = load_kept("tiny", root, cache / "definition.json")
others = load_all_kept(root, cache / "neighbours.json")
before = sorted(sys.modules)
import llamad.service.daemon
print(json.dumps([loaded.digest, [other.name for other in others], before, sorted(sys.modules)]))
"""
SERVE = """
import json, sys
from llamad.cli.main import main
code = main(sys.argv[1:])
print(json.dumps([code, sorted(sys.modules)]))
"""


def start(root: Path, cache: Path) -> tuple[str, list[str], set[str], set[str]]:
    words = [sys.executable, "-c", START, str(root), str(cache)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    digest, names, before, modules = json.loads(done.stdout)
    return digest, names, set(before), set(modules)


def test_a_start_loads_nothing_that_parses_or_judges(tmp_path: Path) -> None:
    (tmp_path / "llamad.toml").write_text("[limits]\ndrain_s = 5\n")
    (tmp_path / "tiny.toml").write_text('model = "/m/tiny.gguf"\n[placement]\ncontext = 4096\n')
    (tmp_path / "other.toml").write_text('model = "/m/other.gguf"\n')
    (tmp_path / "broken.toml").write_text("modle = 1\n")
    cold_digest, cold_names, _, cold_modules = start(tmp_path, tmp_path / "cache")
    assert "pydantic" in cold_modules  # or the test would say nothing
    digest, names, before, modules = start(tmp_path, tmp_path / "cache")
    assert (digest, names) == (cold_digest, cold_names)
    assert names == ["other", "tiny"]
    assert {"llamad.service.start", "llamad.service.daemon"} <= modules
    assert modules & NOT_FOR_A_START == set()
    assert before & NOT_BEFORE_THE_SERVER_RUNS == set()


def serve(*words: str) -> tuple[int, set[str], str]:
    done = subprocess.run(
        [sys.executable, "-c", SERVE, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )  # fmt: skip
    code, modules = json.loads(done.stdout)
    return code, set(modules), done.stderr


def test_serve_with_a_name_is_understood_without_the_parser(tmp_path: Path) -> None:
    code, modules, stderr = serve("serve", "No Such")
    assert code == 78
    assert "argparse" not in modules
    assert stderr.startswith('llamad: "No Such" is no name of a definition\n  why: a name has')
    parsed_code, parsed_modules, parsed_stderr = serve("--config", "/etc/llamad", "serve", "No Such")
    assert "argparse" in parsed_modules
    assert (parsed_code, parsed_stderr) == (code, stderr)
