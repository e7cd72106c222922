"""What the installed llama-server offers: read from `--help` and `--version`, cached until a file of it changes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llamad.engine.build import Capabilities
from llamad.engine.files import identity
from llamad.engine.find import find_server
from llamad.errors import ConfigError, DeviceError
from llamad.planning.plan import BuildGates
from llamad.store import load_cache, store_cache

if TYPE_CHECKING:
    from llamad.engine.query import QueryResult

_FORMAT = 2


def read_capabilities(
    server: str, env: Mapping[str, str], cache_file: Path | None = None, deadline_s: float = 5.0
) -> Capabilities:
    """Version, flags and buffer behaviour of `server`, a path or a name that is looked up in `env`'s PATH.

    About 3 ms when cached, else one run of `--help` beside one of `--version`, each with the deadline. Blocking.
    A cache that is garbage, of another build or not writable is done without.

    Raises ConfigError if there is no such program or it cannot run, AccessError if it may not be executed,
    DeviceError if it does not answer in time (a driver that hangs does that; it may answer later).
    """
    path = find_server(server, env.get("PATH", os.defpath))
    key = identity(path, env)
    cached = _load(cache_file, key) if cache_file else None
    if cached is not None:
        return replace(cached, path=path)
    help_, version = _ask(path, env, deadline_s)
    found = parse_capabilities(path, help_.stdout, f"{version.stderr}\n{version.stdout}", key)
    if cache_file:
        _store(cache_file, found)
    return found


def _ask(path: str, env: Mapping[str, str], deadline_s: float) -> tuple[QueryResult, QueryResult]:
    # Only here, and the cache nearly always answers.
    from concurrent.futures import ThreadPoolExecutor

    from llamad.engine.query import run_query

    with ThreadPoolExecutor(2) as pool:
        help_ = pool.submit(run_query, [path, "--help"], env, deadline_s)
        version = pool.submit(run_query, [path, "--version"], env, deadline_s)
        return (
            _checked(path, "--help", help_.result(), deadline_s),
            _checked(path, "--version", version.result(), deadline_s),
        )


def _checked(path: str, flag: str, result: QueryResult, deadline_s: float) -> QueryResult:
    if result.timed_out:
        raise DeviceError(
            f"{path} {flag} did not answer within {deadline_s:g} s",
            why="a GPU driver or a slow disk may hold it up",
            fix=f"run it by hand; raise query_s in [host] if it only is slow: {path} {flag}",
        )
    if result.returncode != 0:
        raise ConfigError(
            f"{path} {flag} failed",
            why=result.first_error or _ended(result.returncode),
            fix="apt install --reinstall llama.cpp-tools, or set [host] server in /etc/llamad/llamad.toml",
        )
    return result


def _ended(returncode: int) -> str:
    return f"killed by signal {-returncode}" if returncode < 0 else f"exit status {returncode}"


_VERSION = re.compile(r"^version: (.+)$", re.MULTILINE)
_BUILD = re.compile(r"\bbuild (\d+)|^(\d+) \(")


def parse_capabilities(path: str, help_text: str, version_text: str, key: str) -> Capabilities:
    """Capabilities from the two outputs. Raises ConfigError if the help is none of llama-server's."""
    flags, values = parse_help(help_text)
    missing = {"--model", "--host", "--ctx-size"} - flags
    if missing:
        raise ConfigError(
            f"{path} is no llama-server that llamad can run",
            why=f"its --help does not offer {', '.join(sorted(missing))}",
            fix="apt install llama.cpp-tools, or set [host] server in /etc/llamad/llamad.toml",
        )
    version = _VERSION.search(version_text)
    text = version[1].strip() if version else "unknown"
    number = _BUILD.search(text)
    build = int(number[1] or number[2]) if number else 0
    if build < _FIRST_BUILD:
        build = 0  # built from a tarball: the number is 0 or 1
    return Capabilities(path, text, build, flags, values, gates_of(build, flags), key)


_FIRST_BUILD = 1000
# Flags that came after every change that BuildGates knows (b10588 to 0.5.0-dev), so their presence dates a
# build that does not tell its number.
_LATEST_FLAGS = frozenset({"--kv-unified-per-slot", "--n-cpu-ffn", "--moe-cache-mib", "--log-jsonl"})


def gates_of(build: int, flags: frozenset[str]) -> BuildGates:
    """Buffer behaviour by build number; by its flags where it tells none; the larger variant where in doubt."""
    if build or flags & _LATEST_FLAGS:
        return BuildGates.of_build(build)
    return BuildGates(mask_f16=False, outputs_limited=False, mtp_skipped=False)


_SPELLINGS = re.compile(r"(--?[A-Za-z0-9][\w.-]*)(?:,\s+)?")
_METAVAR_CHOICE = re.compile(r"[\[{<]([\w+-]+(?:[|,][\w+-]+)+)[\]}>]")
_METAVAR_LIST = re.compile(r"^-.* ([a-z][\w-]*(?:,[a-z][\w-]*){2,})$", re.MULTILINE)
_ALLOWED = re.compile(r"allowed values: ([\w, +-]+)")
_BULLET = re.compile(r"^\s+- ([\w+-]+)(?: \(default\))?:(?: ([\w-]+))?", re.MULTILINE)
_QUOTED = re.compile(r"'([\w-]+)'")


def parse_help(text: str) -> tuple[frozenset[str], dict[str, frozenset[str]]]:
    """Every spelling that is accepted, and the words that a spelling's help allows for its value.

    Options that the help lists only to say that they are removed or deprecated are left out. A numbered value
    counts by its name too (`- 4: trace` allows both `4` and `trace`).
    """
    flags: set[str] = set()
    values: dict[str, frozenset[str]] = {}
    for block in re.split(r"\n(?=-)", "\n" + text):
        spellings = _spellings(block)
        if not spellings or "the argument has been removed" in block or "(DEPRECATED)" in block:
            continue
        flags.update(spellings)
        allowed = _values(block)
        values |= {spelling: allowed for spelling in spellings if allowed}
    return frozenset(flags), values


def _spellings(block: str) -> list[str]:
    found = []
    place = 0
    while match := _SPELLINGS.match(block, place):
        found.append(match[1])
        place = match.end()
        if "," not in match[0]:
            break
    return found


def _values(block: str) -> frozenset[str]:
    words: set[str] = set()
    for choice in _METAVAR_CHOICE.findall(block):
        words.update(re.split(r"[|,]", choice))
    for listed in _METAVAR_LIST.findall(block):
        words.update(listed.split(","))
    for allowed in _ALLOWED.findall(block):
        words.update(word.strip() for word in allowed.split(",") if word.strip())
    for bullet in _BULLET.findall(block):
        words.update(word for word in (bullet[0], bullet[1] if bullet[0].isdigit() else "") if word)
    words.update(_QUOTED.findall(block))
    return frozenset(words)


def _load(cache_file: Path, key: str) -> Capabilities | None:
    raw = load_cache(cache_file)
    try:
        if raw["format"] != _FORMAT or raw["key"] != key:
            return None
        flags = frozenset(map(str, raw["flags"]))
        values = {str(flag): frozenset(map(str, words)) for flag, words in raw["values"].items()}
        build = int(raw["build"])
        return Capabilities("", str(raw["version"]), build, flags, values, gates_of(build, flags), key)
    except (LookupError, TypeError, ValueError, AttributeError):
        return None  # no cache, or not one of ours: it is read anew and overwritten


def _store(cache_file: Path, found: Capabilities) -> None:
    raw = {
        "format": _FORMAT,
        "key": found.key,
        "version": found.version,
        "build": found.build,
        "flags": sorted(found.flags),
        "values": {flag: sorted(words) for flag, words in found.values.items()},
    }
    store_cache(cache_file, raw)
