"""The names of definitions: which there are, which can be, and which was likely meant."""

from __future__ import annotations

import re
from pathlib import Path

from llamad.config.keys import shown
from llamad.errors import ConfigError, LlamadError, Where

DEFAULT_ROOT = Path("/etc/llamad")
HOST_FILE = "llamad.toml"
NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,47}"
RESERVED_NAMES = frozenset({"llamad"})
NAME_RULE = "a name has a-z, 0-9, '.', '_' and '-', begins with a letter or digit, and is at most 48 long"


def is_definition_file(name: str) -> bool:
    """Whether a file of this name counts: `*.toml`, and no hidden, backup or package manager's file."""
    return name.endswith(".toml") and not name.startswith((".", "#")) and ".dpkg-" not in name


def name_of_file(file_name: str) -> str:
    """`phi4` of `phi4.toml`; empty for what no definition can be named."""
    name = file_name.removesuffix(".toml")
    is_name = (
        is_definition_file(file_name) and re.fullmatch(NAME_PATTERN, name) and name not in RESERVED_NAMES
    )
    return name if is_name else ""


def definition_names(root: Path = DEFAULT_ROOT) -> list[str]:
    """The names of all definitions of a folder, sorted; none where there is no such folder."""
    return sorted(filter(None, map(name_of_file, _file_names(root))))


def misnamed_files(root: Path = DEFAULT_ROOT) -> list[LlamadError]:
    """A problem for each `*.toml` of a folder that no name can reach, `Phi4.toml` for instance."""
    problems: list[LlamadError] = []
    for file_name in _file_names(root):
        if is_definition_file(file_name) and file_name != HOST_FILE and not name_of_file(file_name):
            where = Where(shown(str(root / file_name), 300), 1, 1)
            what = "the file's name is no name of a definition"
            problems.append(ConfigError(what, where=where, why=NAME_RULE, fix="rename the file"))
    return problems


def check_name(name: str, root: Path = DEFAULT_ROOT) -> None:
    """Raises ConfigError for what cannot be a definition's name, with the nearest ones of `root`."""
    if name in RESERVED_NAMES:
        why = "the name is for the host settings"
        raise ConfigError(f'"{name}" is no definition', why=why, fix=offer("", root) or "use another name")
    if not re.fullmatch(NAME_PATTERN, name):
        wanted = Path(name).name.removesuffix(".toml").lower()
        fix = offer(wanted, root) or "use another name"
        raise ConfigError(f'"{shown(name)}" is no name of a definition', why=NAME_RULE, fix=fix)


def offer(name: str, root: Path) -> str:
    """The definitions that a wrong name may have meant, as advice; empty where there are none at all."""
    import difflib  # only for what is refused: a start has no time for it

    names = definition_names(root)
    near = [name] if name in names else difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"there {'is' if len(names) == 1 else 'are'} {', '.join(names[:10])}" if names else ""


def _file_names(root: Path) -> list[str]:
    try:
        return sorted(file.name for file in root.iterdir())
    except OSError:
        return []
