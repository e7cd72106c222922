"""The published JSON schemas are those of the code, and what the verbs print keeps to them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamad.cli.grammar import make_parser
from llamad.cli.main import main
from llamad.cli.status import scene_json
from llamad.ledger.lease import Lease, Phase
from llamad.planning.plan import NextContext
from llamad.service.overview import overview_with
from llamad.service.scene import Scene
from llamad.service.shapes import DOCUMENTS, schema_of
from llamad.service.status import StatusFile
from llamad.service.story import Story, read_story, story_json
from llamad.supervision.launch import Launch
from tests.support.fakes import a_plan, loaded_of
from tests.support.gguf_fuzz import keys, model
from tests.support.gguf_writer import write_gguf

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("verb", DOCUMENTS)
def test_the_published_schema_is_the_codes(verb: str) -> None:
    published = json.loads((ROOT / "docs" / "schema" / f"{verb}.json").read_text())
    assert published == schema_of(verb), "run docs/make-schemas"


def test_every_verb_that_prints_json_has_one() -> None:
    [verbs] = [action.choices for action in make_parser()._actions if action.dest == "verb"]
    assert isinstance(verbs, dict)
    published = {path.stem for path in (ROOT / "docs" / "schema").glob("*.json")}
    assert {verb for verb, words in verbs.items() if "--json" in words.format_help()} == published
    installed = (ROOT / "debian" / "llamad.install").read_text()
    assert all(f"docs/schema/{verb}.json" in installed for verb in published)


def keeps_to(verb: str, text: str) -> Any:
    DOCUMENTS[verb].model_validate_json(text)
    return json.loads(text)


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    root = tmp_path / "etc"
    root.mkdir()
    write_gguf(root / "m.gguf", keys("llama"), model(), None)
    (root / "bad.gguf").write_text("no model")
    (root / "phi4.toml").write_text(f'model = "{root}/m.gguf"\n[placement]\nallow_cpu = true\n')
    (root / "bad.toml").write_text("modle = 1\n[placement]\nubatch = 'x'\n")
    (root / "llamad.toml").write_text(f'[host]\nmodels = ["{root}"]\n')
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    return root


@pytest.mark.parametrize(
    ("verb", "words", "code"),
    [
        ("status", [], 0), ("list", [], 0), ("explain", ["phi4"], 0), ("show", ["phi4"], 0), ("check", [], 78),
        ("verify", ["m.gguf"], 0), ("verify", ["m.gguf", "bad.gguf", "--full"], 65), ("recommend", ["--gpu", "24GiB"], 0),
        ("recommend", ["--cpu", "--ram", "32GiB", "--ram-bandwidth", "50"], 0), ("plan", ["m.gguf", "--gpu", "CUDA0=8GiB"], 0), ("plan", ["m.gguf", "--gpu", "CUDA0=8GiB", "--gpu", "CUDA1=1GiB"], 0),
    ],
)  # fmt: skip
def test_what_is_printed_keeps_to_it(etc: Path, capsys: pytest.CaptureFixture[str], verb: str, words: list[str], code: int) -> None:
    words = [str(etc / word) if word.endswith(".gguf") else word for word in words]
    assert main(["--config", str(etc), verb, *words, "--json"]) == code
    assert keeps_to(verb, capsys.readouterr().out)


def test_a_served_model_keeps_to_it(tmp_path: Path) -> None:
    plan = a_plan(context_tokens=4096, context_train_tokens=16384, next_context=NextContext(8192, "CUDA0", 5))
    run = tmp_path / "model"
    (run / "phi4").mkdir(parents=True)
    status = StatusFile(run / "phi4", "phi4")
    status.update(state="ready", text="ready: x")
    status.serving(Launch(loaded_of("phi4"), plan, (), {}, "/s", 300, "completion", "11669"))
    status.died("killed", "killed by SIGKILL")
    status.update(restarts=1)
    models = overview_with(["phi4"], {}, run)
    leases = [Lease("phi4", Phase.SETTLED, promised={"GPU-1": 5 << 20}, names={"GPU-1": "CUDA0"})]
    told = keeps_to("status", json.dumps(scene_json(Scene(1.0, models, leases))))
    assert told["models"][0]["last_death"]["cause"] == "killed"
    story = read_story("phi4", models[0], [*leases, Lease("b", Phase.WAITING)], [tmp_path / "none"])
    assert isinstance(story, Story)
    keeps_to("explain", json.dumps(story_json(story)))


def test_a_key_that_is_not_described_is_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="secret"):
        keeps_to("status", json.dumps({"models": [], "leases": [], "secret": os.getpid()}))
