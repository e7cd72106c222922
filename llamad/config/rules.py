"""Rules of a definition that its own values decide, beyond the types of the schema. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from llamad.config.definition import Definition, Host
from llamad.config.environment import refused_variables
from llamad.config.extra_args import refused_args
from llamad.config.front import front_problems
from llamad.config.keys import Path, shown
from llamad.config.named_files import named_files
from llamad.config.problems import Problem


def broken_rules(definition: Definition) -> Iterator[Problem]:
    """Each value that no definition may have, with what to write instead."""
    server = definition.server
    yield from _path_problems(("model",), definition.model, '"/var/lib/llamad/models/{name}"')
    for key, file, holds_weights in named_files(definition):
        folder = "/var/lib/llamad/models" if holds_weights else "/etc/llamad"
        yield from _path_problems(key, file, f'"{folder}/{{name}}"')
    yield from _vision_problems(definition)
    yield from front_problems(definition)
    yield from _tls_problems(definition, (), "NAME")
    for index, what, fix in refused_args(server.extra_args):
        yield Problem(("server", "extra_args", index), what, fix)
    for name, what, fix in refused_variables(definition.environment):
        yield Problem(("environment", name), what, fix)
    for key, text in _texts_for_the_child(definition):
        if "\0" in text:
            yield Problem(key, "has a NUL character", "delete it")


def broken_rules_of_host(host: Host) -> Iterator[Problem]:
    """The same for `[host]`."""
    for name in ("api_keys_file", "tls_cert", "tls_key"):
        file = getattr(host, name)
        if file is not None:
            yield from _path_problems(("host", name), file, '"/etc/llamad/{name}"')
    yield from _tls_problems(host, ("host",), "llamad")


def _tls_problems(settings: Definition | Host, table: Path, name: str) -> Iterator[Problem]:
    if settings.tls_key is not None and settings.tls_cert is None:
        fix = f'write tls_cert = "/etc/llamad/{name}.crt"'
        yield Problem((*table, "tls_key"), "no certificate is written beside this key", fix)


def _texts_for_the_child(definition: Definition) -> Iterator[tuple[Path, str]]:
    """Free texts that become arguments or variables of llama-server."""
    server = definition.server
    yield from ((("environment", name), text) for name, text in definition.environment.items())
    for key in ("extra_args", "tags"):
        yield from ((("server", key, index), text) for index, text in enumerate(getattr(server, key)))
    for key in ("chat_template", "reasoning_budget_message"):
        text = getattr(server, key)
        if text is not None:
            yield ("server", key), text
    for name, value in server.override_kv.items():
        yield ("server", "override_kv", name), f"{name}{value}"
    breakers = definition.sampling.dry_sequence_breakers
    yield from ((("sampling", "dry_sequence_breakers", index), text) for index, text in enumerate(breakers))


def _vision_problems(definition: Definition) -> Iterator[Problem]:
    """What llama-server switches off, with a warning only, for a model that sees images."""
    if definition.vision.mmproj is None:
        return
    for key in ("context_shift", "cache_reuse"):
        if getattr(definition.server, key):
            what = "llama-server cannot do that with a projector, and [vision] has one"
            yield Problem(("server", key), what, "delete it, or mmproj in [vision]")


def _path_problems(key: Path, path: str, example: str) -> Iterator[Problem]:
    if not path.isprintable():
        yield Problem(key, "has a control character", "delete it")
    elif not path.startswith("/"):
        full = example.format(name=path.rpartition("/")[2])
        yield Problem(
            key, f'"{shown(path)}" is no full path', f"write it in full, for example {shown(full, 120)}"
        )
