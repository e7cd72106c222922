"""pydantic's errors in the words of an admin: which key, what is wrong, what to write. Pure."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any, Literal, cast

from pydantic import ValidationError

from llamad.config.definition import Table
from llamad.config.expected import Kind, choices, expectation, kinds_at, number
from llamad.config.keys import Path, dotted, shown
from llamad.config.schema import annotations_of, is_table
from llamad.config.table_rules import KeyProblem
from llamad.frozen import dataclass

_THOUSANDS = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKmM])(?:i?[bB])?\s*")
_BOOLEANS = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false"}
_MISSING = "is missing"
LISTED = 50
_BELONGS_ABOVE = "belongs above the first [section]"
_OTHER_NAMES = {
    "ctx": "context",
    "ctx_size": "context",
    "n_ctx": "context",
    "num_ctx": "context",
    "context_length": "context",
    "context_size": "context",
    "max_model_len": "context",
    "ngl": "gpu_layers",
    "n_gpu_layers": "gpu_layers",
    "num_gpu": "gpu_layers",
    "n_parallel": "parallel",
    "num_parallel": "parallel",
    "slots": "parallel",
    "np": "parallel",
    "flash_attn": "flash_attention",
    "fa": "flash_attention",
    "cache_type_k": "kv_cache",
    "cache_type_v": "kv_cache",
    "type_k": "kv_cache",
    "type_v": "kv_cache",
    "batch_size": "batch",
    "n_batch": "batch",
    "ubatch_size": "ubatch",
    "n_ubatch": "ubatch",
    "n_threads": "threads",
    "device": "gpus",
    "devices": "gpus",
    "rpc_servers": "rpc",
    "rpc_server": "rpc",
    "gpu": "gpus",
    "model_path": "model",
    "path": "model",
    "file": "model",
    "alias": "aliases",
    "model_alias": "aliases",
    "host": "listen",
    "port": "listen",
    "address": "listen",
    "bind": "listen",
    "api_key": "api_keys_file",
    "ssl_certfile": "tls_cert",
    "ssl_cert_file": "tls_cert",
    "ssl_keyfile": "tls_key",
    "ssl_key_file": "tls_key",
    "api_keys": "api_keys_file",
    "env": "environment",
    "args": "extra_args",
    "keep_alive_s": "keep_alive",
    "use_mmap": "load_mode",
    "use_mlock": "load_mode",
    "mlock": "load_mode",
    "offload_kqv": "kv_offload",
    "kv_overrides": "override_kv",
    "n_threads_batch": "threads_batch",
    "rope_scaling_type": "scaling",
    "rope_scaling": "scaling",
    "rope_freq_base": "freq_base",
    "rope_freq_scale": "freq_scale",
    "rope_scale": "scale",
    "last_n_tokens_size": "repeat_last_n",
    "lora_path": "adapters",
    "lora": "adapters",
    "chat_format": "chat_template",
    "clip_model_path": "mmproj",
    "cache": "cache_ram",
    "cache_size": "cache_ram",
    "embedding": "embeddings",
    "disable_ping_events": "sse_ping_s",
    "draft_model": "types",
    "draft_model_num_pred_tokens": "n_max",
    "draft_max": "n_max",
    "draft_min": "n_min",
    "temp": "temperature",
    "typ_p": "typical_p",
    "n_predict": "max_tokens",
    "predict": "max_tokens",
    "model_id": "aliases",
    "model_gguf": "model",
    "hostname": "listen",
    "max_batch_total_tokens": "context",
    "max_physical_batch_total_tokens": "ubatch",
    "max_batch_size": "parallel",
    "cors_allow_origin": "allowed_hosts",
    "payload_limit": "body_bytes",
}


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one key."""

    path: Path
    what: str
    fix: str


def problems_of(error: ValidationError, data: Any, model: type[Table]) -> list[Problem]:
    """One problem for each key that pydantic complained about, however many of its rules the key broke.

    Of a file with hundreds of mistakes the first `LISTED` are told: finding the words takes time, and nobody
    reads more.
    """
    found: dict[Path, Problem] = {}
    items = error.errors(include_url=False, include_input=False)
    for item in items[:LISTED]:
        problem = _problem(item, data, model)
        if problem.path not in found or item["type"] == "value_error":
            found[problem.path] = problem
    if len(items) > LISTED:
        path = _known_part(items[LISTED]["loc"], data)
        what = f"is the first of {len(items) - LISTED} more mistakes, which are not listed"
        found.setdefault(path, Problem(path, what, "correct the others first"))
    return [problem for problem in found.values() if not _is_said_better(problem, found.values())]


def _is_said_better(problem: Problem, others: Iterable[Problem]) -> bool:
    """Whether another problem has the cause: an element of this list, or the misspelt form of this missing key."""
    depth, key = len(problem.path), str(problem.path[-1])
    return any(
        (len(other.path) > depth and other.path[:depth] == problem.path)
        or (problem.what == _MISSING and other.fix in (f"did you mean {key}?", f"{key} {_BELONGS_ABOVE}"))
        for other in others
    )


def _problem(item: Any, data: Any, model: type[Table]) -> Problem:
    path = _known_part(item["loc"], data)
    if item["type"] == "missing":
        return _missing((*path, item["loc"][-1]))
    if item["type"] == "extra_forbidden":
        return _unknown(path, data, model)
    if item["type"] == "value_error":
        return _broken_rule(path, item["ctx"]["error"])
    return _wrong_value(path, _at(data, path), kinds_at(model, path))


def _known_part(loc: Iterable[str | int], data: Any) -> Path:
    """pydantic's `loc` without the names of union members that it mixes in."""
    path: Path = ()
    for part in loc:
        inner = _at(data, path)
        if (isinstance(inner, dict) and part in inner) or (
            isinstance(inner, list) and isinstance(part, int) and part < len(inner)
        ):
            path += (part,)
    return path


def _at(data: Any, path: Path) -> Any:
    for part in path:
        data = data[part]
    return data


def _missing(path: Path) -> Problem:
    example = ' = "/path/to/file.gguf"' if path == ("model",) else ""
    return Problem(path, _MISSING, f"write: {path[-1]}{example}")


def _broken_rule(path: Path, error: Exception) -> Problem:
    if isinstance(error, KeyProblem):
        return Problem((*path, error.key), str(error), error.fix)
    what, _, fix = str(error).partition("; ")
    if not fix and what.endswith(")"):
        what, _, fix = what.removesuffix(")").partition(" (")
    return Problem(path, shown(what, 200), fix or "correct the value")


# -- unknown keys --------------------------------------------------------------------------------------------


def _unknown(path: Path, data: Any, model: type[Table]) -> Problem:
    name, table = str(path[-1]), path[:-1]
    is_section = isinstance(_at(data, path), dict)
    what = "unknown section" if is_section and not table else "unknown key"
    return Problem(
        path, what, _likely(name, table, model, is_section) or _all_keys(table, model, is_section)
    )


def _likely(name: str, table: Path, model: type[Table], is_section: bool) -> str:
    """What an unknown key was likely meant to be: misspelt here, right but elsewhere, or another program's word."""
    normal = name.lower().replace("-", "_")
    here = _keys(model, table, sections=is_section)
    if normal in here:
        return _did_you_mean(normal, table, table, is_section)
    if not is_section:
        elsewhere = _tables_with(normal, model)
        if elsewhere:
            return _belongs(normal, elsewhere[0])
        meant = _OTHER_NAMES.get(normal, "")
        for home in _tables_with(meant, model)[:1]:
            return _did_you_mean(meant, home, table, is_section)
    near = difflib.get_close_matches(normal, here, n=1, cutoff=0.6)
    if near:
        return _did_you_mean(near[0], table, table, is_section)
    for home, key in _all_places(model) if not is_section else []:
        if difflib.get_close_matches(normal, [key], n=1, cutoff=0.8):
            return _did_you_mean(key, home, table, is_section)
    return ""


def _did_you_mean(key: str, home: Path, table: Path, is_section: bool) -> str:
    if is_section and not home:
        return f"did you mean [{key}]?"
    if home == table:
        return f"did you mean {key}?"
    return f"did you mean {dotted((*home, key))}?"


def _belongs(key: str, home: Path) -> str:
    return f"it belongs into [{dotted(home)}]" if home else f"{key} {_BELONGS_ABOVE}"


def _all_keys(table: Path, model: type[Table], is_section: bool) -> str:
    keys = _keys(model, table, sections=is_section and not table)
    if is_section and not table:
        return f"delete it; the sections are {', '.join(f'[{key}]' for key in keys)}"
    return f"delete it; the keys here are {', '.join(keys)}"


def _keys(model: type[Table], table: Path, *, sections: bool) -> list[str]:
    home = _model_at(model, table)
    if home is None:
        return []
    return [
        key for key in annotations_of(home) if _is_section(home, key) == sections or (table and not sections)
    ]


def _is_section(model: type[Table], key: str) -> bool:
    return any(kind.type is dict or is_table(kind.type) for kind in kinds_at(model, (key,)))


def _model_at(model: type[Table], table: Path) -> type[Table] | None:
    if not table:
        return model
    for kind in kinds_at(model, table):
        if is_table(kind.type):
            return cast("type[Table]", kind.type)
    return None


def _all_places(model: type[Table]) -> list[tuple[Path, str]]:
    tables: list[Path] = [(), *((key,) for key in annotations_of(model) if _model_at(model, (key,)))]
    return [(table, key) for table in tables for key in _keys(model, table, sections=False)]


def _tables_with(key: str, model: type[Table]) -> list[Path]:
    return [table for table, known in _all_places(model) if known == key]


# -- wrong values --------------------------------------------------------------------------------------------


def _wrong_value(path: Path, value: Any, kinds: list[Kind]) -> Problem:
    with_bounds = any(_is_a(value, kind.type) for kind in kinds)
    expected = expectation(kinds, with_bounds=with_bounds)
    return Problem(path, f"expected {expected}, got {_toml(value)}", _fix(path, value, kinds))


def _is_a(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return kind is int and isinstance(value, int) and not isinstance(value, bool)


def _fix(path: Path, value: Any, kinds: list[Kind]) -> str:
    types = {kind.type for kind in kinds}
    if isinstance(value, str) and str in types:
        example = re.search(r'"[^"]+"', "".join(kind.words for kind in kinds if kind.type is str))
        return f"write for example {example[0]}" if example else "write another text"
    if isinstance(value, str):
        return _fix_of_text(value, types, choices(kinds))
    if isinstance(value, dict | list):
        return _fix_of_container(path, value, kinds)
    if bool in types and value in (0, 1):
        return f"write {'true' if value else 'false'}"
    numbers = [kind for kind in kinds if _is_a(value, kind.type)]
    if numbers:
        return _fix_of_bound(value, numbers[0])
    if str in types:
        example = re.search(r'"[^"]+"', "".join(kind.words for kind in kinds if kind.type is str))
        return f"write for example {example[0]}" if example else f'write "{_plain(value)}"'
    if tuple in types:
        return f"write [{_toml(value)}]"
    if types & {dict} or any(map(is_table, types)):
        return f"make it a section: [{dotted(path)}]"
    return f"write {expectation(kinds, with_bounds=True)}"


def _fix_of_text(value: str, types: set[Any], words: list[str]) -> str:
    near = difflib.get_close_matches(value.lower(), words, n=1, cutoff=0.5)
    if near and types == {Literal}:
        return f'did you mean "{near[0]}"?'
    if types & {int, float}:
        thousands = _THOUSANDS.fullmatch(value)
        if thousands:
            factor = 1024 if thousands[2] in "kK" else 1024 * 1024
            return f"write {int(float(thousands[1]) * factor)}"
        if re.fullmatch(r"-?\d+(\.\d+)?", value.strip()):
            return f"write {value.strip()} without quotes"
    if bool in types and value.lower() in _BOOLEANS:
        return f"write {_BOOLEANS[value.lower()]} without quotes"
    if near:
        return f'did you mean "{near[0]}"?'
    if tuple in types:
        return f"write [{_toml(value)}]"
    if types == {Literal}:
        return "write one of them"
    return (
        "write true or false"
        if bool in types
        else "write a number"
        if types & {int, float}
        else "write a table"
    )


def _fix_of_container(path: Path, value: Any, kinds: list[Kind]) -> str:
    types, words = {kind.type for kind in kinds}, choices(kinds)
    wants_table = any(map(is_table, types)) or dict in types
    if isinstance(value, list) and tuple in types:
        example = re.search(r"\[[^]]+\]", "".join(kind.words for kind in kinds))
        return f"write for example {example[0]}" if example else "write another list"
    if isinstance(value, list) and value and isinstance(value[0], str) and dict in types:
        return f"write {{ {_toml(value[0])} = ... }}"
    if isinstance(value, list) and wants_table:
        return f"write [{dotted(path)}] with single brackets"
    if isinstance(value, list) and len(value) == 1:
        return f"write {_toml(value[0])} without brackets"
    if tuple in types:
        return "write a list: [...]"
    return f'write one value, for example "{words[0]}"' if words else "write one value"


def _fix_of_bound(value: float, kind: Kind) -> str:
    if kind.lowest is not None and value <= kind.lowest:
        low = number(kind.lowest)
        return f"write more than {low}" if kind.open_lowest else f"write {low} or more"
    return f"write {number(kind.highest)} or less" if kind.highest is not None else "write a number"


def _plain(value: Any) -> str:
    return shown(str(value).lower() if isinstance(value, bool) else str(value))


def _toml(value: Any) -> str:
    """A value as TOML writes it, cut to a length that fits an error message."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, float):
        return str(value)
    if isinstance(value, float):
        return str(value)
    return shown(json.dumps(value, ensure_ascii=False, default=str))
