"""What an installed llama-server is and can do, as data."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from llamad.frozen import dataclass
from llamad.planning.plan import BuildGates

Mode = Literal["completion", "embedding", "rerank"]
"""What a server is for, and so what it is asked in the warm-up."""


@dataclass(frozen=True)
class Capabilities:
    """A llama-server build, from its `--version` and `--help`.

    `flags` has every spelling that the build accepts (`-c`, `--ctx-size`, ...), removed ones left out.
    """

    path: str
    version: str
    """Text as printed: `0.7.0 (build 11669, commit Debian)`."""
    build: int
    """b-number; 0 where the build does not tell."""
    flags: frozenset[str]
    values: dict[str, frozenset[str]] = field(default_factory=dict)
    """Allowed words of a flag where the help lists them: `--load-mode` -> {auto, none, mmap, ...}."""
    gates: BuildGates = field(default_factory=BuildGates)
    key: str = ""
    """Identity of the binary and its libraries (paths, sizes, mtimes), for caches and learned values."""

    @property
    def words(self) -> str:
        """The build in a word: `b11669`, else its version."""
        return f"b{self.build}" if self.build else self.version

    def has(self, flag: str) -> bool:
        """Whether the build accepts this spelling."""
        return flag in self.flags
