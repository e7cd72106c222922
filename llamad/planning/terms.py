"""What the definition leaves open, and what it promises: everything settled before bytes are counted. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from llamad.config.definition import Placement
from llamad.frozen import dataclass
from llamad.gguf.facts import ModelFacts
from llamad.planning.backends import backend_of
from llamad.planning.cache import is_quantised
from llamad.planning.layers import Layer, ModelShape
from llamad.planning.refusal import PromiseError

CacheWord = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]

COMFORT_TOKENS = 32768
"""Under `auto`, other things give way before the context falls below this (or the trained length)."""
_AUTO_SLOTS = 4
LARGEST_AUTO_UBATCH_TOKENS = 512
_LEAST_UBATCH_TOKENS = 2
_AUTO_UBATCHES = (LARGEST_AUTO_UBATCH_TOKENS, 256)
_PIPELINE_BATCH = 2048
_QUANT_BLOCK = 32
# CUDA's flash attention (fattn.cu): head sizes where K and V are alike, and the pairs where they are not. For
# others llama.cpp falls back without a word, and the compute buffer grows tenfold.
CUDA_HEADS = frozenset({40, 64, 72, 80, 96, 112, 128, 256})
# Large heads need several queries to a key: a multiple of so many.
_CUDA_GROUPED: Mapping[tuple[int, int], int] = {(192, 128): 8, (320, 256): 32, (512, 512): 2, (576, 512): 2}
_NO_FLASH_ARCHITECTURES = frozenset({"grok"})


@dataclass(frozen=True)
class Variant:
    """One way to run that the definition allows; a list of them goes from the best to the last resort."""

    type_k: str
    type_v: str
    ubatch_tokens: int
    batch_tokens: int
    pipeline: bool = False
    """Several devices work on different micro-batches at once."""


@dataclass(frozen=True)
class Terms:
    """The definition's promises for one model on one backend."""

    context_tokens: int | None
    """A promise; None = as much as fits."""
    context_min_tokens: int
    context_limit_tokens: int
    """The trained length."""
    slots: int
    unified: bool
    flash_attention: bool
    variants: tuple[Variant, ...]
    layers_total: int
    tensor_split: tuple[float, ...] = ()
    """A promise; () = as it fits."""
    host_experts: int = 0
    """A promise: the experts of the first n blocks stay on the host."""
    host_ffn: int = 0
    """A promise: the dense feed-forward part of the first n blocks stays on the host."""
    full_windows: bool = False
    host_cache: bool = False
    guessed_tokens: int = 0
    """Tokens that are guessed ahead and checked at once in each slot."""
    rollback: int = 0
    """Recurrent states that each slot keeps beside its own for that."""
    context_most_tokens: int | None = None
    """A bound that is no promise: what the context was before; None = the trained length."""

    @property
    def largest_tokens(self) -> int:
        """What a context that is not promised may be at most; never less than the smallest."""
        bound = self.context_limit_tokens if self.context_most_tokens is None else self.context_most_tokens
        return max(self.context_min_tokens, min(bound, self.context_limit_tokens))

    @property
    def floor_tokens(self) -> int:
        """The smallest context that keeps every promise."""
        return self.context_tokens or self.context_min_tokens

    @property
    def comfort_tokens(self) -> int:
        """The context that other things are given up for."""
        return self.context_tokens or max(
            self.context_min_tokens, min(self.largest_tokens, COMFORT_TOKENS)
        )


def terms_of(
    facts: ModelFacts, shape: ModelShape, placement: Placement, backend: str, devices: int = 1
) -> Terms:
    """Settle what needs no bytes. Raises PromiseError where written values contradict the model."""
    flash = _flash_attention(facts, shape, placement, backend)
    trained = facts.n_ctx_train if facts.n_ctx_train > 0 else max(placement.context_min, 4096)
    context = None if placement.context == "auto" else placement.context
    if context is not None and facts.n_ctx_train > 0 and context > trained:
        raise PromiseError(
            f"context = {context} is above the length that the model was trained for",
            why=f"llama-server would use {trained} tokens of it and leave the rest empty",
            fix=f"write context = {trained} or less",
        )
    slots = _slots(shape, placement)
    return Terms(
        context_tokens=context,
        context_min_tokens=min(placement.context_min, trained),
        context_limit_tokens=trained,
        slots=slots,
        unified=slots > 1,
        flash_attention=flash,
        variants=_variants(
            shape,
            placement,
            flash=flash,
            pipeline=devices > 1 and backend_of(backend).pipelines and placement.kv_offload,
        ),
        layers_total=facts.n_layers + 1,
        tensor_split=tuple(share for share in placement.tensor_split if share > 0) if devices > 1 else (),
        host_experts=_host_experts(facts, placement),
        host_ffn=0 if placement.n_cpu_ffn == "auto" else min(placement.n_cpu_ffn, facts.n_layers),
        full_windows=placement.swa_full,
        host_cache=not placement.kv_offload,
    )


def _host_experts(facts: ModelFacts, placement: Placement) -> int:
    if not facts.n_expert:
        return 0
    if placement.cpu_moe:
        return facts.n_layers
    return 0 if placement.n_cpu_moe == "auto" else min(placement.n_cpu_moe, facts.n_layers)


def flash_usable(facts: ModelFacts, shape: ModelShape, backend: str) -> bool:
    """Whether flash attention works for the model's heads on a backend."""
    if facts.architecture in _NO_FLASH_ARCHITECTURES:
        return False
    if backend not in ("CUDA", "ROCm"):
        return True
    return all(_flash_on_cuda(layer) for layer in shape.kinds if layer.heads and layer.heads_kv)


def _flash_on_cuda(layer: Layer) -> bool:
    pair = (layer.head_k, layer.head_v)
    if group := _CUDA_GROUPED.get(pair):
        ratio = layer.heads // layer.heads_kv
        return ratio % group == 0 if group > 2 else ratio >= group
    return pair[0] == pair[1] and pair[0] in CUDA_HEADS


def _head_pairs(shape: ModelShape) -> set[tuple[int, int]]:
    """Sizes of keys and values of the layers that have attention."""
    return {(layer.head_k, layer.head_v) for layer in shape.kinds if layer.heads and layer.heads_kv}


def _heads(shape: ModelShape) -> str:
    """`128`, `192 and 128`, or several of these."""
    pairs = sorted(_head_pairs(shape))
    return ", ".join(f"{k}" if k == v else f"{k} and {v}" for k, v in pairs)


def _flash_attention(facts: ModelFacts, shape: ModelShape, placement: Placement, backend: str) -> bool:
    usable = flash_usable(facts, shape, backend)
    if placement.flash_attention is True and not usable:
        raise PromiseError(
            f"flash_attention = true cannot be kept on {backend}",
            why=f"it has none for {facts.architecture} with heads of {_heads(shape)}",
            fix='write flash_attention = "auto" or false',
        )
    return usable if placement.flash_attention == "auto" else placement.flash_attention


def _slots(shape: ModelShape, placement: Placement) -> int:
    """llama-server aborts (llama-context.cpp, an assert on n_outputs_max) where its slots do not fit a micro-batch."""
    most = min(_ubatches(placement))
    slots = placement.parallel if placement.parallel != "auto" else min(_auto_slots(shape), most)
    least = max(_LEAST_UBATCH_TOKENS, slots)
    if most < least:
        key = "ubatch" if placement.ubatch != "auto" else "batch"
        several = f" with parallel = {slots}" if slots > 1 else ""
        raise PromiseError(
            f"{key} = {most} cannot be kept{several}",
            why=f"llama-server needs a micro-batch of a token for each slot, and of {_LEAST_UBATCH_TOKENS} at least",
            fix=f"write {key} = {least} or more" + (f", or parallel = {most}" if most >= _LEAST_UBATCH_TOKENS else ""),
        )
    return slots


def _auto_slots(shape: ModelShape) -> int:
    """Slots that share one cache cost nothing, except where each has a window or a state of its own."""
    return 1 if shape.has_state or shape.proof == "unknown" else _AUTO_SLOTS


def _variants(
    shape: ModelShape, placement: Placement, *, flash: bool, pipeline: bool
) -> tuple[Variant, ...]:
    blocks = all(size % _QUANT_BLOCK == 0 for pair in _head_pairs(shape) for size in pair)
    written = placement.kv_cache
    if written != "auto" and is_quantised(written):
        if not flash:
            raise PromiseError(
                f'kv_cache = "{written}" cannot be kept',
                why="it needs flash attention, which this model cannot have here",
                fix='write kv_cache = "f16"',
            )
        if not blocks:
            raise PromiseError(
                f'kv_cache = "{written}" cannot be kept',
                why=f"heads of {_heads(shape)} are no multiples of its block of {_QUANT_BLOCK}",
                fix='write kv_cache = "f16"',
            )
    types: list[str] = [written] if written != "auto" else ["f16"]
    if written == "auto" and flash and blocks:
        types.append("q8_0")
    ubatches = _ubatches(placement)
    ways = [(kind, ubatches[0], pipeline) for kind in types]
    if pipeline:
        ways.append((types[-1], ubatches[0], False))
    ways += [(types[-1], ubatch, False) for ubatch in ubatches[1:]]
    return tuple(
        Variant(kind, kind, ubatch, _batch(placement, ubatch, pipelined=pipelined), pipelined)
        for kind, ubatch, pipelined in ways
    )


def _batch(placement: Placement, ubatch: int, *, pipelined: bool) -> int:
    """Tokens that are taken at once. A pipeline needs several micro-batches to work on; else they gain nothing."""
    if placement.batch != "auto":
        return max(placement.batch, ubatch)
    return max(ubatch, _PIPELINE_BATCH) if pipelined else ubatch


def _ubatches(placement: Placement) -> tuple[int, ...]:
    if placement.ubatch != "auto":
        return (placement.ubatch,)
    most = placement.batch if placement.batch != "auto" else _AUTO_UBATCHES[0]
    return tuple(dict.fromkeys(min(ubatch, most) for ubatch in _AUTO_UBATCHES))
