"""Facts of model files that are kept from one process to the next, and whatever somebody did to the file meanwhile."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamad.config.definition import Definition, Lora
from llamad.errors import AccessError, BadModelError, ModelMissingError
from llamad.gguf import read
from llamad.gguf.facts import ModelFacts
from llamad.gguf.read import read_facts
from llamad.service.facts import FactsReader, are_replaced, facts_of, files_key, raw_of
from llamad.store import own_folder
from llamad.supervision.launch import Launch
from tests.support import zoo_dense, zoo_mixed
from tests.support.fakes import a_plan, loaded_of
from tests.support.models import build_hollow, build_tiny

ZOO = {**zoo_dense.ZOO, **zoo_mixed.ZOO}
SOME = sorted(ZOO)[::9]


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files whose headers were read."""
    found: list[str] = []

    def counted(path: str) -> ModelFacts:
        found.append(path)
        return read_facts(path)

    monkeypatch.setattr(read, "read_facts", counted)
    yield found


@pytest.mark.parametrize("name", SOME)
def test_what_is_kept_is_what_was_read(tmp_path: Path, name: str) -> None:
    facts = read_facts(str(build_hollow(tmp_path / "m.gguf", ZOO[name])))  # type: ignore[arg-type]
    assert facts_of(json.loads(json.dumps(raw_of(facts)))) == facts


def test_another_process_reads_no_header(tmp_path: Path, readings: list[str]) -> None:
    model = str(build_tiny(tmp_path / "m.gguf"))
    first = FactsReader(tmp_path / "facts.json")(model)
    assert FactsReader(tmp_path / "facts.json")(model) == first
    assert readings == [model]


@pytest.mark.parametrize("shards", [1, 3])
def test_a_file_that_changed_is_read_again(tmp_path: Path, readings: list[str], shards: int) -> None:
    """Also where only a later shard changed, and where its time of modification was set back."""
    model = str(build_tiny(tmp_path / "m.gguf", shards=shards))
    cache = tmp_path / "facts.json"
    FactsReader(cache)(model)
    touched = sorted(tmp_path.glob("*.gguf"))[-1]
    status = touched.stat()
    touched.write_bytes(touched.read_bytes())
    os.utime(touched, ns=(status.st_atime_ns, status.st_mtime_ns))
    FactsReader(cache)(model)
    assert len(readings) == 2


def test_a_file_that_is_gone_or_not_ours_to_read_is_no_longer_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_tiny(tmp_path / "m.gguf")
    cache = tmp_path / "facts.json"
    FactsReader(cache)(str(model))
    if os.geteuid() != 0:
        model.chmod(0)
        with pytest.raises(AccessError):
            FactsReader(cache)(str(model))
    model.unlink()
    with pytest.raises(ModelMissingError):
        FactsReader(cache)(str(model))


def test_what_cannot_be_used_is_never_kept(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF and no more")
    for _ in range(2):
        with pytest.raises(BadModelError):
            FactsReader(tmp_path / "facts.json")(str(model))
    assert not (tmp_path / "facts.json").exists()


def test_the_last_models_are_kept(tmp_path: Path, readings: list[str]) -> None:
    cache = tmp_path / "facts.json"
    models = [str(build_tiny(tmp_path / f"m{number}.gguf")) for number in range(10)]
    for model in models:
        FactsReader(cache)(model)
    del readings[:]
    for model in reversed(models):
        FactsReader(cache)(model)
    assert set(readings) == {models[0], models[1]}


def test_a_cache_that_others_may_write_is_not_believed(tmp_path: Path, readings: list[str]) -> None:
    model, cache = str(build_tiny(tmp_path / "m.gguf")), tmp_path / "facts.json"
    FactsReader(cache)(model)
    cache.chmod(0o622)
    FactsReader(cache)(model)
    assert len(readings) == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    made: dict[str, object] = json.loads(
        json.dumps(raw_of(read_facts(str(build_tiny(tmp_path_factory.mktemp("m") / "m.gguf")))))
    )
    return made


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_garbage_is_no_facts(raw: dict[str, object], data: st.DataObject) -> None:
    """Any value of the wrong type makes the whole entry worthless; it is never an exception."""
    key = data.draw(st.sampled_from(sorted(raw)))
    value = data.draw(JSON)
    found = facts_of({**raw, key: value})
    assert found is None or type(value) is type(raw[key])
    del found
    assert facts_of({name: one for name, one in raw.items() if name != key}) is None


@pytest.mark.parametrize("text", ["", "null", "[]", '{"version": "0"}', "{", "\x00" * 100])
def test_a_cache_file_of_garbage_is_replaced(tmp_path: Path, readings: list[str], text: str) -> None:
    model, cache = str(build_tiny(tmp_path / "m.gguf")), tmp_path / "facts.json"
    cache.write_text(text)
    cache.chmod(0o600)
    for _ in range(2):
        FactsReader(cache)(model)
    assert len(readings) == 1


def test_a_folder_of_ones_own_is_nobody_elses(tmp_path: Path) -> None:
    environ = {"CACHE_DIRECTORY": str(tmp_path)}
    tmp_path.chmod(0o700)
    made = own_folder(environ, ".plan", "phi4")
    assert made == tmp_path / ".plan/phi4"
    assert made.stat().st_mode & 0o777 == 0o700
    assert own_folder(environ, ".plan", "phi4") == made
    (tmp_path / ".plan").chmod(0o777)
    assert own_folder(environ, ".plan", "phi4") is None
    (tmp_path / ".plan").chmod(0o700)
    (tmp_path / ".plan/other").symlink_to(tmp_path)
    assert own_folder(environ, ".plan", "other") is None
    (tmp_path / ".plan/file").write_text("")
    assert own_folder(environ, ".plan", "file") is None
    tmp_path.chmod(0o777)
    assert own_folder(environ, ".plan", "phi4") is None


def test_a_replaced_file_is_told_from_one_that_was_only_renamed_or_given_a_mode(tmp_path: Path) -> None:
    model, adapter = build_tiny(tmp_path / "m.gguf"), tmp_path / "lora.gguf"
    adapter.write_text("one")
    definition = Definition(model=str(model), lora=Lora(adapters={str(adapter): 1.0}))
    loaded, read = replace(loaded_of(), definition=definition), FactsReader()
    launch = Launch(loaded, a_plan(), (), {}, "/s", 1, "completion", "1", files_key=files_key(definition, read(str(model))))
    assert not are_replaced(launch, loaded, read)
    model.chmod(0o600)
    os.link(model, tmp_path / "kept.gguf")
    assert not are_replaced(launch, loaded, read)
    assert not are_replaced(None, loaded, read) and not are_replaced(replace(launch, files_key=""), loaded, read)
    for file in (model, adapter):
        content, times = file.read_bytes(), file.stat()
        copy = file.with_name("copy")
        copy.write_bytes(content)
        os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
        copy.replace(file)
        assert are_replaced(launch, loaded, read), "another inode"
        launch = replace(launch, files_key=files_key(definition, read(str(model))))
        os.utime(file, ns=(0, 0))
        assert are_replaced(launch, loaded, read), "another time"
        launch = replace(launch, files_key=files_key(definition, read(str(model))))
    times = model.stat()
    other = build_tiny(tmp_path / "other.gguf", ctx_train_tokens=512).read_bytes()
    with model.open("r+b") as stream:
        stream.write(other[: times.st_size].ljust(times.st_size, b"\0"))
    os.utime(model, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert model.stat().st_ino == times.st_ino and are_replaced(launch, loaded, read), "another header"
