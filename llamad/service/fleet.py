"""What a configuration for other programs is made for, from the words of a command line and this host's definitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from llamad.config.keys import shown
from llamad.config.listen import parse_listen
from llamad.config.load import load_definition
from llamad.config.names import check_name, definition_names
from llamad.errors import LlamadError, UsageError
from llamad.export.fleet import SYSTEM, Fleet, Model, parse_hosts, usable


def fleet_of(
    kind: str, hosts: Iterable[str], models: Iterable[str], listen: str, tls_ca: str, root: Path
) -> tuple[Fleet, tuple[str, ...]]:
    """The fleet, and aliases that no configuration file can hold. `hosts` and `models` are lists with commas.

    Raises UsageError, and ConfigError for what no model can be named.
    """
    names = [name for text in models for name in text.split(",") if name]
    if kind == "prometheus":
        if names:
            why = "each series has the label `model`"
            raise UsageError("--model is of no use for prometheus", why=why, fix="leave it out")
        return Fleet(parse_hosts(hosts), (), "", _authority(tls_ca)), ()
    found, left_out = usable(_models(names, root))
    return Fleet(parse_hosts(hosts), found, _address(listen), _authority(tls_ca)), left_out


def _authority(text: str) -> str:
    """The file may be one of another machine: it is not looked for."""
    if text in ("", SYSTEM) or (text.startswith("/") and text.isprintable() and text.isascii()):
        return text
    fix = f"write the path of a PEM file on the balancer's machine, or {SYSTEM}"
    raise UsageError(f"--tls-ca {shown(text)}", why="it is no absolute path", fix=fix)


def _address(text: str) -> str:
    fix = "write for example --listen 0.0.0.0:8000"
    try:
        listen = parse_listen(text)
    except ValueError as error:
        raise UsageError(f"--listen {text}", why=str(error)) from None
    if listen.kind == "unix":
        raise UsageError(f"--listen {text}", why="clients of a balancer come over TCP", fix=fix)
    return str(listen)


def _models(names: Sequence[str], root: Path) -> tuple[Model, ...]:
    """Those named, or all definitions, with the aliases that the definitions here give them."""
    known = definition_names(root)
    for name in names:
        check_name(name, root)
    chosen = list(dict.fromkeys(names)) or known
    if not chosen:
        what = f"no model: none is named, and there is no definition in {root}"
        raise UsageError(what, fix="name them: --model phi4,qwen3")
    return tuple(Model(name, _aliases(name, root) if name in known else ()) for name in chosen)


def _aliases(name: str, root: Path) -> tuple[str, ...]:
    try:
        return load_definition(name, root).definition.aliases
    except LlamadError:  # `llamad check` tells of it; the model may be served on the other hosts all the same
        return ()
