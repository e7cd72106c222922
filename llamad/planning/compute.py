"""Compute buffers by closed formula: what llama.cpp reserves for its worst micro-batch. Pure, no search.

The peak of the graph is in the feed-forward part, in the attention (or what a recurrent layer does instead), or in
the logits, on top of inputs that live through all of it (the attention masks above all). With flash attention
nothing grows with the square of anything. What a layer keeps alive is in `graphs`; here are the inputs, the logits,
and what the place of a device adds: the first one gets the embeddings, a pipeline keeps four copies of every input,
layers on the host are computed with copies of their weights.

u = tokens of a micro-batch, n = cells of a stream, E = width of the model; activations are f32.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamad.planning.cache import is_quantised, row_bytes
from llamad.planning.choice import Choice
from llamad.planning.layers import Layer, ModelShape
from llamad.planning.plan import BuildGates
from llamad.units import MIB

if TYPE_CHECKING:
    from llamad.planning.graphs.hosted import Kept
    from llamad.planning.graphs.replay import Replay

_F32 = 4
_F16 = 2
_INDEX_SIZE = 8
# Token ids, positions, cell indexes and output ids of one token: 26 to 40 bytes were seen.
_INDEX_BYTES = 48
_POSITION_BYTES = 4
_VALUES_ROTATION = _F32 * 64 * 64
_JOINT = frozenset({"phi3", "gptneox", "falcon"})
_SCANNED = frozenset({"mamba", "mamba2", "granitehybrid", "nemotron_h", "falcon-h1", "jamba"})
_SECTIONED = frozenset({"qwen35", "qwen35moe"})
_PIPELINE_COPIES = 4  # GGML_SCHED_MAX_COPIES
# Copies of activations that cross into a device, in micro-batches of E: measured on build 11669, see tests/data.
_PIPELINE_FIRST = 12
_PIPELINE_LATER = 9


@dataclass(frozen=True, slots=True)
class Place:
    """What a device's place in the model adds to its compute buffer."""

    embeds: bool = True
    """The embeddings of the input come here; else only what the layers before computed elsewhere."""
    copies: bool = False
    """A pipeline over several devices."""
    copied_bytes: int = 0
    """The largest matrix that is copied here from the host to compute with it."""
    copied_kinds: frozenset[Layer] = frozenset()
    """Layers whose caches are on the host and copied here, one at a time, for their attention."""
    hosted: tuple[Kept, ...] = ()
    """The same layers in their order, with their matrices, if the copies are known one by one."""
    own: tuple[Layer, ...] = ()
    """Then also its own layers in their order."""
    scratch: bool = False
    """The backend copies a cache that is not f16 to f16 inside this buffer."""
    outputs: bool = True
    """It computes the logits."""


def device_compute_bytes(
    shape: ModelShape, kinds: Collection[Layer], choice: Choice, gates: BuildGates, place: Place
) -> int:
    """The compute buffer of a device that holds layers of these kinds (none: only the output)."""
    if place.hosted:
        return _bounded(shape, _hosted_bytes(shape, choice, gates, place))
    if shape.replay and choice.flash_attention and (not place.copied_bytes or any(shape.expert_matrices)):
        replayed = _replayed_bytes(shape, shape.replay, kinds, choice, gates, place)
        return _bounded(shape, replayed + _rollback_bytes(kinds, choice))
    extra = shape.embd if gates.mixed_inputs else 0
    if not place.embeds:
        extra = -shape.embd
    graph = _graph_bytes(shape, kinds, choice, gates, extra=extra, place=place)
    graph += _rollback_bytes(kinds, choice)
    logits = _logits_bytes(shape, choice, gates) if place.outputs else 0
    if place.outputs and choice.guessed_tokens:
        logits = max(logits, _checked_bytes(shape, kinds, choice, gates, place))
    return _bounded(shape, max(graph, logits))


def _replayed_bytes(
    shape: ModelShape, replay: Replay, kinds: Collection[Layer], choice: Choice, gates: BuildGates, place: Place
) -> int:
    """The graph's allocations one by one: exact where nothing is copied from the host."""
    from llamad.planning.graphs.replay import Run, padded_tokens  # only for a model that has it

    rotation = 0 if "attention.key_length_mla" in shape.numbers else _rotation_bytes(shape, choice)
    kinds = place.copied_kinds.union(kinds)
    run = Run(
        kinds=kinds,
        tokens=padded_tokens(choice),
        sequences=choice.slots,
        outputs=_output_rows(choice, gates) if place.outputs else 0,
        embeds=place.embeds,
        copies=_PIPELINE_COPIES if place.copies else 1,
        mixed=gates.mixed_inputs,
        rotated=rotation > 0,
        scratches=tuple((kind, _beside_attention_bytes(kind, choice, gates, place)) for kind in kinds),
        copied=shape.expert_matrices if place.copied_bytes else (0, 0),
        experts_elsewhere=choice.host_experts > 0 and not place.embeds,
    )
    with_masks, behind = replay.heights(run)
    masks = run.copies * (_mask_bytes(shape, run.tokens, kinds, choice, gates) + rotation)
    largest = max(with_masks + masks, behind + (masks if place.copies else rotation))
    return largest + (_split_hole_bytes(shape, run.tokens, choice, place) if any(run.copied) else 0)


def _hosted_bytes(shape: ModelShape, choice: Choice, gates: BuildGates, place: Place) -> int:
    """The allocations one by one, copies of the host's matrices, caches and inputs among them."""
    from llamad.planning.graphs.hosted import HostedRun, height, program_of
    from llamad.planning.graphs.replay import padded_tokens

    program = program_of(shape)
    assert program
    tokens = padded_tokens(choice)
    layers = [kept.layer for kept in place.hosted] + list(place.own)
    kinds = dict.fromkeys(layers)
    rotation = 0 if "attention.key_length_mla" in shape.numbers else _rotation_bytes(shape, choice)
    inputs = {
        "positions": tokens * _position_bytes(shape),
        "rotation of keys": max(0, rotation - _VALUES_ROTATION),
        "rotation of values": min(rotation, _VALUES_ROTATION),
        "indexes": tokens * 2 * _INDEX_SIZE,
    }
    if frequencies := place.hosted[0].matrices.get("rope_freqs", 0):
        inputs["frequencies"] = frequencies
    mask_size = _F16 if gates.mask_f16 else _F16 + _F32
    for kind in kinds:
        if kind.heads:
            inputs[f"mask {kind.window}"] = mask_size * tokens * choice.window_cells(kind.window)
    run = HostedRun(
        kept=place.hosted,
        own=place.own,
        tokens=tokens,
        sequences=choice.slots,
        outputs=_output_rows(choice, gates) if place.outputs else 0,
        mixed=gates.mixed_inputs,
        rotated=rotation > 0,
        scratches={
            kind: scratch_bytes(kind, choice) if place.scratch and gates.scratch_in_graph else 0 for kind in kinds
        },
        latent_scratch_bytes=_latent_scratch_bytes(shape, choice) if place.scratch and gates.scratch_in_graph else 0,
        caches={kind: _cache_copies(kind, choice, padded=place.scratch) for kind in kinds},
        inputs=inputs,
    )
    return height(shape, program, run)


def _position_bytes(shape: ModelShape) -> int:
    """Of one token: four positions if its rotation has sections."""
    return 4 * _POSITION_BYTES if shape.architecture in _SECTIONED else _POSITION_BYTES


def _latent_scratch_bytes(shape: ModelShape, choice: Choice) -> int:
    if choice.type_k == "f16":
        return 0
    return _F16 * choice.cells * shape.numbers.get("attention.kv_lora_rank", 0)


def _cache_copies(layer: Layer, choice: Choice, *, padded: bool) -> tuple[int, int]:
    """`padded`: as CUDA does, which fills up the last row of a head to 512 elements where they are quantised."""
    cells = choice.window_cells(layer.window) * choice.streams
    sizes = []
    for kind, width, head in (
        (choice.type_k, layer.k_width, layer.head_k),
        (choice.type_v, layer.v_width, layer.head_v),
    ):
        extra = row_bytes(kind, -head % 512) if padded and is_quantised(kind) else 0
        sizes.append(row_bytes(kind, width) * cells + extra if width else 0)
    if layer.k_width and not layer.v_width:
        sizes[1] = sizes[0]  # read from the keys' rows, which are copied whole once more
    return sizes[0], sizes[1]


def _split_hole_bytes(shape: ModelShape, tokens: int, choice: Choice, place: Place) -> int:
    """What inputs cost that come late, between copies of matrices: they split the hole that one copy leaves.

    The masks of a kind of attention come before its first layer. If that is behind layers with experts, they lie where
    the copy for the next layer would, all but the result of the experts above it; small masks lie where the embeddings
    were. A bound with layers on the host, and where the attention needs more than that hole.
    """
    largest = max(shape.expert_matrices)
    if not has_late_masks(shape):
        # Copies of caches split it as well: a bound.
        caches = max((copied_cache_bytes(kind, choice) for kind in place.copied_kinds), default=0)
        scratch = largest_scratch_bytes(shape, choice) if place.scratch and caches else 0
        return min(largest, caches) + min(largest, scratch)
    if 4 * _F16 * choice.stream_cells <= 3 * _F32 * shape.embd and not place.copied_kinds:
        return 0
    if place.copied_kinds or (place.scratch and largest_scratch_bytes(shape, choice) > largest):
        return largest
    results = _F32 * tokens * shape.embd * max(layer.experts_used for layer in shape.kinds)
    return max(0, largest - results)


def has_late_masks(shape: ModelShape) -> bool:
    """Whether a kind of attention comes first behind a layer with experts."""
    first = next((index for index, layer in enumerate(shape.layers) if layer.experts_used), 0)
    windows = {layer.window for layer in shape.layers if layer.k_width}
    return windows != {layer.window for layer in shape.layers[: first + 1] if layer.k_width}


def _beside_attention_bytes(layer: Layer, choice: Choice, gates: BuildGates, place: Place) -> int:
    """f16 copies of a layer's cache, and the cache itself if it is copied from the host."""
    scratch = scratch_bytes(layer, choice) if place.scratch and gates.scratch_in_graph else 0
    return scratch + (copied_cache_bytes(layer, choice) if layer in place.copied_kinds else 0)


def _mask_bytes(shape: ModelShape, tokens: int, kinds: Collection[Layer], choice: Choice, gates: BuildGates) -> int:
    mask_size = _F16 if gates.mask_f16 else _F16 + _F32
    return mask_size * tokens * _mask_cells(shape, kinds, choice)


def cpu_compute_bytes(shape: ModelShape, choice: Choice, gates: BuildGates) -> int:
    """The one compute buffer of a run without a device: the inputs of the host are in it too."""
    kinds = frozenset(shape.kinds)
    graph = _graph_bytes(shape, kinds, choice, gates, extra=2 * shape.embd, place=Place())
    graph += _rollback_bytes(kinds, choice)
    logits = _logits_bytes(shape, choice, gates)
    if choice.guessed_tokens:
        checked = _checked_bytes(shape, kinds, choice, gates, Place())
        logits = max(logits, checked + _F32 * choice.step_tokens * shape.embd)
    return _bounded(shape, max(graph, logits))


def host_compute_bytes(shape: ModelShape, choice: Choice, gates: BuildGates) -> int:
    """The host's buffer beside devices that compute all layers: masks, embeddings, indexes."""
    u = choice.step_tokens
    rows = 4 if gates.mixed_inputs else 2
    copies = _PIPELINE_COPIES if choice.pipeline else 1
    embeddings = _F32 * u * (shape.embd * (rows + (6 if choice.pipeline else 0)) + shape.looked_up)
    mask_size = _F16 if choice.flash_attention and gates.mask_f16 else _F32
    masks = mask_size * u * _mask_cells(shape, shape.kinds, choice) * copies
    transposed = 0 if choice.flash_attention else _transposed_bytes(shape, shape.kinds, choice)
    return masks + embeddings + transposed + copies * (u * _INDEX_BYTES) + _rotation_bytes(shape, choice)


def hosted_copies_bytes(kept: Collection[Layer], shape: ModelShape, choice: Choice) -> int:
    """What the host copies from a device that computes layers of these kinds: to store and to scan. A bound.

    It scans states of its own layers itself, and gets a projection whole of which it needs a part.
    """
    if not shape.has_state and shape.architecture not in _JOINT:
        return 0
    u, largest = choice.step_tokens, 0
    inner, state = shape.numbers.get("ssm.inner_size", 0), shape.numbers.get("ssm.state_size", 0)
    wide = inner + 2 * shape.numbers.get("ssm.group_count", 0) * state
    for layer in kept:
        size = u * (layer.query_width + layer.k_width) if shape.architecture in _JOINT else 0
        if layer.recurrent and shape.architecture in _SCANNED:
            size += u * (3 * wide + 2 * inner) + choice.slots * (2 * layer.scan_state + layer.conv_state)
        elif layer.recurrent:
            size += u * max(wide, layer.heads * layer.head_k)
        largest = max(largest, size)
    return _F32 * largest


def output_bytes(shape: ModelShape, choice: Choice, gates: BuildGates) -> int:
    """The host's buffer for finished logits. llama-server's breakdown leaves it out."""
    return _F32 * _output_rows(choice, gates) * shape.vocab


def scratch_bytes(layer: Layer, choice: Choice) -> int:
    """f16 copies of one layer's cache, for the whole of it, where the cache has another type."""
    k_width, v_width = layer.k_width, layer.v_width
    if layer.shares:
        k_width, v_width = layer.heads_kv * layer.head_k, layer.heads_kv * layer.head_v
    width = (k_width if choice.type_k != "f16" else 0) + (v_width if choice.type_v != "f16" else 0)
    return _F16 * choice.window_cells(layer.window) * choice.streams * width


def borrowed_bytes(layer: Layer, choice: Choice) -> int:
    """Copies of a cache that a layer reads and another device holds: a bound, all layers of a device at once."""
    k_width, v_width = layer.heads_kv * layer.head_k, layer.heads_kv * layer.head_v
    rows = row_bytes(choice.type_k, k_width) + row_bytes(choice.type_v, v_width)
    copies = _PIPELINE_COPIES if choice.pipeline else 1
    return rows * choice.window_cells(layer.window) * choice.streams * copies


def largest_scratch_bytes(shape: ModelShape, choice: Choice) -> int:
    """The largest of all layers' scratch."""
    return max((scratch_bytes(layer, choice) for layer in shape.kinds), default=0)


def _graph_bytes(
    shape: ModelShape,
    kinds: Collection[Layer],
    choice: Choice,
    gates: BuildGates,
    *,
    extra: int,
    place: Place,
) -> int:
    u = choice.step_tokens
    copies = _PIPELINE_COPIES if place.copies else 1
    inputs = copies * (u * _INDEX_BYTES) + _rotation_bytes(shape, choice)
    if place.copies:
        inputs += _F32 * u * shape.embd * (_PIPELINE_FIRST if place.embeds else _PIPELINE_LATER)
        inputs += _F32 * u * shape.looked_up * shape.pipeline_copies
    if not choice.flash_attention:
        return inputs + _without_flash_bytes(shape, kinds, choice, extra, place)
    mask_size = _F16 if gates.mask_f16 else _F16 + _F32
    masks = mask_size * u * _mask_cells(shape, kinds, choice) * copies
    peaks = [_F32 * u * (2 * shape.embd + max(0, extra))]
    for layer in place.copied_kinds.union(kinds):
        scratch = scratch_bytes(layer, choice) if place.scratch and gates.scratch_in_graph else 0
        cache = copied_cache_bytes(layer, choice) if layer in place.copied_kinds else 0
        peaks += shape.peaks(shape, layer, choice, extra, scratch + cache)
        if place.copied_bytes:
            copied = place.copied_bytes * max(1, shape.kept_copies)
            if shape.kept_copies or (layer.experts_used and place.copied_bytes > cache):
                copied += cache  # they may not fit where the cache's copies were
            beside = scratch if shape.kept_copies else 0
            peaks += (peak + copied for peak in shape.peaks(shape, layer, choice, extra, beside))
    return inputs + masks + max(peaks)


def copied_cache_bytes(layer: Layer, choice: Choice) -> int:
    """The copy of a layer's cache that is on the host: its keys, its values, and once more the larger of both.

    A bound: the holes that the copies for one layer leave may not take those for the next, which depends on the
    order of everything between them. Without that the sum is exact.
    """
    sizes = (row_bytes(choice.type_k, layer.k_width), row_bytes(choice.type_v, layer.v_width))
    return (sum(sizes) + max(sizes)) * choice.window_cells(layer.window) * choice.streams


def _without_flash_bytes(
    shape: ModelShape, kinds: Collection[Layer], choice: Choice, extra: int, place: Place
) -> int:
    """Scores of every head at once, in f32, beside what the attention holds anyway."""
    u = choice.step_tokens
    step = _F32 * u
    largest = 0
    for layer in place.copied_kinds.union(kinds):
        cells = choice.window_cells(layer.window) if shape.caches else u
        scores = step * cells * layer.heads
        scores += copied_cache_bytes(layer, choice) if layer in place.copied_kinds else 0
        largest = max(largest, *shape.peaks(shape, layer, choice, extra, scores))
    copies = _PIPELINE_COPIES if place.copies else 1
    masks = step * _mask_cells(shape, kinds, choice) * copies
    return masks + copies * _transposed_bytes(shape, kinds, choice) + largest + place.copied_bytes


def _transposed_bytes(shape: ModelShape, kinds: Collection[Layer], choice: Choice) -> int:
    """Without flash attention values are written transposed, through indexes of 8 bytes, for each kind of cache."""
    if not shape.caches:
        return 0
    widest = max(layer.v_width for layer in shape.kinds)
    return (
        _INDEX_SIZE
        * choice.step_tokens
        * widest
        * len({bool(layer.window) for layer in kinds if layer.heads})
    )


def _mask_cells(shape: ModelShape, kinds: Collection[Layer], choice: Choice) -> int:
    """Cells in the rows of all masks: one for the layers that see everything, one for each window."""
    if not shape.caches:
        return choice.step_tokens * len({bool(layer.window) for layer in kinds})
    windows = {layer.window for layer in kinds if layer.k_width or layer.shares}
    return sum(choice.window_cells(window) for window in windows)


def _rotation_bytes(shape: ModelShape, choice: Choice) -> int:
    """Matrices that rotate keys and values before they are quantised (since b8619), for each kind of cache."""
    if choice.type_k in ("f16", "f32", "bf16"):
        return 0
    powers = (head & -head for head in shape.rotated_heads)
    return _F32 * sum(power * power + 64 * 64 for power in powers)


def _logits_bytes(shape: ModelShape, choice: Choice, gates: BuildGates) -> int:
    return _F32 * _output_rows(choice, gates) * (shape.vocab + shape.embd)


def _checked_bytes(
    shape: ModelShape, kinds: Collection[Layer], choice: Choice, gates: BuildGates, place: Place
) -> int:
    """The moment of the logits where guessed tokens are checked: more rows than find room in what is free by then.

    Within 2 MiB on five models of four architectures at two micro-batches (tests/data/planning).
    """
    copies = _PIPELINE_COPIES if place.copies else 1
    rows = min(_output_rows(choice, gates), choice.step_tokens)
    mask_size = _F16 if choice.flash_attention and gates.mask_f16 else _F16 + _F32
    masks = mask_size * choice.step_tokens * _mask_cells(shape, kinds, choice) * copies
    embeddings = _F32 * choice.step_tokens * shape.embd * (4 if gates.mixed_inputs else 3)
    indexes = copies * (choice.step_tokens * _INDEX_BYTES) + _rotation_bytes(shape, choice)
    return masks + embeddings + indexes + _F32 * rows * shape.vocab


def _rollback_bytes(kinds: Collection[Layer], choice: Choice) -> int:
    """Recurrent states that a layer writes for each guessed token, beside what it has alive without them. A bound."""
    if not choice.rollback:
        return 0
    state = max((layer.conv_state + layer.scan_state for layer in kinds), default=0)
    return _F32 * state * choice.slots * (1 + choice.rollback)


def _output_rows(choice: Choice, gates: BuildGates) -> int:
    return choice.output_rows if gates.outputs_limited else choice.ubatch_tokens


def _bounded(shape: ModelShape, computed_bytes: int) -> int:
    """Room for what is not proved: a fifth and 256 MiB more; without any form, half and 512 MiB."""
    if shape.proof == "proved":
        return computed_bytes
    if shape.proof == "bounded":
        return computed_bytes + computed_bytes // 5 + 256 * MIB
    return computed_bytes + computed_bytes // 2 + 512 * MIB
