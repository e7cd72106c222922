"""All definitions of a folder, for the router: each as it was loaded, or with the reason why it cannot be. Blocking."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamad.config.apart import Apart
from llamad.config.definition import Definition, HostSettings
from llamad.config.kept import Judge, load_kept
from llamad.config.listen import parse_listen
from llamad.config.loaded import Loaded, values_of
from llamad.config.names import definition_names
from llamad.config.watched import look
from llamad.errors import ConfigError, LlamadError, Where, os_error
from llamad.front.keys import KeySet
from llamad.service.facts import CACHE_NAME, FactsReader
from llamad.service.keys import certificate_of, key_files, keys_of, read_api_keys
from llamad.service.router_paths import HOST_CREDENTIAL, RouterPaths

if TYPE_CHECKING:
    from llamad.config.load import LoadedHost


@dataclass(frozen=True)
class Read:
    """One definition."""

    name: str
    loaded: Loaded | None
    """None where it cannot be used."""
    problem: LlamadError | None
    keys: KeySet
    size_bytes: int | None = None
    trained_context_tokens: int | None = None
    key_files: tuple[str, ...] = ()
    """The files of secrets that it names, also where they are what is wrong with it."""


def read_all(root: Path, paths: RouterPaths) -> dict[str, Read]:
    """Every definition of the folder."""
    with Apart() as judge:
        return {name: read_one(name, root, paths, judge) for name in definition_names(root)}


def read_one(name: str, root: Path, paths: RouterPaths, judge: Judge) -> Read:
    """One definition, with its keys and what is known of its model without loading it. Raises nothing."""
    folders = paths.of_model(name)
    named: tuple[str, ...] = ()
    try:
        folders.make(under_systemd=False)
        loaded = load_kept(name, root, folders.cache / "definition.json", judge=judge)
        loaded = _behind_us(loaded)
        named = key_files(loaded.definition)
        keys = read_api_keys(loaded, folders.credential(name))  # its certificate is of its own address
    except LlamadError as problem:
        return Read(name, None, problem, KeySet(), key_files=named)
    size, trained = _about(loaded, folders.cache)
    return Read(name, loaded, None, keys, size, trained, named)


def read_again(before: Mapping[str, Read], root: Path, paths: RouterPaths) -> dict[str, Read]:
    """As `read_all`; of what has the same contents as before only the keys are read again. Raises AccessError,
    ConfigError where the folder itself cannot be read: that is not the end of all models.
    """
    try:
        os.listdir(root)
    except OSError as error:
        raise os_error(f"cannot read {root}", error, "put the definitions back") from error
    with Apart() as judge:
        return {name: _read_again(before.get(name), name, root, paths, judge) for name in definition_names(root)}


def _read_again(former: Read | None, name: str, root: Path, paths: RouterPaths, judge: Judge) -> Read:
    loaded = former.loaded if former is not None else None
    if former is None or loaded is None or look(root / f"{name}.toml", root).digest != loaded.digest:
        return read_one(name, root, paths, judge)
    try:
        return replace(former, keys=read_api_keys(loaded, paths.of_model(name).credential(name)))
    except LlamadError as problem:
        return Read(name, None, problem, KeySet(), key_files=former.key_files)


def read_host(root: Path, paths: RouterPaths) -> tuple[HostSettings, KeySet]:
    """The host's settings and the keys of the router's own address. Raises ConfigError, AccessError.

    An address of the network without keys is refused, unless that is said to be meant.
    """
    found = load_host(root)
    return found.settings, host_keys(found, root, paths)


def load_host(root: Path) -> LoadedHost:
    """`config.load.load_host`, with the parser, which is needed for a file that says something."""
    from llamad.config.load import load_host

    return load_host(root)


def host_keys(found: LoadedHost, root: Path, paths: RouterPaths) -> KeySet:
    """The keys of the router's own address. Raises as `read_host`."""
    host = found.settings.host
    where = found.origins.get(("host", "api_keys_file"))
    credential = paths.of_model(HOST_CREDENTIAL).credential(HOST_CREDENTIAL)
    keys = keys_of(host.api_keys_file, credential, where)
    tls_credential = paths.of_model(HOST_CREDENTIAL).credential(HOST_CREDENTIAL, "tls-key")
    shown = certificate_of(host.tls_cert, host.tls_key, tls_credential, found.origins.get(("host", "tls_cert")))
    keys = keys.with_certificate(shown)
    if not (keys or host.insecure or parse_listen(host.listen).is_local):
        place = found.origins.get(("host", "listen")) or Where(str(root / "llamad.toml"), 1, 1)
        raise ConfigError(
            f"host.listen: {host.listen} can be reached from the network, and no API key is asked for",
            where=place,
            fix=f'write api_keys_file = "{root}/llamad.keys" in [host], or insecure = true',
        )
    return keys


def _behind_us(loaded: Loaded) -> Loaded:
    """The router's llama-servers are behind its address, whatever holds for the model's own unit."""
    if not loaded.definition.is_direct:
        return loaded
    values: dict[str, Any] = {**dict(values_of(loaded.definition)), "front": "relay"}
    return replace(loaded, definition=Definition(**values))


def _about(loaded: Loaded, cache: Path) -> tuple[int | None, int | None]:
    """Bytes of the file and the context that the model was trained for, as far as they can be had."""
    size: int | None = None
    with contextlib.suppress(OSError):
        size = os.stat(loaded.definition.model).st_size
    with contextlib.suppress(LlamadError):
        return size, FactsReader(cache / CACHE_NAME)(loaded.definition.model).n_ctx_train or None
    return size, None


def changed(before: Mapping[str, Read], after: Mapping[str, Read]) -> set[str]:
    """The names whose definitions, keys or problems differ."""
    names = before.keys() | after.keys()
    return {name for name in names if _mark(before.get(name)) != _mark(after.get(name))}


def _mark(read: Read | None) -> object:
    if read is None:
        return None
    return (read.loaded.digest, read.keys) if read.loaded else str(read.problem)
