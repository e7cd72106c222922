"""The checks of a definition with the real world behind them: for `llamad check`, for starts and for reloads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from llamad.config.access import access_problem
from llamad.config.check import World, check_definition
from llamad.config.kept import Judge, judge_definition, load_all_kept
from llamad.config.keys import dotted, shown
from llamad.config.loaded import Loaded
from llamad.config.named_files import named_files
from llamad.errors import AccessError, BadModelError, ConfigErrors, LlamadError, ModelMissingError
from llamad.service.facts import FactsReader, extras_of, located_facts

PLAIN_STORES = ("/etc/credstore", "/run/credstore", "/usr/lib/credstore")
CREDENTIAL_STORES = (*PLAIN_STORES, "/etc/credstore.encrypted")
"""The last one holds what only systemd can read."""


def check_name(name: str, root: Path) -> list[LlamadError]:
    """Every problem of one definition of a folder. Raises what `load_definition` does."""
    from llamad.config.load import load_definition  # a start has no time for it

    return check_loaded(load_definition(name, root), root)


def check_loaded(loaded: Loaded, root: Path, *, sandboxed: bool = True) -> list[LlamadError]:
    """Every problem of a definition beside the others of a folder; it need not be there itself.

    `sandboxed`: whether it is served by the unit, which does not see /home and /tmp.
    """
    from llamad.config.load import load_all  # a start has no time for it

    read = FactsReader()
    problems: list[LlamadError] = list(
        check_definition(
            loaded,
            World(read_model=read, sandboxed=sandboxed),
            neighbours=load_all(root),
            credential_present=credential_stored(loaded.name),
        )
    )
    return [*problems, *_secret_problems(loaded), *_beside_problems(loaded, read)]


def _secret_problems(loaded: Loaded) -> list[LlamadError]:
    """What is wrong in files of keys and certificates, as far as who asks may read them."""
    from llamad.service.keys import read_keys

    tls_key = None
    if loaded.definition.tls_cert and not loaded.definition.tls_key and credential_stored(loaded.name, "tls-key"):
        stores = (Path(store, f"llamad.tls-key.{loaded.name}") for store in PLAIN_STORES)
        tls_key = next((path for path in stores if os.access(path, os.R_OK)), None)
        if tls_key is None:
            return []  # encrypted, or for root to read
    try:
        read_keys(loaded, None, None, tls_key)
    except LlamadError as error:
        told = isinstance(error.__cause__, (PermissionError, FileNotFoundError))  # whether the service may read them
        return [] if told else [error]
    return []


def _beside_problems(loaded: Loaded, read: FactsReader) -> list[LlamadError]:
    """The first file beside the model that cannot be used. One that is not there is told with the definition."""
    try:
        facts = read(loaded.definition.model)
    except LlamadError:
        return []  # told already
    try:
        extras_of(loaded, facts)
    except BadModelError as error:
        return [error]
    except (ModelMissingError, AccessError):
        pass  # told already
    return []


def credential_stored(name: str, kind: str = "api-key") -> bool:
    """Whether systemd would find a credential of this kind for the model; a store that cannot be read may hold one."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory:
        return os.path.exists(os.path.join(directory, f"llamad.{kind}.{name}"))
    stores = [store for store in CREDENTIAL_STORES if os.path.isdir(store)]
    unreadable = any(not os.access(store, os.X_OK) for store in stores)
    return unreadable or any(os.path.exists(f"{store}/llamad.{kind}.{name}") for store in stores)


def require_usable(
    loaded: Loaded,
    read: FactsReader,
    root: Path,
    *,
    credential_present: bool,
    sandboxed: bool,
    neighbours: Sequence[Loaded] | None = None,
    neighbours_file: Path | None = None,
    judge: Judge = judge_definition,
) -> None:
    """Raise the first reason not to serve this definition, with the exit code of its class.

    An unreadable, missing or bad model file is 77, 66 or 65 and comes first, then a missing file of weights that go
    with it (66: it may be on a file system that comes later); all else is 78, all problems at once. A bad file of
    what goes with the model is 65 and comes last.
    `neighbours` are the definitions of the folder, where they are known. Else `neighbours_file` keeps them, and `judge`
    judges them (see `load_all_kept`).
    """
    refused = access_problem(loaded.definition.model, sandboxed=sandboxed)
    if refused is not None:
        refused.what = f"model: {loaded.definition.model} {refused.what}"
        refused.where = loaded.where("model")
        raise refused
    facts = located_facts(loaded, read)
    _require_weights(loaded, sandboxed=sandboxed)
    world = World(read_model=read, sandboxed=sandboxed)
    if neighbours is None:
        neighbours = load_all_kept(root, neighbours_file, judge=judge)
    problems = check_definition(loaded, world, neighbours=neighbours, credential_present=credential_present)
    if problems:
        raise problems[0] if len(problems) == 1 else ConfigErrors(problems)
    extras_of(loaded, facts)


def _require_weights(loaded: Loaded, *, sandboxed: bool) -> None:
    for key, file, holds_weights in named_files(loaded.definition):
        if not holds_weights or os.path.exists(file) or access_problem(file, sandboxed=sandboxed):
            continue  # what only looks as if it were missing, the check explains
        what = f"{dotted(key)}: {shown(file, 200)} does not exist"
        raise ModelMissingError(what, where=loaded.where(*key), fix="correct the path, or put the file there")
