"""The text of a new definition: what was asked for, with a word on each value and on what may be set besides. Pure."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

from llamad.config.definition import Definition, Table
from llamad.config.keys import Path, dotted, shown
from llamad.errors import UsageError

Values = Mapping[Path, object]

_OFFERED: tuple[tuple[Path, str, str], ...] = (
    (("aliases",), '["gpt-4o-mini"]', "other names that requests may ask for"),
    (("api_keys_file",), '"/etc/llamad/{name}.keys"', "requests need one of these keys, one a line"),
    (("start",), '"always"', 'behind the router: loaded at once and kept; default "on-demand"'),
    (("placement", "context"), '"auto"', "as much as fits, at most what it was trained for; or a number of tokens"),
    (("placement", "context_min"), "4096", "never less than this"),
    (("placement", "parallel"), '"auto"', "requests at the same time"),
    (("placement", "kv_cache"), '"f16"', '"q8_0" takes half the memory, "auto" only where that is needed'),
    (("placement", "memory"), '"auto"', 'the most of each device: "10GiB", "60%"'),
    (("placement", "gpus"), '"auto"', 'or for example [0, 1]'),
    (("placement", "allow_cpu"), "true", "may run on the CPU, many times slower"),
    (("idle", "keep_alive"), '"30min"', "behind the router: unloaded when idle for so long"),
)
"""Keys that most admins ask for, each with a value to write and what it is for."""
_COLUMN = 24


def parse_assignment(text: str) -> tuple[Path, object]:
    """`placement.context=8192` as a key and its value. A key that is in one table only, or is one of `[placement]`,
    needs no table.

    The value is TOML; what is none is a text. Raises UsageError.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f'"{shown(text)}" sets nothing', fix="write KEY=VALUE, for example context=8192")
    return _full_key(key.strip()), _value(value.strip())


def _full_key(key: str) -> Path:
    """The path of a key. A key of a table without keys of its own (environment) may be anything."""
    parts = tuple(key.split("."))
    if len(parts) > 1:
        table, *rest = parts
        return (table, ".".join(rest))
    homes = [path for path in _all_keys() if path[-1] == key]
    if not homes:
        raise UsageError(f'"{shown(key)}" is no key of a definition', fix=_nearest(key))
    for likely in ((key,), ("placement", key)):
        if likely in homes:
            return likely
    if len(homes) > 1:
        raise UsageError(f'"{key}" is in several tables', fix=f"write {' or '.join(map(dotted, homes))}")
    return homes[0]


def _nearest(key: str) -> str:
    import difflib  # only for what is refused

    names = {str(path[-1]): dotted(path) for path in _all_keys()}
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    return f"did you mean {names[near[0]]}?" if near else "man llamad.toml has all keys"


def _all_keys() -> list[Path]:
    found: list[Path] = []
    for field in fields(Definition):
        if isinstance(field.default, Table):
            found += [(field.name, inner.name) for inner in fields(type(field.default))]
        else:
            found.append((field.name,))
    return found


def _value(text: str) -> object:
    if "\n" in text:
        return text
    try:
        return tomllib.loads(f"v = {text}\n")["v"]
    except ValueError:  # TOMLDecodeError is one, and so is a number of 5000 digits
        return text


def definition_text(name: str, values: Values, chosen: Mapping[Path, str] | None = None) -> str:
    """The text of a new definition with these values (`model` among them).

    `chosen` is what the planner made of a key now, in words. Keys that are often wanted and are not set stand
    there as comments.
    """
    chosen = chosen or {}
    lines = [
        f"# {name}: served by `llamad enable {name}`. Every key: man llamad.toml. All values: llamad show {name}.",
        *_section(name, (), values, chosen),
    ]
    tables = [field.name for field in fields(Definition) if _is_table(field.name)]
    for table in dict.fromkeys((*tables, *(str(path[0]) for path in values if len(path) > 1))):
        inside = list(_section(name, (table,), values, chosen))
        if inside:
            is_set = any(path[0] == table for path in values if len(path) > 1)
            head = f"[{_key(table)}]" if is_set or table == "placement" else f"# [{_key(table)}]"
            lines += ["", head, *inside]
    return "\n".join(lines) + "\n"


def _is_table(name: str) -> bool:
    return name == "environment" or any(path[0] == name for path in _all_keys() if len(path) > 1)


def _section(name: str, table: Path, values: Values, chosen: Mapping[Path, str]) -> Iterator[str]:
    """The lines of one table, in the order of the schema; what it does not know comes last."""
    offers = {path: (example.format(name=name), about) for path, example, about in _OFFERED}
    known = [path for path in _all_keys() if path[:-1] == table]
    for path in dict.fromkeys((*known, *(path for path in values if path[:-1] == table))):
        example, about = offers.get(path, ("", ""))
        words = "; ".join(filter(None, (chosen.get(path, ""), about)))
        if path in values:
            yield _line("", path, to_toml(values[path]), words)
        elif path == ("placement", "context"):
            yield _line("", path, example, words)
        elif example:
            yield _line("# ", path, example, words)


def _line(mark: str, path: Path, value: str, words: str) -> str:
    text = f"{mark}{_key(str(path[-1]))} = {value}"
    return f"{text:<{_COLUMN}}  # {words}" if words else text


def _key(key: str) -> str:
    plain = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if plain else to_toml(key)


def to_toml(value: object) -> str:
    """A value as TOML writes it. JSON's escapes are TOML's too, but for DEL."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(str(key))} = {to_toml(one)}" for key, one in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(to_toml, value))}]"
    return json.dumps(value, ensure_ascii=False, default=str).replace("\x7f", "\\u007f")


def choices_of(plan: Mapping[str, object]) -> dict[Path, str]:
    """What a plan (as `llamad plan --json` prints it) chose for the keys that a new definition shows."""
    reasons = [str(one).partition(": ") for one in _list(plan.get("reasons"))]
    by_topic = {topic: text for topic, _, text in reasons}
    devices = [str(one.get("name")) for one in _list(plan.get("devices")) if isinstance(one, Mapping)]
    found = {
        ("placement", "context"): f"now {plan.get('context_tokens')}",
        ("placement", "parallel"): f"now {plan.get('slots')}",
        ("placement", "gpus"): f"now {', '.join(devices)}" if devices else "",
    }
    why = by_topic.get("context", "")
    if why and len(why) <= 60:
        found["placement", "context"] += f" ({why})"
    return {path: shown(words, 120) for path, words in found.items() if words}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
