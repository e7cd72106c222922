"""The drop-in that `llamad tune --apply` writes: whole or not at all, and never over what somebody wrote by hand."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from llamad.config.files import read_definition, read_file
from llamad.config.load import judge
from llamad.config.loaded import Loaded
from llamad.config.write import replace_file
from llamad.errors import ConfigError, Where
from llamad.measure.candidates import KEYS
from llamad.measure.report import toml_value
from llamad.measure.results import Key, Setting, TuneResult
from llamad.measure.statistics import gain
from llamad.text import printable

FILE_NAME = "50-tune.toml"
_FIRST = "# Written by `llamad tune`; edited by hand it is left alone. sha256 of what follows: "
_MARK = re.compile(re.escape(_FIRST) + r"([0-9a-f]{64})\n")


def drop_in_of(loaded: Loaded) -> Path:
    """Where the drop-in of a definition is."""
    return loaded.file.with_name(f"{loaded.file.name}.d") / FILE_NAME


def is_ours(content: bytes) -> bool:
    """Whether it is as `llamad tune` left it. Pure."""
    text = content.decode("utf-8", "replace")
    mark = _MARK.match(text)
    return mark is not None and mark[1] == _digest(text[mark.end() :])


def own_keys(loaded: Loaded) -> frozenset[Key]:
    """The keys of `[placement]` that an earlier `llamad tune` wrote: they are no promises of the admin."""
    file = drop_in_of(loaded)
    content = read_file(file)
    if content is None or not is_ours(content):
        return frozenset()
    places = ((key, loaded.origins.get(("placement", key))) for key in KEYS)
    return frozenset(key for key, place in places if place is not None and place.path == str(file))


def drop_in_text(result: TuneResult, settings: Mapping[Key, Setting], path: Path) -> str:
    """The text of the drop-in. Pure."""
    assert result.before is not None
    assert result.after is not None
    share = gain(result.before.values, result.after.values)
    lines = [
        f"# {_line(result.measured_at)}, {_line(result.engine)}",
        f"# For {result.goal}: {_line(result.workload)}",
        f"# {result.before.median:.1f} -> {result.after.median:.1f} tokens/s ({share:+.0%}), medians of "
        f"{len(result.before.values)} and {len(result.after.values)} rounds, in turns",
        f"# Undo: rm {_line(str(path))}",
        "",
        "[placement]",
        *(f"{key} = {toml_value(value)}" for key, value in settings.items()),
        "",
    ]
    body = "\n".join(lines)
    return f"{_FIRST}{_digest(body)}\n{body}"


def apply(
    result: TuneResult, loaded: Loaded, root: Path, *, force: bool, may_change: Collection[str] = ()
) -> Path:
    """Write what is better into the drop-in, beside what an earlier tune wrote there; its path.

    Raises ConfigError for a file that was written or edited by hand (unless `force`), for keys that the admin wrote
    and that are not in `may_change`, for settings that another drop-in would override, and for what would be no
    definition any more; AccessError. Nothing is written then.
    """
    path = require_writable(loaded, force=force)
    own = own_keys(loaded)
    for key in result.best:
        place = loaded.origins.get(("placement", key))
        if place is not None and key not in own and key not in may_change:
            raise ConfigError(f"placement.{key} is written here", where=place, fix=f"--may-change {key}")
    kept: dict[Key, Setting] = {key: getattr(loaded.definition.placement, key) for key in sorted(own)}
    settings = {**kept, **result.best}
    text = drop_in_text(result, settings, path)
    _require_in_force(loaded, root, path, text, settings)
    replace_file(path, text.encode())
    return path


def require_writable(loaded: Loaded, *, force: bool) -> Path:
    """The drop-in's path. Raises ConfigError where it was written by hand: before an hour is spent on measuring."""
    path = drop_in_of(loaded)
    content = read_file(path)
    if content is not None and not is_ours(content) and not force:
        raise ConfigError("it was written or edited by hand", where=Where(str(path), 1, 1),
                          fix="take over what you want, or replace it with --force")  # fmt: skip
    return path


def _require_in_force(loaded: Loaded, root: Path, path: Path, text: str, settings: Mapping[Key, Setting]) -> None:
    contents = read_definition(loaded.file, root)
    others = {file: content for file, content in contents.items() if file != path}
    first = {file: content for file, content in others.items() if file.parent != path.parent or file.name < path.name}
    rest = {file: content for file, content in others.items() if file not in first}
    new = judge(loaded.name, loaded.file, root, {**first, path: text.encode(), **rest})
    for key, value in settings.items():
        if getattr(new.definition.placement, key) != value:
            where = new.origins.get(("placement", key)) or Where(str(path))
            raise ConfigError(f"placement.{key} is written here, after {FILE_NAME}", where=where,
                              fix=f"remove it here, or write {key} = {toml_value(value)}")  # fmt: skip


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _line(text: str) -> str:
    return printable(text)[:200]
