"""The secrets of a definition's address, from systemd's credentials and from files: API keys, certificate."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

from llamad.config.definition import Definition, Host
from llamad.config.loaded import Loaded
from llamad.errors import AccessError, ConfigError, Where
from llamad.front.certificate import Certificate, load_certificate
from llamad.front.keys import KeySet
from llamad.store import read_regular

_MOST_BYTES = 1 << 20


def key_files(settings: Definition | Host) -> tuple[str, ...]:
    """The files of secrets that a definition, or the host's settings, names."""
    admin = settings.admin_keys_file if isinstance(settings, Definition) else None
    return tuple(filter(None, (settings.api_keys_file, admin, settings.tls_cert, settings.tls_key)))


def new_in(keys: KeySet, former: KeySet) -> str:
    """What differs between the secrets of an address, in words; "" for nothing."""
    if keys == former:
        return ""
    return "the API keys" if keys != former.with_certificate(keys.certificate) else "the certificate"


def first_key(files: Iterable[Path | str | None]) -> str:
    """The first API key of these files that this user can read; empty where there is none."""
    for file in files:
        if not file:
            continue
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if found := first_key_in(read_regular(Path(file), _MOST_BYTES, follow=True).decode()):
                return found
    return ""


def first_key_in(text: str) -> str:
    """The first key of a text with one a line; empty for none."""
    return next((line for line in map(str.strip, text.splitlines()) if line and line[0] != "#"), "")


def read_all_keys(loaded: Loaded, credential: Callable[[str, str], Path | None]) -> KeySet:
    """Every secret of a model with its own address, where `credential` finds what systemd imported, by the model's
    name and the kind. Raises AccessError, ConfigError."""
    kinds = ("api-key", "admin-key", "tls-key")
    return read_keys(loaded, *(credential(loaded.name, kind) for kind in kinds))


def read_keys(
    loaded: Loaded,
    credential: Path | None,
    admin_credential: Path | None = None,
    tls_credential: Path | None = None,
) -> KeySet:
    """What `read_api_keys` does, and the certificate of `tls_cert`, whose key may be a credential. Raises AccessError,
    ConfigError.
    """
    definition, origins = loaded.definition, loaded.origins
    keys = read_api_keys(loaded, credential, admin_credential)
    shown = certificate_of(definition.tls_cert, definition.tls_key, tls_credential, origins.get(("tls_cert",)))
    return keys.with_certificate(shown)


def read_api_keys(loaded: Loaded, credential: Path | None, admin_credential: Path | None = None) -> KeySet:
    """The API keys of the credential and of `api_keys_file` together, and those of the admin likewise. Raises
    AccessError, ConfigError.
    """
    definition, origins = loaded.definition, loaded.origins
    keys = keys_of(definition.api_keys_file, credential, origins.get(("api_keys_file",)))
    where = origins.get(("admin_keys_file",))
    return keys.with_admin(keys_of(definition.admin_keys_file, admin_credential, where, "admin_keys_file"))


def certificate_of(
    certificate: str | None, key: str | None, credential: Path | None, where: Where | None
) -> Certificate | None:
    """What a TLS address shows; None where no certificate is written, `where` being its place. Raises AccessError,
    ConfigError."""
    if certificate is None:
        return None
    return load_certificate(Path(certificate), Path(key) if key else credential, where)


def keys_of(
    written: str | None, credential: Path | None, where: Where | None, key: str = "api_keys_file"
) -> KeySet:
    """The keys of a file, which is named by `key` at `where`, and of a credential. Raises AccessError, ConfigError."""
    texts = []
    for path in (credential, Path(written) if written else None):
        if path is None:
            continue
        try:
            content = read_regular(path, _MOST_BYTES + 1, follow=True)
            texts.append(content.decode("utf-8"))
        except UnicodeDecodeError:
            raise ConfigError(
                f"{key}: {path} is no text", where=where, fix="one key a line"
            ) from None
        except OSError as error:
            fix = "put a file there, with one key a line"
            if isinstance(error, PermissionError):
                fix = f"let _llamad read it: chown _llamad {path}; chmod 0600 {path}"
            raise AccessError(
                f"cannot read the keys in {path}", why=error.strerror or "", fix=fix
            ) from error
        if len(content) > _MOST_BYTES:
            raise ConfigError(f"{key}: {path} has more than a MiB", where=where, fix="one key a line")
    keys = KeySet.from_text("\n".join(texts), written or str(credential))
    if (written or credential) and not keys:  # or the address would ask for none
        raise ConfigError(f"{key}: {written or credential} has no key in it", where=where, fix="one key a line")
    return keys
