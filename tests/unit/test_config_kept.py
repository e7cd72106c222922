"""Kept definitions are the same as judged ones, and are judged anew when anything that they depend on changes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamad import __version__
from llamad.config.kept import load_all_kept, load_kept, own_stamp
from llamad.config.load import judge, load_all, load_definition
from llamad.config.loaded import Loaded
from llamad.errors import ConfigError, LlamadError
from llamad.store import LIMIT_BYTES, load_cache, store_cache

MODEL = 'model = "/srv/models/phi-4.gguf"\n'
FULL = MODEL + """\
aliases = ["gpt", "a \\u00e4 \\"b\\""]
listen = "[::1]:8081"
listen_mode = "0660"
allowed_hosts = ["example.org"]
[placement]
context = 8192
gpus = [0, "GPU-1"]
tensor_split = [1, 2.5, 0.1]
flash_attention = true
vram_margin = "512MiB"
[limits]
drain_s = 5
wait_s = 0.1
[server]
extra_args = ["--cors-origins", "256"]
[environment]
GGML_B = "1"
GGML_A = ""
[idle]
keep_alive = "1h"
"""


def write(root: Path, **files: str) -> Path:
    """`phi4` is phi4.toml, `phi4__10` the drop-in 10.toml of it."""
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        stem, _, drop_in = name.partition("__")
        folder = root / f"{stem}.toml.d" if drop_in else root
        folder.mkdir(exist_ok=True)
        (folder / f"{drop_in or stem}.toml").write_text(text)
    return root


class Judged:
    """Loads, and remembers what had to be judged for it."""

    def __init__(self, stamp: str | None = None) -> None:
        self._names: list[str] = []
        self.stamp = stamp

    def one(self, root: Path, cache: Path | None, name: str = "phi4") -> Loaded:
        return load_kept(name, root, cache, judge=self._judge, stamp=self.stamp)

    def all(self, root: Path, cache: Path | None) -> list[Loaded]:
        return load_all_kept(root, cache, judge=self._judge, stamp=self.stamp)

    def taken(self) -> list[str]:
        """What was judged since the last time."""
        names, self._names = self._names, []
        return names

    def _judge(self, name: str, file: Path, root: Path, contents: Mapping[Path, bytes]) -> Loaded:
        self._names.append(name)
        return judge(name, file, root, contents)


def types_in(value: object) -> Any:
    """The types of a value and of all that is in it: 1 == 1.0, and a tuple must not become a list unseen."""
    if is_dataclass(value):
        return type(value), [types_in(getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, dict):
        return type(value), {types_in(key): types_in(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return type(value), tuple(map(types_in, value))
    return type(value)


def assert_same(root: Path, cache: Path) -> Loaded:
    judged = Judged()
    direct = load_definition("phi4", root)
    for expected in (["phi4"], []):
        loaded = judged.one(root, cache)
        assert judged.taken() == expected
        assert loaded == direct
        assert list(loaded.origins) == list(direct.origins)
        assert list(loaded.definition.environment) == list(direct.definition.environment)
        assert types_in(loaded.definition) == types_in(direct.definition)
        assert types_in(loaded.host) == types_in(direct.host)
    return loaded


def test_a_kept_definition_is_the_judged_one(tmp_path: Path) -> None:
    root = write(
        tmp_path / "etc",
        llamad='[host]\nmodels = ["/a", "/b"]\nquery_s = 2\n[placement]\nparallel = 2\n[environment]\nGGML_C = "3"\n',
        phi4=FULL,
        phi4__10="[limits]\nwait_s = 7\n[environment]\nGGML_A = 'x'\n",
        phi4__20='aliases = ["other"]\n',
    )
    warm = assert_same(root, tmp_path / "kept.json")
    assert warm.where("limits", "wait_s").path.endswith("10.toml")
    assert warm.files[0] == root / "llamad.toml" and len(warm.files) == 4


NUMBERS = st.floats(min_value=0, max_value=10_000_000, allow_subnormal=True)
TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
TABLES: dict[str, dict[str, st.SearchStrategy[object]]] = {
    "": {
        "aliases": st.lists(TEXTS, max_size=3),
        "allowed_hosts": st.lists(TEXTS, max_size=2),
        "listen": st.sampled_from(["127.0.0.1:8081", "unix:a.sock", "[::]:1"]),
        "insecure": st.booleans(),
    },
    "placement": {
        "context": st.one_of(st.just("auto"), st.integers(4096, 2**31 - 1)),
        "flash_attention": st.one_of(st.just("auto"), st.booleans()),
        "tensor_split": st.lists(st.one_of(st.integers(1, 9), NUMBERS.filter(bool)), max_size=3),
        "gpus": st.one_of(st.just("auto"), st.lists(st.one_of(st.integers(0, 9), TEXTS), max_size=3)),
        "memory": st.sampled_from(["auto", "10GiB", "60%"]),
    },
    "limits": {"wait_s": st.one_of(st.integers(0, 99), NUMBERS), "restarts": st.integers(0, 9)},
    "server": {"ui": st.booleans(), "chat_template": TEXTS, "extra_args": st.lists(st.just("--x"), max_size=2)},
    "environment": {f"GGML_{letter}": TEXTS for letter in "ABC"},
    "idle": {"keep_alive": st.sampled_from(["1h", "60"])},
}
DEFAULTS = {name: keys for name, keys in TABLES.items() if name}


def some(tables: dict[str, dict[str, st.SearchStrategy[object]]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {}, optional={name: st.fixed_dictionaries({}, optional=keys) for name, keys in tables.items()}
    )


def toml(tables: dict[str, dict[str, object]]) -> str:
    text = ""
    for name in sorted(tables):
        text += f"[{name}]\n" if name else ""
        text += "".join(f"{key} = {toml_value(value)}\n" for key, value in tables[name].items())
    return text


def toml_value(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, float):
        assert math.isfinite(value)
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


@settings(max_examples=100, deadline=None)
@given(host=some(DEFAULTS), own=some(TABLES), dropped=some(TABLES))
def test_any_definition_is_kept_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, host: Any, own: Any, dropped: Any
) -> None:
    root = tmp_path_factory.mktemp("etc")
    write(root, llamad=toml(host), phi4=MODEL + toml(own), phi4__10=toml(dropped))
    assert_same(root, root / "kept.json")


@pytest.mark.parametrize("name", ["llamad", "phi4", "phi4__10", "phi4__30"])
def test_a_change_of_any_file_is_seen(tmp_path: Path, name: str) -> None:
    root = write(tmp_path / "etc", llamad="[idle]\nkeep_alive = '1h'\n", phi4=MODEL, phi4__10="[limits]\n")
    cache, judged = tmp_path / "kept.json", Judged()
    judged.one(root, cache)
    write(root, **{name: ("" if name == "llamad" else MODEL) + "[limits]\nwait_s = 9\n"})
    judged.taken()
    assert judged.one(root, cache) == load_definition("phi4", root)
    assert judged.taken() == ["phi4"]
    assert judged.one(root, cache).definition.limits.wait_s == 9
    assert judged.taken() == []


def test_another_llamad_judges_anew(tmp_path: Path) -> None:
    root, cache = write(tmp_path / "etc", phi4=MODEL), tmp_path / "kept.json"
    for stamp in ("one", "two", "one"):
        judged = Judged(stamp)
        judged.one(root, cache)
        judged.all(root, cache)
        assert judged.taken() == ["phi4"]
        judged.one(root, cache)
        assert judged.taken() == []


def test_a_llamad_is_told_by_its_sources(tmp_path: Path) -> None:
    def stamp() -> str:
        return own_stamp.__wrapped__(sources)

    sources = tmp_path / "config"
    sources.mkdir()
    assert stamp() == ""
    for name in ("units.py", "errors.py", "config/schema.py"):
        (tmp_path / name).write_text("1")
    seen = {stamp()}
    for name in ("units.py", "errors.py", "config/schema.py"):
        os.utime(tmp_path / name, ns=(0, 0))
        seen.add(stamp())
        (tmp_path / name).write_text("22")
        os.utime(tmp_path / name, ns=(0, 0))
        seen.add(stamp())
    (sources / "rules.py").touch()
    seen.add(stamp())
    assert len(seen) == 8
    assert __version__ in own_stamp() and "schema.py" in own_stamp()


def test_a_llamad_that_cannot_tell_itself_keeps_nothing(tmp_path: Path) -> None:
    root, cache, judged = write(tmp_path / "etc", phi4=MODEL), tmp_path / "kept.json", Judged("")
    for _ in range(2):
        assert judged.one(root, cache) == load_definition("phi4", root)
        assert judged.all(root, cache) == load_all(root)
    assert judged.taken() == ["phi4"] * 4
    assert not cache.exists()


@pytest.mark.parametrize(
    "garbage", [b"", b"{", b"null", b"[1]", b'{"phi4": 1}', b'{"phi4": ["x", "null"]}', b"\xff" * 99, b"[" * 99_999]
)
def test_garbage_is_ignored_and_replaced(tmp_path: Path, garbage: bytes) -> None:
    root, cache, judged = write(tmp_path / "etc", phi4=MODEL), tmp_path / "kept.json", Judged()
    cache.write_bytes(garbage)
    assert judged.one(root, cache) == load_definition("phi4", root)
    assert judged.taken() == ["phi4"]
    assert judged.all(root, cache) == load_all(root)
    assert judged.taken() == []


def test_a_damaged_entry_is_ignored(tmp_path: Path) -> None:
    root, cache, judged = write(tmp_path / "etc", phi4=FULL), tmp_path / "kept.json", Judged()
    judged.one(root, cache)
    text = cache.read_text()
    assert "8192" in text
    cache.write_text(text.replace("8192", "8193"))
    assert judged.one(root, cache).definition.placement.context == 8192
    assert judged.taken() == ["phi4"] * 2


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    root, cache = write(tmp_path / "etc", phi4=MODEL), tmp_path / "new" / "kept.json"
    load_kept("phi4", root, cache)
    assert cache.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in cache.parent.iterdir()] == ["kept.json"]


def test_what_would_not_be_read_is_not_written(tmp_path: Path) -> None:
    assert not store_cache(tmp_path / "kept.json", "x" * LIMIT_BYTES)
    assert store_cache(tmp_path / "kept.json", "x" * (LIMIT_BYTES - 2))
    assert load_cache(tmp_path / "kept.json") == "x" * (LIMIT_BYTES - 2)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    root = write(tmp_path / "etc", phi4=MODEL)
    for cache in (None, tmp_path / "etc" / "phi4.toml" / "kept.json", tmp_path):
        assert load_kept("phi4", root, cache) == load_definition("phi4", root)
        assert load_all_kept(root, cache) == load_all(root)


@pytest.mark.parametrize("name", ["phi4", "gone", "Phi4", "llamad"])
def test_refusals_are_the_same_and_never_kept(tmp_path: Path, name: str) -> None:
    root, cache = write(tmp_path / "etc", phi4="modl = 1\n[limits]\nwait_s = -1\n"), tmp_path / "kept.json"
    judged = Judged()
    for _ in range(2):
        with pytest.raises(LlamadError) as direct:
            load_definition(name, root)
        with pytest.raises(LlamadError) as refusal:
            judged.one(root, cache, name)
        assert type(refusal.value) is type(direct.value)
        assert str(refusal.value) == str(direct.value)
        assert judged.taken() == (["phi4"] if name == "phi4" else [])
    assert not cache.exists()


def test_a_definition_that_became_wrong_is_refused(tmp_path: Path) -> None:
    root, cache = write(tmp_path / "etc", phi4=MODEL), tmp_path / "kept.json"
    load_kept("phi4", root, cache)
    load_all_kept(root, cache)
    write(root, phi4="modl = 1\n")
    assert load_all_kept(root, cache) == []
    for _ in range(2):  # also from a file that has it as refused
        with pytest.raises(ConfigError, match="did you mean model"):
            load_kept("phi4", root, cache)


def test_neighbours_are_kept_one_by_one(tmp_path: Path) -> None:
    root = write(tmp_path / "etc", a=MODEL, b=FULL, c="wrong = 1\n", d=MODEL, b__1="[limits]\nwait_s = 3\n")
    (root / "e.toml").mkdir()
    cache, judged = tmp_path / "kept.json", Judged()
    assert judged.all(root, cache) == load_all(root)
    assert judged.taken() == ["a", "b", "c", "d"]
    assert judged.all(root, cache) == load_all(root)
    assert judged.taken() == []
    write(root, b__1="[limits]\nwait_s = 4\n", c=MODEL)
    (root / "d.toml").unlink()
    assert judged.all(root, cache) == load_all(root)
    assert judged.taken() == ["b", "c"]
    assert set(json.loads(cache.read_text())) == {"a", "b", "c"}


def test_an_entry_is_of_one_name_and_folder(tmp_path: Path) -> None:
    """The same content elsewhere has other places."""
    first, second = write(tmp_path / "1", phi4=MODEL, b=MODEL), write(tmp_path / "2", phi4=MODEL)
    cache = tmp_path / "kept.json"
    load_kept("phi4", first, cache)
    assert load_kept("phi4", second, cache) == load_definition("phi4", second)
    load_all_kept(first, cache)
    entries = json.loads(cache.read_text())
    cache.write_text(json.dumps({"phi4": entries["b"], "b": entries["phi4"]}))
    assert load_all_kept(first, cache) == load_all(first)
