"""What a changed key takes: every key of the schema is classified, and differences are found exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest

from llamad.config.changes import TAKES, Takes, changes, in_words, needs_no_new_child, takes
from llamad.config.definition import Definition, Host, Table
from llamad.config.loaded import Loaded
from tests.support.fakes import loaded_of


def keys_of(table: type[Table], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each dotted key with the name of its field."""
    for field in fields(table):
        if isinstance(field.default, Table):
            yield from keys_of(type(field.default), f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field.name


ALL = [key for key, _ in keys_of(Definition)] + [key for key, _ in keys_of(Host, "host.")]


def test_every_key_of_the_schema_is_classified_and_no_other() -> None:
    assert sorted(TAKES) == sorted(ALL)
    assert len(ALL) > 150


def changed(loaded: Loaded, key: str) -> Loaded:
    """The same with another value at a dotted key; the value need not be a sensible one."""
    if key.startswith("host."):
        return replace(loaded, host=with_value(loaded.host, key.removeprefix("host.").split(".")))
    return replace(loaded, definition=with_value(loaded.definition, key.split(".")))


def with_value(table: Any, path: list[str]) -> Any:
    inner = object() if len(path) == 1 else with_value(getattr(table, path[0]), path[1:])
    return replace(table, **{path[0]: inner})


@pytest.mark.parametrize("key", ALL)
def test_a_change_of_any_key_is_found_and_only_that(key: str) -> None:
    old = loaded_of()
    (change,) = changes(old, changed(old, key))
    assert change == (key, TAKES[key])
    assert needs_no_new_child(old, changed(old, key)) == (TAKES[key] is not Takes.RESTART)


def test_a_comment_changes_nothing() -> None:
    assert changes(loaded_of(digest="1"), loaded_of(digest="2")) == ()
    assert takes(()) == frozenset()


def test_several_changes_in_words() -> None:
    old = loaded_of()
    new = old
    for key in ALL[:12]:
        new = changed(new, key)
    found = changes(old, new)
    assert [change.key for change in found] == ALL[:12]
    assert in_words(found).endswith(f"{ALL[7]} and 4 more")
    assert in_words(found[:2]) == f"{ALL[0]}, {ALL[1]}"


def test_what_the_relay_uses_is_never_a_restart() -> None:
    """The relay's settings are made of these keys: none of them may cost a request."""
    used = {"aliases", "allowed_hosts", "api_keys_file", "insecure"}
    used |= {f"limits.{key}" for key in ("max_concurrent_requests", "queue_requests", "wait_s", "head_bytes",
                                         "body_bytes", "replay_bytes", "client_idle_s", "drain_s")}  # fmt: skip
    assert {TAKES[key] for key in used} == {Takes.NOTHING}
    assert {TAKES["listen"], TAKES["listen_mode"]} == {Takes.REBIND}


def test_an_address_that_llama_server_owns_moves_with_it() -> None:
    old = loaded_of()
    moved = replace(old.definition, listen="127.0.0.1:9999")
    assert takes(changes(old, replace(old, definition=moved))) == {Takes.REBIND}
    direct, elsewhere = (replace(old, definition=replace(one, front="direct")) for one in (old.definition, moved))
    assert takes(changes(direct, elsewhere)) == {Takes.RESTART}
