"""Parts of layers as takes and drops, in the order of llama.cpp's graph builders (llama-graph.cpp). Pure.

Each function continues a tape behind the residual stream `site.residual` and returns what is the residual stream
then. Names are those of the graph where it has names.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamad.planning.graphs.tape import Block, Tape
from llamad.planning.layers import Layer, ModelShape


@dataclass(slots=True)
class Site:
    """Where a graph is: the layer that comes, and what of earlier layers is still alive."""

    shape: ModelShape
    layer: Layer
    residual: Block
    sequences: int
    scratch_bytes: int = 0
    """f16 copies of this layer's cache, behind the result of its attention."""
    rotated: bool = False
    """Queries, keys and values are rotated before they meet a quantised cache."""
    copied: tuple[int, int] = (0, 0)
    """Bytes of the experts' matrices (up or gate, down) that are copied from the host to compute with them."""
    experts_elsewhere: bool = False
    carried: tuple[Block, ...] = ()
    """Results of earlier layers for this one: its states, already fetched."""
    fetch_bytes: int = 0
    """The shifting state that this layer fetches for a later one; 0 = none."""

    def number(self, key: str, otherwise: int = 0) -> int:
        """A scalar of the header."""
        return self.shape.numbers.get(key, otherwise)

    def fetch(self, tape: Tape, *, routed: bool = False) -> None:
        """Fetch for a later layer, where the builder has expanded the graph for the last time in this one.

        `routed`: that is behind the experts, if it has some.
        """
        if self.fetch_bytes and routed == (self.layer.experts_used > 0):
            self.carried = (tape.take_bytes(self.fetch_bytes),)

    def add(self, tape: Tape, result: Block, *, in_result: bool = True) -> Block:
        """Add to the residual stream: in the place of the result, or of the stream."""
        if in_result:
            tape.drop(self.residual)
            self.residual = result
        else:
            tape.drop(result)
        return self.residual


def attention(
    tape: Tape,
    site: Site,
    *,
    copied: bool = True,
    keys_last: bool = True,
    gated: bool = False,
    in_result: bool = True,
) -> None:
    """Grouped-query attention. `copied`: queries and keys are normed or rotated by position in a new place.

    `keys_last`: values are computed before the keys (where the builder keeps the order of the graph's expansion).
    `gated`: the query projection has a gate beside each head.
    """
    out, full = attended(tape, site, copied=copied, keys_last=keys_last, gated=gated)
    out_width = site.layer.heads * site.layer.head_v
    out = unrotated(tape, site, out)
    if full:
        gate = tape.take(out_width)
        tape.drop(full, out)
        out = gate
    result = tape.take(site.shape.embd)
    tape.drop(out)
    site.add(tape, result, in_result=in_result)


def attended(
    tape: Tape, site: Site, *, copied: bool = True, keys_last: bool = True, gated: bool = False
) -> tuple[Block, Block | None]:
    """Attention up to its result, not yet projected; and the projection that has the gate in it."""
    layer = site.layer
    norm = tape.take(site.shape.embd)
    queries, full = _queries(tape, site, copied=copied, gated=gated)
    if keys_last:
        values = _rotated(tape, site, tape.take(layer.v_width), layer.v_width)
        keys = tape.take(layer.k_width)
        tape.drop(norm)
        keys = _moved(tape, keys, layer.k_width) if copied else keys
        keys = _rotated(tape, site, keys, layer.k_width)
        tape.drop(keys, values)
    else:
        keys = tape.take(layer.k_width)
        keys = _moved(tape, keys, layer.k_width) if copied else keys
        keys = _rotated(tape, site, keys, layer.k_width)
        values = tape.take(layer.v_width)
        tape.drop(norm)
        tape.drop(keys, _rotated(tape, site, values, layer.v_width))
    return _attended(tape, site, queries, layer.heads * layer.head_v), full


def unrotated(tape: Tape, site: Site, out: Block) -> Block:
    """The result of an attention over rotated values, turned back."""
    return _rotated(tape, site, out, site.layer.heads * site.layer.head_v)


def _queries(tape: Tape, site: Site, *, copied: bool, gated: bool) -> tuple[Block, Block | None]:
    width = site.layer.query_width
    full = tape.take(2 * width if gated else width)
    if gated:
        copied = False
    queries = tape.take(width) if gated else full
    queries = _moved(tape, queries, width) if copied else queries
    return _rotated(tape, site, queries, width), full if gated else None


def _moved(tape: Tape, block: Block, width: int) -> Block:
    moved = tape.take(width)
    tape.drop(block)
    return moved


def _rotated(tape: Tape, site: Site, block: Block, width: int) -> Block:
    return _moved(tape, block, width) if site.rotated else block


def _attended(tape: Tape, site: Site, queries: Block, width: int) -> Block:
    out = tape.take_scratched(width, site.scratch_bytes)
    tape.drop(queries)
    site.fetch(tape)
    return out


def latent(tape: Tape, site: Site, *, positions: bool = True) -> None:
    """Latent attention (MLA) with absorbed projections. `positions`: a part of each head is rotated by position."""
    embd, heads = site.shape.embd, site.layer.heads
    rank, rope = site.number("attention.kv_lora_rank"), site.number("rope.dimension_count")
    head, value = site.number("attention.key_length_mla"), site.number("attention.value_length_mla")
    norm = tape.take(embd)
    compressed = site.number("attention.q_lora_rank")
    inner = tape.take(compressed) if compressed else None
    projected = tape.take(heads * head)
    if inner:
        tape.drop(inner)
    absorbed = tape.take(heads * rank)
    if positions:
        projected = _moved(tape, projected, heads * rope)
    queries = tape.take(heads * (rank + rope))
    tape.drop(absorbed, projected)
    latents = tape.take(rank + rope)
    tape.drop(norm)
    normed = tape.take(rank)
    if positions:
        latents = _moved(tape, latents, rope)
    keys = tape.take(rank + rope)
    tape.drop(normed, latents, keys)
    out = _attended(tape, site, queries, heads * rank)
    out = _moved(tape, out, heads * value)
    out = _moved(tape, out, heads * value)
    result = tape.take(embd)
    tape.drop(out)
    site.add(tape, result)


def dense(tape: Tape, site: Site, *, gated: bool = True, in_result: bool = True) -> None:
    """A feed-forward network."""
    norm = tape.take(site.shape.embd)
    result = _network(tape, site.layer.ff, site.shape.embd, norm, gated=gated)
    site.add(tape, result, in_result=in_result)


def _network(tape: Tape, width: int, embd: int, inputs: Block | None, *, gated: bool = True) -> Block:
    """Up, gate, their product, down. `inputs` are dropped when the last of them is read."""
    inner = tape.take(width)
    gate = tape.take(width) if gated else None
    if inputs:
        tape.drop(inputs)
    if gate:
        product = tape.take(width)
        tape.drop(inner, gate)
        inner = product
    result = tape.take(embd)
    tape.drop(inner)
    return result


@dataclass(frozen=True, slots=True)
class Routing:
    """How an architecture chooses experts and weighs them."""

    biased: bool = False
    normed: bool = True
    scaled: bool = False
    weighed_first: bool = False
    """llama4: tokens are weighed before the experts, not after."""
    shared_gate: str = ""
    """The experts that always run have a gate: "sigmoid" in place, or "ratio" (silu(x) / x)."""
    gated: bool = True


def experts(tape: Tape, site: Site, routing: Routing, *, in_result: bool = True) -> None:
    """A mixture of experts, and the experts that every token takes."""
    layer, embd = site.layer, site.shape.embd
    used, ff = layer.experts_used, layer.ff_expert
    norm = tape.take(embd)
    chosen, weights = _routed(tape, site, routing)
    if site.experts_elsewhere:
        _received(tape, site, routing, (norm, chosen, weights), in_result=in_result)
        return
    inputs = norm
    if routing.weighed_first:
        inputs = tape.take(embd * used)
        tape.drop(weights)
    inner = _with_copy(tape, site.copied[0], used * ff)
    gate = _with_copy(tape, site.copied[0], used * ff) if routing.gated else None
    if routing.weighed_first:
        tape.drop(inputs)
    elif not layer.ff:
        tape.drop(norm)
    if gate:
        product = tape.take(used * ff)
        tape.drop(inner, gate)
        inner = product
    down = _with_copy(tape, site.copied[1], used * embd)
    tape.drop(inner, chosen)
    if not routing.weighed_first:
        tape.drop(weights)
    result = tape.take(embd)
    tape.drop(down)
    site.fetch(tape, routed=True)
    if layer.ff:
        _shared(tape, site, routing, norm)
    elif routing.weighed_first:
        tape.drop(norm)
    site.add(tape, result, in_result=in_result)


def _received(
    tape: Tape, site: Site, routing: Routing, sent: tuple[Block, ...], *, in_result: bool
) -> None:
    """The sum of the experts comes from another device."""
    norm, *others = sent
    result = tape.take(site.shape.embd)
    tape.drop(*others)
    site.fetch(tape, routed=True)
    if site.layer.ff:
        _shared(tape, site, routing, norm)
    else:
        tape.drop(norm)
    site.add(tape, result, in_result=in_result)


def _with_copy(tape: Tape, copied_bytes: int, width: int) -> Block:
    """A product with a matrix that is copied here first, or is here already."""
    copy = tape.take_bytes(copied_bytes) if copied_bytes else None
    block = tape.take(width)
    if copy:
        tape.drop(copy)
    return block


def _routed(tape: Tape, site: Site, routing: Routing) -> tuple[Block, Block]:
    """Which experts each token takes, and their weights."""
    count, used = site.number("expert_count"), site.layer.experts_used
    probabilities = tape.take(count)
    ranked = tape.take(count) if routing.biased or routing.weighed_first else None
    if ranked and routing.weighed_first:
        probabilities, ranked = ranked, probabilities
    chosen = tape.take(count)
    if ranked:
        tape.drop(ranked)
    weights = tape.take(used)
    tape.drop(probabilities)
    if routing.normed:
        total = tape.take(1)
        normed = tape.take(used)
        tape.drop(weights, total)
        weights = normed
    if routing.scaled:
        weights = _moved(tape, weights, used)
    return chosen, weights


def _shared(tape: Tape, site: Site, routing: Routing, norm: Block) -> None:
    embd = site.shape.embd
    if not routing.shared_gate:
        tape.drop(_network(tape, site.layer.ff, embd, norm, gated=routing.gated))
        return
    result = _network(tape, site.layer.ff, embd, None)
    gate = tape.take(1)
    tape.drop(norm)
    if routing.shared_gate == "ratio":
        gate = _moved(tape, gate, 1)
    tape.drop(gate, result)
