"""docs/options.md against the schema, llama-server's own help, and the lists of options of two other servers.

What is said there of a flag of llama-server is what `extra_args` does with it, and what the engine passes on.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from llamad.config.definition import Definition, Table
from llamad.config.expected import choices, kinds_at
from llamad.config.extra_args import _KEY_OF, refused_args
from llamad.config.load import load_definition
from llamad.engine import flags_tables
from llamad.engine.capabilities import _spellings, parse_help
from llamad.errors import ConfigError

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/data"
HELP = (DATA / "engine/help_11669.txt").read_text()

OLDER_SPELLINGS = {
    "--no-mmap": "before --load-mode", "--mlock": "before --load-mode", "--direct-io": "before --load-mode",
    "--draft-max": "now --spec-draft-n-max", "--draft": "now --spec-draft-n-max", "--draft-min": "now --spec-draft-n-min",
}  # fmt: skip
"""What the engine says to older builds only, and no newer build accepts."""


def sections() -> dict[str, list[tuple[str, str]]]:
    """The rows of docs/options.md by the heading of their section: what is asked for, and what it says."""
    found: dict[str, list[tuple[str, str]]] = {}
    for section in (ROOT / "docs/options.md").read_text().split("\n## ")[1:]:
        rows = re.findall(r"^\| (`.*?) \| (.*) \|$", section, re.M)
        found[section.partition("\n")[0]] = rows
    return found


ROWS = sections()


def names(section: str) -> list[str]:
    return [option.strip("`") for option, _ in ROWS[section]]


def options_of(*programs: str) -> list[str]:
    """The options of other servers, as their sources have them."""
    return [word for program in programs for word in (DATA / f"options/{program}.txt").read_text().split()]


def test_the_tables_have_every_option_of_the_other_servers_once() -> None:
    assert names("llama-cpp-python") == options_of("model_settings", "server_settings")
    assert names("The llama.cpp backend of text-generation-inference") == options_of("text_generation_inference")


def key_of(answer: str) -> str | None:
    """The key that an answer gives first; None where there is none."""
    match = re.match(r"`([a-z0-9_.]+)`", answer)
    return match[1] if match else None


@pytest.mark.parametrize("section", list(ROWS))
def test_every_answer_is_a_key_of_the_schema_or_a_reason(section: str) -> None:
    for option, answer in ROWS[section]:
        assert key_of(answer) or re.match(r"none: .{15}", answer), option
        named = re.findall(r"`([a-z0-9_]+(?:\.[a-z0-9_]+)+|aliases|listen|model|allowed_hosts|api_keys_file)`", answer)
        for key in filter(None, {key_of(answer), *named}):
            assert kinds_at(Definition, tuple(key.split("."))), f"{option}: there is no key {key}"


def is_table(name: str) -> bool:
    """Whether a name is a table here: `[cache]` is for answers, and takes no list."""
    return isinstance(Definition.__dataclass_fields__[name].default, Table) if name == "cache" else False


@pytest.mark.parametrize("section", list(ROWS)[:2])
def test_who_writes_the_other_server_s_name_is_told_the_key(section: str, tmp_path: Path) -> None:
    for option, answer in ROWS[section]:
        name, key = option.strip("`"), key_of(answer)
        if key in (None, "server.extra_args", name) or is_table(name):
            continue
        (tmp_path / "m.toml").write_text(f'model = "/m"\n{name} = [1, 2]\n')
        with pytest.raises(ConfigError) as caught:
            load_definition("m", tmp_path)
        table, _, last = str(key).rpartition(".")
        expected = f"it belongs into [{table}]" if last == name else f"did you mean {key}?"
        assert caught.value.fix == expected, name


def help_options() -> list[list[str]]:
    """The spellings of each option of the help, those that are removed included."""
    blocks = map(_spellings, re.split(r"\n(?=-)", f"\n{HELP}"))
    return [spellings for spellings in blocks if spellings and not spellings[0].startswith("-----")]


def test_the_table_has_every_option_of_llama_server_with_all_its_spellings() -> None:
    written = [re.findall(r"`([^`]+)`", option) for option, _ in ROWS["llama-server"]]
    assert written == help_options()


@pytest.mark.parametrize("row", ROWS["llama-server"], ids=lambda row: row[0].split("`")[1])
def test_what_is_said_of_a_flag_is_what_extra_args_does_with_it(row: tuple[str, str]) -> None:
    options, answer = row
    key = key_of(answer)
    for spelling in re.findall(r"`([^`]+)`", options):
        for form in (spelling, spelling.replace("-", "_").replace("__", "--", 1), f"{spelling}=1"):
            if form.startswith("_"):
                continue  # a short one
            faults = list(refused_args([form]))
            if key == "server.extra_args":
                assert not faults or "as one word" in faults[0][1], form
            elif key:
                assert faults == [(0, f"{spelling} is set by a key of its own", f"use {key}")], form
            elif not spelling.startswith(("--no-", "-no-")):  # to switch off what is off is no harm
                assert len(faults) == 1 and f"{spelling} is refused: " in faults[0][1], form


# -- what the engine passes on -----------------------------------------------------------------------------------


def literals() -> set[str]:
    """Every flag that is written in the modules that make arguments."""
    found: set[str] = set()
    for name in ("flags", "flags_tables", "arguments"):
        for node in ast.walk(ast.parse((ROOT / f"llamad/engine/{name}.py").read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("-"):
                found.update(word for word in node.value.split() if re.fullmatch(r"--?[a-zA-Z][\w-]*", word))
    return found


def test_every_flag_that_can_be_passed_is_in_the_help_or_an_older_spelling() -> None:
    flags, _ = parse_help(HELP)
    assert len(literals()) > 150
    assert literals() - flags == set(OLDER_SPELLINGS)


def tables() -> dict[str, dict[str, str]]:
    """Table of the schema -> key -> the flags that say it."""
    found = {
        "placement": flags_tables._PLACEMENT, "rope": flags_tables._ROPE, "server": flags_tables._SERVER,
        "sampling": flags_tables._SAMPLING, "draft": flags_tables._DRAFT, "vision": flags_tables._VISION,
    }  # fmt: skip
    ngram = [("draft", key, flag) for kinds in flags_tables._NGRAM.values() for key, flag in kinds.items()]
    merged = {table: dict(keys) for table, keys in found.items()}
    for table, key, flag in ngram:
        merged[table][key] = f"{merged[table].get(key, '')} {flag}"
    return merged


def test_each_key_is_passed_by_flags_that_extra_args_refuses_in_its_name() -> None:
    for table, keys in tables().items():
        for key, spellings in keys.items():
            for flag in spellings.replace("|", " ").split():
                assert _KEY_OF.get(flag) == f"{table}.{key}", flag


def test_every_key_of_the_sections_for_llama_server_is_passed_on() -> None:
    """Of the tables that exist only for llama-server: a key that no flag says would do nothing."""
    by_hand = {
        "server": {"chat_template_kwargs", "jinja", "metrics", "ui", "cache_ram", "override_kv", "extra_args"},
        "sampling": {"samplers", "dry_sequence_breakers"},
        "draft": {"types", "gpus", "kv_cache"},
        "vision": {"mmproj", "offload", "gpu"},
        "rope": set(),
    }  # fmt: skip
    for table, keys in by_hand.items():
        declared = set(type(getattr(Definition(model="/m"), table)).__dataclass_fields__)
        assert declared == keys | set(tables()[table]), table


@pytest.mark.parametrize(
    ("key", "flag", "ours"),
    [
        ("draft.types", "--spec-type", set()), ("draft.sampling", "--spec-draft-sampling", set()),
        ("server.reasoning", "--reasoning", set()), ("server.reasoning_effort", "--reasoning-effort", set()),
        ("server.reasoning_format", "--reasoning-format", {"auto"}), ("server.pooling", "--pooling", {"auto"}),
        ("rope.scaling", "--rope-scaling", set()), ("placement.lazy_mode", "--lazy-mode", set()),
        ("placement.load_mode", "--load-mode", set()), ("placement.numa", "--numa", {"off"}),
    ],
)  # fmt: skip
def test_a_key_takes_the_words_that_the_help_lists(key: str, flag: str, ours: set[str]) -> None:
    """`ours` are those that are said by not passing the flag; "none" to guess is said so too."""
    path = tuple(key.split("."))
    words = set(choices([*kinds_at(Definition, path), *kinds_at(Definition, (*path, 0))]))
    listed = parse_help(HELP)[1][flag]
    assert words - ours == listed - ({"none"} if key == "draft.types" else set())
