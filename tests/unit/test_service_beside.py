"""From a definition's sections to a plan that counts their files: with a stand-in for llama-server that tells figures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llamad.config.load import load_definition
from llamad.config.loaded import Loaded
from llamad.errors import BadModelError, LlamadError, ModelMissingError
from llamad.planning.plan import Plan
from llamad.service.checks import check_name, require_usable
from llamad.service.facts import FactsReader, extras_of
from llamad.service.planner import Made, PlanMaker
from llamad.units import MIB
from tests.support.gguf_writer import GgmlType, Tensor, string, u32, write_gguf
from tests.support.models import build_hollow
from tests.support.planning import card
from tests.support.projectors import PROJECTORS
from tests.support.shapes import LLAMA32_3B, HollowShape

DATA = Path(__file__).parents[1] / "data" / "engine"
SMALL = replace(LLAMA32_3B, title="Small", layers=4, embd=1024, heads=8, kv_heads=2, ff=2048)


def adapter(path: Path, shape: HollowShape, arch: str = "llama") -> Path:
    tensors = [
        Tensor(f"{t.name}.{part}", dims, GgmlType.F32)
        for t in shape.tensors() if t.name.startswith("blk.") and len(t.dims) == 2
        for part, dims in (("lora_a", (t.dims[0], 16)), ("lora_b", (16, t.dims[1])))
    ]  # fmt: skip
    keys = {"general.architecture": string(arch), "general.type": string("adapter"), "adapter.type": string("lora")}
    write_gguf(path, keys, tensors, None)
    return path


def vector(path: Path) -> Path:
    tensors = [Tensor(f"direction.{n}", (LLAMA32_3B.embd,), GgmlType.F32) for n in range(1, LLAMA32_3B.layers)]
    keys = {"general.architecture": string("controlvector"), "controlvector.layer_count": u32(27)}
    write_gguf(path, keys, tensors, None)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Models and files beside them, without weights."""
    build_hollow(tmp_path / "model.gguf", LLAMA32_3B)
    build_hollow(tmp_path / "small.gguf", SMALL)
    adapter(tmp_path / "lora.gguf", LLAMA32_3B)
    vector(tmp_path / "vector.gguf")
    PROJECTORS["gemma3"].write(tmp_path / "mmproj.gguf")
    yield tmp_path
    for path in tmp_path.glob("*.gguf"):
        path.unlink()


SECTIONS = {
    "vision": '[vision]\nmmproj = "{}/mmproj.gguf"\n',
    "adapters": '[lora.adapters]\n"{}/lora.gguf" = 1.0\n',
    "vectors": '[lora.control_vectors]\n"{}/vector.gguf" = 1.0\n',
    "draft": '[draft]\ntypes = ["draft-simple"]\nmodel = "{}/small.gguf"\n',
}


def loaded(folder: Path, *sections: str, host: str = "") -> Loaded:
    etc = folder / "etc"
    etc.mkdir(exist_ok=True)
    text = "".join(SECTIONS.get(section, section).replace("{}", str(folder)) for section in sections)
    (etc / "m.toml").write_text(f'model = "{folder}/model.gguf"\n{text}')
    (etc / "llamad.toml").write_text(host)
    return load_definition("m", etc)


def server(folder: Path, *tables: dict[str, tuple[int, int, int]], vision_mib: float = 0) -> str:
    """A stand-in: the recorded help and version, and these accounts when it is asked."""
    answer = folder / "answer"
    lines = [{"type": "log", "level": "info", "msg": f"[mtmd] estimated worst-case memory usage of mmproj is {vision_mib:.2f} MiB"}]
    records = [
        {"type": "fit_memory_breakdown", "data": {"unit": "MiB", "rows": [
            {"kind": "host" if name == "Host" else "device", "name": name, "total": 1, "free": 1,
             "model": row[0], "context": row[1], "compute": row[2]} for name, row in table.items()]}}
        for table in tables
    ]  # fmt: skip
    answer.write_text("".join(json.dumps(line) + "\n" for line in [*lines[: int(vision_mib > 0)], *records]))
    path = folder / "llama-server"
    path.write_text(
        f'#!/bin/sh\ncase "$*" in\n--help) cat {DATA}/help_11669.txt;;\n--version) cat {DATA}/version_11669.txt >&2;;\n'
        f'*) echo "$*" >>{folder}/asked; cat {answer}; exec sleep 100;;\nesac\n'
    )
    path.chmod(0o755)
    (folder / "asked").touch()
    (folder / "asked").chmod(0o666)
    return f'[host]\nserver = "{path}"\nquery_s = 60\n'


def made(definition: Loaded, folder: Path, *, computed: bool = False) -> Made:
    maker = PlanMaker(definition, engine=folder, cache=folder / "cache", scratch=folder)
    return maker.make(returning=[card("CUDA0", 8, uuid="GPU-1")], computed=computed)


PARTS = {"vision": "vision_bytes", "adapters": "adapters_bytes", "vectors": "adapters_bytes", "draft": "draft_bytes"}


@pytest.mark.parametrize("section", SECTIONS)
def test_each_file_is_in_the_plan_before_anything_is_asked(folder: Path, section: str) -> None:
    host = server(folder)
    bare = made(loaded(folder, host=host), folder, computed=True).plan
    found = made(loaded(folder, section, host=host), folder, computed=True)
    sizes = {name: getattr(found.plan.devices[0].parts, name) for name in set(PARTS.values())}
    assert {name for name, size in sizes.items() if size} == {PARTS[section]}
    file = {"vision": "mmproj", "adapters": "lora", "vectors": "vector", "draft": "small"}[section]
    if section != "draft":  # its embeddings are on the host
        assert sizes[PARTS[section]] >= (folder / f"{file}.gguf").stat().st_size - 400_000
    assert found.plan.context_tokens < bare.context_tokens or section == "vectors"  # a third of a MiB
    assert any(str(folder / f"{file}.gguf") in word for word in found.args)
    assert (folder / "asked").read_text() == ""


def asked_plan(folder: Path, *sections: str) -> tuple[Plan, Plan]:
    """The computed plan, and the one that a server confirms that agrees in the model and says its own of the rest."""
    host = server(folder)
    context = "[placement]\ncontext = 8192\n"
    computed = made(loaded(folder, context, *sections, host=host), folder, computed=True).plan
    parts, on_host = computed.devices[0].parts, computed.host
    model = {
        "CUDA0": (parts.weights_bytes // MIB, parts.context_bytes // MIB, parts.compute_bytes // MIB),
        "Host": (on_host.weights_bytes // MIB, 0, on_host.compute_bytes // MIB),
    }
    host = server(folder, model, {"CUDA0": (100, 200, 30), "Host": (40, 0, 5)}, vision_mib=1500)
    return computed, made(loaded(folder, context, *sections, host=host), folder).plan


def test_llama_servers_own_figures_replace_those_of_the_draft(folder: Path) -> None:
    computed, found = asked_plan(folder, "draft")
    assert found.source == "asked"
    assert found.devices[0].parts.weights_bytes == computed.devices[0].parts.weights_bytes
    assert found.devices[0].parts.draft_bytes == 333 * MIB - 1  # three figures, each rounded down
    assert found.host.draft_bytes == 47 * MIB - 1
    assert found.devices[0].parts.vision_bytes == 0


def test_the_projectors_figure_is_never_below_what_is_reserved(folder: Path) -> None:
    computed, found = asked_plan(folder, "vision")
    assert 900 * MIB < computed.devices[0].parts.vision_bytes < 1500 * MIB
    assert found.devices[0].parts.vision_bytes == 1500 * MIB
    assert found.devices[0].parts.draft_bytes == 0


def test_another_adapter_is_another_question(folder: Path) -> None:
    computed, found = asked_plan(folder, "adapters")
    assert found.devices[0].parts.adapters_bytes == computed.devices[0].parts.adapters_bytes
    count = len((folder / "asked").read_text().splitlines())
    definition = loaded(folder, "[placement]\ncontext = 8192\n", "adapters", host=server_line(folder))
    made(definition, folder)
    assert len((folder / "asked").read_text().splitlines()) == count  # kept
    adapter(folder / "lora.gguf", replace(LLAMA32_3B, layers=20))
    made(definition, folder)
    assert len((folder / "asked").read_text().splitlines()) == count + 1


def server_line(folder: Path) -> str:
    return (folder / "etc" / "llamad.toml").read_text()


def test_the_fingerprint_is_the_models_own_where_nothing_is_beside_it(folder: Path) -> None:
    facts = FactsReader()(str(folder / "model.gguf"))
    names = {}
    for sections in ((), *((section,) for section in SECTIONS), tuple(SECTIONS)):
        definition = loaded(folder, *merged(sections))
        maker = PlanMaker(definition, engine=folder, cache=folder / "cache")
        names[sections] = maker.fingerprint(facts, extras_of(definition, facts))
    assert names[()] == facts.fingerprint
    assert len(set(names.values())) == len(names)


def merged(sections: tuple[str, ...]) -> tuple[str, ...]:
    return sections


@pytest.mark.parametrize(
    ("section", "key", "swap", "words"),
    [
        ("vision", "vision.mmproj", "lora.gguf", "it is a LoRA adapter, not a vision or audio projector"),
        ("adapters", "lora.adapters: /", "small.gguf", "it is a model, not a LoRA adapter"),
        ("vectors", "lora.control_vectors: /", "mmproj.gguf", "not a control vector"),
        ("draft", "draft.model", "mmproj.gguf", "not a model"),
    ],
)
def test_a_file_of_another_kind_is_told_where_it_is_named(
    folder: Path, section: str, key: str, swap: str, words: str
) -> None:
    names = re.search(r'"{}/(\w+\.gguf)"', SECTIONS[section])
    assert names
    definition = loaded(folder, SECTIONS[section].replace(names[1], swap))
    with pytest.raises(BadModelError) as caught:
        require(definition, folder)
    error = caught.value
    assert error.what.startswith(key) and words in error.why
    assert error.where and error.where.path.endswith("m.toml") and error.where.line > 1
    (problem,) = bad_files(folder)
    assert str(problem) == str(error)


def require(definition: Loaded, folder: Path) -> None:
    require_usable(definition, FactsReader(), folder / "etc", credential_present=False, sandboxed=False)


def test_an_adapter_of_another_model_and_blocks_that_are_not_there(folder: Path) -> None:
    adapter(folder / "lora.gguf", LLAMA32_3B, arch="qwen3")
    with pytest.raises(BadModelError) as caught:
        require(loaded(folder, "adapters"), folder)
    assert 'for a model of the architecture "qwen3", not "llama"' in caught.value.why
    with pytest.raises(BadModelError) as caught:
        require(loaded(folder, '[draft]\ntypes = ["draft-mtp"]\n'), folder)
    assert caught.value.what.startswith("draft.types") and caught.value.where and caught.value.where.line == 3
    (folder / "mmproj.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(BadModelError):
        require(loaded(folder, "vision"), folder)


def test_a_file_that_goes_away_after_the_check(folder: Path) -> None:
    definition = loaded(folder, "vision", host=server(folder))
    (folder / "mmproj.gguf").unlink()
    with pytest.raises(ModelMissingError) as caught:
        made(definition, folder)
    assert caught.value.what.startswith("vision.mmproj")


def test_nothing_is_imported_for_a_model_with_nothing_beside_it(folder: Path) -> None:
    import subprocess
    import sys

    text = (
        "import sys\nfrom pathlib import Path\nfrom llamad.config.load import load_definition\n"
        "from llamad.service.planner import PlanMaker\nfrom tests.support.planning import card\n"
        "folder = Path(sys.argv[1])\n"
        "maker = PlanMaker(load_definition('m', folder / 'etc'), engine=folder, cache=folder / 'cache')\n"
        "maker.make(returning=[card('CUDA0', 8)], computed=True)\n"
        "print(' '.join(sorted(sys.modules)))\n"
    )
    shown: dict[tuple[str, ...], set[str]] = {}
    for sections in ((), ("vision",)):
        loaded(folder, *sections, host=server(folder))
        words = [sys.executable, "-c", text, str(folder)]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
        shown[sections] = set(done.stdout.split())
    lazy = {"llamad.gguf.beside", "llamad.service.beside"} | {
        f"llamad.planning.{name}" for name in ("extras", "beside", "vision", "drafts")
    }
    assert lazy & shown[()] == set()
    assert lazy <= shown["vision",]


def bad_files(folder: Path) -> list[LlamadError]:
    """What `llamad check` says beside that a unit does not see these folders."""
    return [error for error in check_name("m", folder / "etc") if isinstance(error, BadModelError)]


def test_a_sound_definition_has_no_problems(folder: Path) -> None:
    loaded(folder, *SECTIONS)
    assert bad_files(folder) == []
