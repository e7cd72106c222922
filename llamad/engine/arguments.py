"""An argument list that grows by what a build of llama-server offers. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from llamad.engine.build import Capabilities
from llamad.errors import ConfigError


class Args:
    """Grows an argument list by what the build offers."""

    def __init__(self, caps: Capabilities) -> None:
        self.caps = caps
        self.items: list[str] = []

    def need(self, purpose: str, value: str | None, *spellings: str) -> None:
        """Add the first spelling that is offered. Raises ConfigError where none is, or not with this value."""
        if self.offered(value, *spellings):
            return
        flag = spellings[0] if value is None else f"{spellings[0]} {value}"
        raise ConfigError(
            f"llama-server {self.caps.version} does not offer {flag}",
            why=f"{purpose} needs it",
            fix="install a newer llama.cpp-tools, or remove the setting",
        )

    def offered(self, value: str | None, *spellings: str) -> bool:
        """Add the first spelling that is offered with this value; False if there is none."""
        for spelling in spellings:
            allowed = self.caps.values.get(spelling, frozenset())
            if self.caps.has(spelling) and (value is None or self._fits(value, allowed)):
                self.items += [spelling] if value is None else [spelling, value]
                return True
        return False

    def wanted(self, written: bool, purpose: str, value: str | None, *spellings: str) -> None:
        """`need` where the admin wrote the setting, else `offered`."""
        if written:
            self.need(purpose, value, *spellings)
        else:
            self.offered(value, *spellings)

    @staticmethod
    def _fits(value: str, allowed: frozenset[str]) -> bool:
        return not allowed or all(word in allowed or word.isdigit() for word in value.split(","))


_OF_NO_DEVICE = frozenset(
    {"--host", "--alias", "-a", "--cache-ram", "-cram", "--ctx-checkpoints", "--swa-checkpoints", "--threads", "-t",
     "--threads-batch", "-tb", "--api-key-file"}
)  # fmt: skip
"""Options with a value that change no buffer. Some follow what is free of the host's memory, so no two starts have the
same."""


def those_for_devices(args: Sequence[str]) -> list[str]:
    """The arguments without those that cannot change what llama-server allocates."""
    words = iter(args)
    kept = []
    for word in words:
        if word in _OF_NO_DEVICE:
            next(words, None)
        else:
            kept.append(word)
    return kept
