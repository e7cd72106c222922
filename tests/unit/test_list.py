"""`llamad list` over folders of model files, good, odd and hostile, and the cache that makes it quick."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from llamad.cli.main import main
from llamad.gguf.glance import glance
from llamad.service.models import CACHE_NAME, ModelFile, model_files
from llamad.store import cache_folder
from tests.support.gguf_fuzz import keys, model, read_all
from tests.support.gguf_writer import Tensor, string, u32, write_gguf, write_shards


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Good and bad files in a folder and one below it."""
    folder = tmp_path / "models"
    (folder / "org" / "deep").mkdir(parents=True)
    write_gguf(folder / "plain.gguf", keys("llama"), model(), None)
    experts = [(f"ffn_{part}_exps", (256, 512, 8)) for part in ("gate", "up", "down")]
    moe = keys("qwen3moe", expert_count=u32(8), expert_used_count=u32(2))
    write_shards(folder / "org" / "big.gguf", moe, model(*experts), None, count=3)
    projector = {"general.type": string("mmproj"), "general.architecture": string("clip")}
    write_gguf(folder / "mmproj.gguf", projector, model()[:2], None)
    adapter = {"general.type": string("adapter"), "general.architecture": string("llama"),
               "adapter.type": string("lora")}  # fmt: skip
    write_gguf(folder / "lora.gguf", adapter, model()[:2], None)
    write_gguf(folder / "vocabulary.gguf", keys("llama"), list[Tensor](), None)
    (folder / "notes.txt").write_text("no model")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    made = tmp_path / "cache"
    made.mkdir(mode=0o755)
    return made


def test_what_each_would_get_here(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On devices that are there; without a llama-server and without a driver nobody can tell."""
    from llamad.hardware.bandwidth import Bandwidth
    from llamad.hardware.device import Device, HostMemory
    from llamad.models.recommend import Machine
    from llamad.planning.plan import BuildGates
    from llamad.service.fitting import fit_of
    from tests.support.models import SHAPES, build_hollow

    path = str(build_hollow(models / "big.gguf", SHAPES["qwen3-8b"]))
    host, speed = HostMemory(32 << 30, 32 << 30), Bandwidth(1.0, "given")

    def fit(gib: int) -> tuple[int, str]:
        devices = (Device("CUDA0", gib << 30, gib << 30),) if gib else ()
        found = fit_of(path, Machine(devices, host, {}, speed, False), BuildGates(), None)
        return found.context_tokens, found.words

    assert fit(24) == (40960, "CUDA0") and fit(0) == (40960, "CPU")
    assert 4096 <= fit(7)[0] < 40960
    tokens, why = fit(4)
    assert tokens == 0 and "4096 MiB are free" in why
    assert fit_of(str(models / "notes.txt"), Machine((), host, {}, speed, False), BuildGates(), None).context_tokens == 0


def by_name(files: list[ModelFile]) -> dict[str, ModelFile]:
    return {os.path.basename(file.path): file for file in files}


def test_each_file_is_shown_as_what_it_is(models: Path) -> None:
    found = by_name(model_files([str(models)], None))
    assert list(found) == ["lora.gguf", "mmproj.gguf", "big-00001-of-00003.gguf", "plain.gguf", "vocabulary.gguf"]
    kinds = {name: file.glance.kind for name, file in found.items() if file.glance}
    assert kinds == {
        "lora.gguf": "adapter",
        "mmproj.gguf": "mmproj",
        "big-00001-of-00003.gguf": "model",
        "plain.gguf": "model",
        "vocabulary.gguf": "vocabulary",
    }
    plain, big = found["plain.gguf"].glance, found["big-00001-of-00003.gguf"].glance
    assert plain is not None and big is not None
    assert (plain.architecture, plain.quantisation, plain.layers, plain.context_tokens) == ("llama", "Q4_K_M", 3, 32768)
    assert plain.parameters == 256 * 320 + 256 + 3 * (256 * 256 * 2 + 256 * 128 + 512 * 256)
    assert (big.shards, big.experts, big.experts_used) == (3, 8, 2)
    shards = (models / "org").glob("big-*.gguf")
    assert big.file_bytes == sum(path.stat().st_size for path in shards)


def test_what_is_broken_has_its_reason_and_bothers_nobody(models: Path) -> None:
    (models / "cut.gguf").write_bytes((models / "plain.gguf").read_bytes()[:500])
    (models / "page.gguf").write_text("<!DOCTYPE html>")
    (models / "empty.gguf").write_text("")
    (models / "folder.gguf").mkdir()
    os.mkfifo(models / "pipe.gguf")
    (models / "dangling.gguf").symlink_to("/nowhere/x.gguf")
    (models / "org" / "around").symlink_to(models)
    (models / "org" / "big-00002-of-00003.gguf").unlink()
    (models / "orphan-00002-of-00002.gguf").write_bytes(b"GGUF")
    (models / "bad\x1b[31m\nname.gguf").write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 16)
    found = by_name(model_files([str(models)], None))
    problems = {name: file.problem for name, file in found.items() if file.glance is None}
    assert "ends inside its header" in problems["cut.gguf"]
    assert "web page" in problems["page.gguf"] and "empty" in problems["empty.gguf"]
    assert "pipe" in problems["pipe.gguf"] and "does not exist" in problems["dangling.gguf"]
    assert "shard 2 of 3" in problems["big-00001-of-00003.gguf"]
    assert "not the first" in problems["orphan-00002-of-00002.gguf"]
    assert "keys" in problems["bad\x1b[31m\nname.gguf"] or "tensors" in problems["bad\x1b[31m\nname.gguf"]
    assert "folder.gguf" not in found
    assert found["plain.gguf"].glance is not None and len(problems) == 8


def test_damaged_headers_of_every_kind(tmp_path: Path) -> None:
    found = read_all(tmp_path, 100, 5, read=lambda path: model_files([os.path.dirname(path)], None))
    assert not found["failures"], found
    found = read_all(tmp_path, 1500, 6, read=glance)
    assert not found["failures"], found


def printed(capsys: pytest.CaptureFixture[str], config: Path, *words: str) -> str:
    assert main(["--config", str(config), "list", *words]) == 0
    return capsys.readouterr().out


def configure(tmp_path: Path, models: Path) -> Path:
    config = tmp_path / "etc"
    config.mkdir()
    (config / "llamad.toml").write_text(f'[host]\nmodels = ["{models}", "{tmp_path}/none"]\n')
    (config / "phi.toml").write_text(f'model = "{models}/plain.gguf"\n')
    (config / "wrong.toml").write_text("modle = 1\n")
    return config


def test_the_verb_prints_a_line_for_everything(
    tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    (models / "bad\x1b[31m\nname.gguf").write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 16)
    config = configure(tmp_path, models)
    text = printed(capsys, config)
    lines = text.splitlines()
    assert text.isprintable() or set(text) - {"\n"} == {c for c in text if c.isprintable()}
    assert lines[0].startswith("phi ") and lines[1].startswith("wrong ")
    assert lines[3].split() == ["FILE", "ARCHITECTURE", "PARAMETERS", "QUANTISATION", "SIZE", "CONTEXT"]
    plain = next(line for line in lines if "plain.gguf" in line and "Q4_K_M" in line)
    assert "llama" in plain and "32768" in plain and "served as phi" in plain
    assert any("LoRA adapter" in line for line in lines) and any("(mmproj)" in line for line in lines)
    assert any("3 shards" in line and "2 of 8 experts" in line for line in lines)
    seen = json.loads(printed(capsys, config, "--json"))
    assert {row["name"] for row in seen["models"]} == {"phi", "wrong"}
    file = next(file for file in seen["files"] if file["path"].endswith("plain.gguf"))
    assert file["used_by"] == ["phi"] and file["architecture"] == "llama" and file["kind"] == "model"
    assert next(file for file in seen["files"] if "\x1b" in file["path"])["problem"]


def poison(cache: Path, **change: Any) -> None:
    """Rewrite what is kept of every file."""
    path = cache / CACHE_NAME
    raw = json.loads(path.read_text())
    raw["files"] = {key: {**row, **change} if isinstance(row, dict) else row for key, row in raw["files"].items()}
    path.write_text(json.dumps(raw))


def names(models: Path, cache: Path) -> set[str]:
    return {file.glance.name for file in model_files([str(models)], cache) if file.glance}


def test_what_was_read_is_kept_until_the_file_changes(models: Path, cache: Path) -> None:
    first = model_files([str(models)], cache)
    assert stat.S_IMODE((cache / CACHE_NAME).stat().st_mode) == 0o600
    assert model_files([str(models)], cache) == first
    poison(cache, name="kept")
    assert names(models, cache) == {"kept"}  # so nothing was read
    os.utime(models / "org" / "big-00003-of-00003.gguf", ns=(1, 1))  # any shard
    write_gguf(models / "plain.gguf", keys("gemma3"), model(), None)
    found = by_name(model_files([str(models)], cache))
    changed = {name: file.glance.name for name, file in found.items() if file.glance}
    assert changed["plain.gguf"] == changed["big-00001-of-00003.gguf"] == "fuzz" and changed["lora.gguf"] == "kept"
    (models / "plain.gguf").unlink()
    model_files([str(models)], cache)
    assert len(json.loads((cache / CACHE_NAME).read_text())["files"]) == 4, "what is gone is forgotten"


def test_a_cache_that_others_may_write_is_not_read_and_none_is_written_there(models: Path, cache: Path) -> None:
    model_files([str(models)], cache)
    poison(cache, name="kept")
    file = cache / CACHE_NAME
    file.chmod(0o606)
    assert names(models, cache) == {"", "fuzz"}
    file.unlink()
    cache.chmod(0o777)
    model_files([str(models)], cache)
    assert not file.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_root_believes_no_other_user(models: Path, cache: Path) -> None:
    model_files([str(models)], cache)
    poison(cache, name="kept")
    assert names(models, cache) == {"kept"}
    os.chown(cache / CACHE_NAME, 65534, 65534)
    assert names(models, cache) == {"", "fuzz"}
    os.chown(cache, 65534, 65534)
    (cache / CACHE_NAME).unlink()
    model_files([str(models)], cache)
    assert not (cache / CACHE_NAME).exists(), "root leaves nothing in another's folder"


@pytest.mark.parametrize("content", ["", "{", "[]", "5", '{"format":1}', '{"format":2,"files":{}}', '{"format":1,"files":[]}', "[" * 5000])
def test_a_cache_that_is_garbage_is_done_without(models: Path, cache: Path, content: str) -> None:
    (cache / CACHE_NAME).write_text(content)
    assert names(models, cache) == {"", "fuzz"}


@pytest.mark.parametrize(
    "change", [{"layers": "3"}, {"kind": 5}, {"shards": True}, {"more": 1}, {"parameters": 1.5}, {"name": None}]
)
def test_a_row_of_another_form_is_read_anew(models: Path, cache: Path, change: dict[str, Any]) -> None:
    model_files([str(models)], cache)
    poison(cache, architecture="kept", **change)
    found = model_files([str(models)], cache)
    assert all(file.glance and file.glance.architecture != "kept" for file in found)


def test_whose_cache_is_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cache_folder({"HOME": "/home/x"}) == Path("/home/x/.cache/llamad")
    assert cache_folder({"HOME": "/home/x", "XDG_CACHE_HOME": "/c"}) == Path("/c/llamad")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert cache_folder({"HOME": "/root"}) == Path("/var/cache/llamad")


def test_a_pipe_in_place_of_the_cache_holds_nobody_up(models: Path, cache: Path) -> None:
    os.mkfifo(cache / CACHE_NAME)
    assert names(models, cache) == {"", "fuzz"}
