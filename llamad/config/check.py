"""Checks of a definition that need the world: other definitions, files, the model's header. Not the engine.

Everything found is located at the line of the definition that can mend it, whatever its cause.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from typing import Protocol

from llamad.config.access import SERVICE_USER, Access, SystemAccess, access_problem
from llamad.config.definition import Definition, Rope
from llamad.config.keys import dotted, shown
from llamad.config.listen import Listen, next_port, parse_listen
from llamad.config.loaded import Loaded, in_order
from llamad.config.named_files import named_files
from llamad.errors import BadModelError, ConfigError, LlamadError, ModelMissingError
from llamad.frozen import dataclass


class TrainedModel(Protocol):
    """What a check needs to know of a model."""

    @property
    def n_ctx_train(self) -> int:
        """Tokens that the model was trained for; 0 where unknown."""
        ...


def _list_folder(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


@dataclass(frozen=True)
class World:
    """What is looked at. `read_model` reads a header, and raises LlamadError for what is no usable model."""

    read_model: Callable[[str], TrainedModel]
    access: Access = field(default_factory=SystemAccess)
    list_folder: Callable[[str], list[str]] = _list_folder
    user: str = SERVICE_USER
    sandboxed: bool = True
    """Whether the model is served by the unit, which does not see /home and /tmp."""


def check_definition(
    loaded: Loaded, world: World, *, neighbours: Sequence[Loaded] = (), credential_present: bool = False
) -> list[LlamadError]:
    """Every problem of a definition that has been loaded, in the order of their places; blocking.

    `neighbours` are the definitions of the same folder (its own may be among them). All problems are ConfigErrors.
    """
    others = [other for other in neighbours if other.name != loaded.name]
    problems: list[LlamadError] = [
        *_model_problems(loaded, world),
        *_listen_problems(loaded, credential_present),
        *_collisions(loaded, others),
        *_alias_problems(loaded, others),
        *_file_problems(loaded, world),
    ]
    return in_order(problems, loaded.files)


def check_listen(loaded: Loaded, *, credential_present: bool) -> None:
    """Raises ConfigError for an address that must not be listened on: reachable from outside without API keys."""
    for problem in _listen_problems(loaded, credential_present):
        raise problem


def _problem(loaded: Loaded, path: tuple[str | int, ...], what: str, fix: str) -> ConfigError:
    return ConfigError(f"{dotted(path)}: {what}", where=loaded.where(*path), fix=fix)


# -- the model ---------------------------------------------------------------------------------------------


def _model_problems(loaded: Loaded, world: World) -> Iterator[ConfigError]:
    path = loaded.definition.model
    refused = access_problem(path, world.user, sandboxed=world.sandboxed, access=world.access)
    if refused:
        yield _problem(loaded, ("model",), f"{shown(path, 200)} {refused.what}: {refused.why}", refused.fix)
        return
    try:
        model = world.read_model(path)
    except ModelMissingError as error:
        yield _missing_model(loaded, error, world)
    except LlamadError as error:
        place = error.where.path if error.where else path
        why = error.why if isinstance(error, BadModelError) else f"{error.what}: {error.why}"
        yield _problem(loaded, ("model",), f"{shown(place, 200)}: {why}", error.fix)
    else:
        yield from _context_problems(loaded, model.n_ctx_train)


def _missing_model(loaded: Loaded, error: ModelMissingError, world: World) -> ConfigError:
    path = error.where.path if error.where else loaded.definition.model
    fix = _offer(path, world) or error.fix
    what = f"{shown(path, 200)}: {error.what}" + (f": {error.why}" if error.why else "")
    return _problem(loaded, ("model",), what, fix)


def _offer(path: str, world: World) -> str:
    """The file beside a missing one that was likely meant, as advice; empty where there is none."""
    import difflib  # only for what is refused: a start has no time for it

    folder, _, name = path.rpartition("/")
    # Who may write there may be anybody, and back quotes mark commands in an advice.
    names = [one for one in world.list_folder(folder or "/") if one.isprintable() and "`" not in one]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f'did you mean "{folder}/{near[0]}"?' if near else ""


def _is_stretched(definition: Definition) -> bool:
    """Whether the context may be longer than the model's file says."""
    changed = any(key.endswith(".context_length") or ".rope." in key for key in definition.server.override_kv)
    return changed or definition.rope != Rope()


def _context_problems(loaded: Loaded, trained_tokens: int) -> Iterator[ConfigError]:
    if not trained_tokens or _is_stretched(loaded.definition):
        return
    placement = loaded.definition.placement
    for key, tokens in (("context", placement.context), ("context_min", placement.context_min)):
        if f"placement.{key}" in loaded.written and isinstance(tokens, int) and tokens > trained_tokens:
            what = f"{tokens} is more than the model was trained for"
            yield _problem(loaded, ("placement", key), what, f"write {trained_tokens} or less")


# -- addresses and names -----------------------------------------------------------------------------------


def _listen_problems(loaded: Loaded, credential_present: bool) -> Iterator[ConfigError]:
    definition = loaded.definition
    if definition.listen is None or definition.insecure or definition.api_keys_file or credential_present:
        return
    if not parse_listen(definition.listen).is_local:
        what = f"{definition.listen} can be reached from the network, and no API key is asked for"
        fix = f'write api_keys_file = "/etc/llamad/{loaded.name}.keys", or insecure = true'
        yield _problem(loaded, ("listen",), what, fix)


def _collisions(loaded: Loaded, others: Sequence[Loaded]) -> Iterator[ConfigError]:
    mine = _listen_of(loaded)
    taken = [(listen, other) for other in others if (listen := _listen_of(other))]
    for listen, other in taken:
        if mine and mine.collides(listen):
            what = f"{mine} is taken by {other.name} ({other.where('listen')})"
            fix = f'write a free one, for example "{_free(mine, [listen for listen, _ in taken])}"'
            yield _problem(loaded, ("listen",), what, fix)
            return


def _free(mine: Listen, taken: list[Listen]) -> str:
    if mine.kind == "unix":
        return f"unix:{mine.path.removesuffix('.sock')}-2.sock"
    return f"127.0.0.1:{next_port([mine, *taken])}"


def _listen_of(loaded: Loaded) -> Listen | None:
    return parse_listen(loaded.definition.listen) if loaded.definition.listen else None


def _alias_problems(loaded: Loaded, others: Sequence[Loaded]) -> Iterator[ConfigError]:
    owners = {alias: other for other in others for alias in other.definition.aliases}
    owners |= {other.name: other for other in others}
    seen: set[str] = set()
    for index, alias in enumerate(loaded.definition.aliases):
        owner = owners.get(alias)
        if owner is not None:
            what = f'"{shown(alias)}" is a name of {owner.name} ({owner.file})'
            yield _problem(loaded, ("aliases", index), what, "choose another alias")
        elif alias in seen:
            yield _problem(loaded, ("aliases", index), f'"{shown(alias)}" is there twice', "delete one")
        seen.add(alias)


# -- files ---------------------------------------------------------------------------------------------


def _file_problems(loaded: Loaded, world: World) -> Iterator[ConfigError]:
    for key, file, _ in named_files(loaded.definition):
        refused = access_problem(file, world.user, sandboxed=world.sandboxed, access=world.access)
        if refused:
            yield _problem(loaded, key, f"{shown(file, 200)} {refused.what}: {refused.why}", refused.fix)
        elif world.access.mode(file) is None:
            fix = _offer(file, world) or "correct the path, or write the file"
            yield _problem(loaded, key, f"{shown(file, 200)} does not exist", fix)
