"""The API keys of a definition, from systemd's credential and from a file."""

from __future__ import annotations

from pathlib import Path

from llamad.config.loaded import Loaded
from llamad.errors import AccessError, ConfigError, Where
from llamad.front.keys import KeySet


def read_keys(loaded: Loaded, credential: Path | None) -> KeySet:
    """The API keys of the credential and of `api_keys_file` together. Raises AccessError, ConfigError."""
    return keys_of(loaded.definition.api_keys_file, credential, loaded.origins.get(("api_keys_file",)))


def keys_of(written: str | None, credential: Path | None, where: Where | None) -> KeySet:
    """The API keys of a file, which is named at `where`, and of a credential. Raises AccessError, ConfigError."""
    texts = []
    for path in (credential, Path(written) if written else None):
        if path is None:
            continue
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise ConfigError(
                f"api_keys_file: {path} is no text", where=where, fix="one key a line"
            ) from None
        except OSError as error:
            fix = f"let _llamad read it: chown _llamad {path}; chmod 0600 {path}"
            raise AccessError(
                f"cannot read the API keys in {path}", why=error.strerror or "", fix=fix
            ) from error
    keys = KeySet.from_text("\n".join(texts), written or str(credential))
    if written and not keys:
        raise ConfigError(f"api_keys_file: {written} has no key in it", where=where, fix="one key a line")
    return keys
