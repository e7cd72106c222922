"""What a server holds beside the main model: projector, adapters, control vectors, and what guesses ahead. Pure data.

Nothing here is imported for a model that has none of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from llamad.frozen import dataclass
from llamad.gguf.beside import SideFile
from llamad.gguf.facts import ModelFacts
from llamad.planning.vision import BATCH_TOKENS

DRAFT_TOKENS = 3
"""llama-server's `--spec-draft-n-max`."""
# What each type that needs no model guesses at most, as of build 11669.
_NGRAM_TOKENS = {
    "ngram-simple": 48,
    "ngram-map-k": 48,
    "ngram-map-k4v": 48,
    "ngram-mod": 64,
    "ngram-cache": 8,
}
_ROLLS_BACK = frozenset({"draft-mtp", "draft-eagle3", "draft-dflash", "draft-dspark"})
# llama-arch.cpp, llm_arch_supports_rs_rollback: their recurrent states are kept once more for each guessed token.
_ROLLBACK_ARCHITECTURES = frozenset(
    {
        "kimi-k3", "qwen35", "qwen35moe", "qwen4exp", "deepseek4", "glm5-next", "nemotron_h", "nemotron_h_moe",
        "lfm2", "lfm2moe", "bailingmoe3",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Vision:
    """A projector."""

    file: SideFile
    offload: bool = True
    movable: bool = False
    """It may be put on the CPU where the device has no room; else its place is a promise."""
    device: str = "auto"
    """Name or UUID; `auto` = the first device of the plan."""
    image_max_tokens: int | None = None
    batch_tokens: int = BATCH_TOKENS


@dataclass(frozen=True)
class Draft:
    """What guesses tokens ahead."""

    types: tuple[str, ...]
    facts: ModelFacts | None = None
    """Of a model of its own."""
    tokens: int = DRAFT_TOKENS
    """The most that are guessed at once."""
    cache_type: str = "f16"
    ubatch_tokens: int | None = None
    layers: int | None = None
    """On the devices; None = all."""
    devices: tuple[str, ...] = ()
    """Names or UUIDs; () = those of the model."""
    host_experts: int = 0
    """The experts of the first n blocks stay on the host."""

    @property
    def multi_token(self) -> bool:
        """Whether blocks for multi-token prediction guess, the model's own or those of a file of their own."""
        return "draft-mtp" in self.types

    @property
    def has_context(self) -> bool:
        """Whether it has a cache and buffers of its own."""
        return self.facts is not None or self.multi_token

    def most_tokens(self, ngram_tokens: int | None = None) -> int:
        """Tokens of one guess at most, over all types. `ngram_tokens`: as written, for types without a model."""
        found = [self.tokens for kind in self.types if kind.startswith("draft-")]
        found += [ngram_tokens or _NGRAM_TOKENS[kind] for kind in self.types if kind in _NGRAM_TOKENS]
        return max(found, default=0)

    def rollback(self, architecture: str) -> int:
        """How many more recurrent states a sequence keeps, to go back to when a guess was wrong."""
        rolls = architecture in _ROLLBACK_ARCHITECTURES and not _ROLLS_BACK.isdisjoint(self.types)
        return self.tokens if rolls else 0


@dataclass(frozen=True)
class Extras:
    """Everything beside the model."""

    vision: Vision | None = None
    adapters: tuple[SideFile, ...] = ()
    control_vectors: tuple[SideFile, ...] = ()
    draft: Draft | None = None
    guessed_tokens: int = 0
    """Tokens that are checked at once in each slot, beside the one that is certain."""

    @property
    def fingerprints(self) -> Iterable[str]:
        """Of all files."""
        if self.vision:
            yield self.vision.file.fingerprint
        for file in (*self.adapters, *self.control_vectors):
            yield file.fingerprint
        if self.draft and self.draft.facts:
            yield self.draft.facts.fingerprint
