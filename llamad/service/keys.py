"""The API keys of a definition, from systemd's credential and from a file."""

from __future__ import annotations

from pathlib import Path

from llamad.config.definition import Definition, Host
from llamad.config.loaded import Loaded
from llamad.errors import AccessError, ConfigError, Where
from llamad.front.keys import KeySet


def key_files(settings: Definition | Host) -> tuple[str, ...]:
    """The files of keys that a definition, or the host's settings, names."""
    admin = settings.admin_keys_file if isinstance(settings, Definition) else None
    return tuple(filter(None, (settings.api_keys_file, admin)))


def read_keys(loaded: Loaded, credential: Path | None, admin_credential: Path | None = None) -> KeySet:
    """The API keys of the credential and of `api_keys_file` together, and those of the admin likewise.

    Raises AccessError, ConfigError.
    """
    definition, origins = loaded.definition, loaded.origins
    keys = keys_of(definition.api_keys_file, credential, origins.get(("api_keys_file",)))
    where = origins.get(("admin_keys_file",))
    return keys.with_admin(keys_of(definition.admin_keys_file, admin_credential, where, "admin_keys_file"))


def keys_of(
    written: str | None, credential: Path | None, where: Where | None, key: str = "api_keys_file"
) -> KeySet:
    """The keys of a file, which is named by `key` at `where`, and of a credential. Raises AccessError, ConfigError."""
    texts = []
    for path in (credential, Path(written) if written else None):
        if path is None:
            continue
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise ConfigError(
                f"{key}: {path} is no text", where=where, fix="one key a line"
            ) from None
        except OSError as error:
            fix = f"let _llamad read it: chown _llamad {path}; chmod 0600 {path}"
            raise AccessError(
                f"cannot read the keys in {path}", why=error.strerror or "", fix=fix
            ) from error
    keys = KeySet.from_text("\n".join(texts), written or str(credential))
    if written and not keys:
        raise ConfigError(f"{key}: {written} has no key in it", where=where, fix="one key a line")
    return keys
