"""Rules of a definition that its own values decide, beyond the types of the schema. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from llamad.config.definition import Definition
from llamad.config.environment import refused_variables
from llamad.config.extra_args import refused_args
from llamad.config.keys import Path, shown
from llamad.config.problems import Problem


def broken_rules(definition: Definition) -> Iterator[Problem]:
    """Each value that no definition may have, with what to write instead."""
    server = definition.server
    yield from _path_problems(("model",), definition.model, '"/var/lib/llamad/models/{name}"')
    yield from _path_problems(("api_keys_file",), definition.api_keys_file, '"/etc/llamad/{name}"')
    yield from _path_problems(
        ("server", "chat_template_file"), server.chat_template_file, '"/etc/llamad/{name}"'
    )
    for index, what, fix in refused_args(server.extra_args):
        yield Problem(("server", "extra_args", index), what, fix)
    for index, argument in enumerate(server.extra_args):
        if "\0" in argument:
            yield Problem(("server", "extra_args", index), "has a NUL character", "delete it")
    for name, what, fix in refused_variables(definition.environment):
        yield Problem(("environment", name), what, fix)
    for name, value in definition.environment.items():
        if "\0" in value:
            yield Problem(("environment", name), "has a NUL character", "delete it")


def _path_problems(key: Path, path: str | None, example: str) -> Iterator[Problem]:
    if path is None:
        return
    if not path.isprintable():
        yield Problem(key, "has a control character", "delete it")
    elif not path.startswith("/"):
        full = example.format(name=path.rpartition("/")[2])
        yield Problem(
            key, f'"{shown(path)}" is no full path', f"write it in full, for example {shown(full, 120)}"
        )
