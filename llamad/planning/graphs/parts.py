"""Parts of layers as takes and drops, in the order of llama.cpp's graph builders (llama-graph.cpp). Pure.

Each function continues a tape behind the residual stream `site.residual` and returns what is the residual stream
then. Names are those of the graph where it has names.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamad.planning.graphs.site import NOTHING, Site
from llamad.planning.graphs.tape import Block, Tape

NORMED_WHOLE = frozenset({"olmo2"})
"""Architectures that norm all heads of queries and keys at once."""


def attention(
    tape: Tape,
    site: Site,
    *,
    copied: bool = True,
    keys_last: bool = True,
    gated: bool = False,
    in_result: bool = True,
    normed: bool = True,
) -> None:
    """Grouped-query attention. `copied`: queries and keys are normed or rotated by position in a new place.

    `keys_last`: values are computed before the keys (where the builder keeps the order of the graph's expansion).
    `gated`: the query projection has a gate beside each head. `normed`: what it reads is normed first.
    """
    out, full = attended(tape, site, copied=copied, keys_last=keys_last, gated=gated, normed=normed)
    out_width = site.layer.heads * site.layer.head_v
    if full:
        out = unrotated(tape, site, out)
        gate = tape.take(out_width)
        tape.drop(full, out)
        result = site.product(tape, "attn_output", site.shape.embd)
        tape.drop(gate)
    else:
        result = projected_attention(tape, site, out)
    site.small(tape, "attn_output_norm")
    site.small(tape, "post_attention_norm")
    site.add(tape, result, in_result=in_result)


def projected_attention(tape: Tape, site: Site, out: Block) -> Block:
    """The result of an attention, projected. The host's own comes with the matrix."""
    out = unrotated(tape, site, out)
    attends = site.host is not None and site.host.attends
    if attends:
        site.expect("attended", 4 * tape.rows * site.layer.heads * site.layer.head_v)
    result = site.product(tape, "attn_output", site.shape.embd)
    tape.drop(site.received("attended") if attends else out)
    return result


def attended(
    tape: Tape,
    site: Site,
    *,
    copied: bool = True,
    keys_last: bool = True,
    gated: bool = False,
    normed: bool = True,
) -> tuple[Block, Block | None]:
    """Attention up to its result, not yet projected; and the projection that has the gate in it."""
    norm = tape.take(site.shape.embd) if normed else NOTHING
    queries, full = projected(tape, site, norm, copied=copied, keys_last=keys_last, gated=gated)
    return attended_to(tape, site, queries, site.layer.heads * site.layer.head_v), full


def projected(
    tape: Tape, site: Site, norm: Block, *, copied: bool = True, keys_last: bool = True, gated: bool = False
) -> tuple[Block, Block | None]:
    """Queries, while keys and values go into the cache; and the projection that has the gate in it.

    `norm` is dropped at its last use.
    """
    layer = site.layer
    copied = copied and (site.host is None or site.host.turns)
    following = "attn_v" if keys_last else "attn_k"
    queries, full = _queries(tape, site, following, copied=copied, gated=gated)
    if keys_last:
        values = rotated(tape, site, site.product(tape, "attn_v", layer.v_width), layer.v_width, "values")
        keys = site.product(tape, "attn_k", layer.k_width)
        tape.drop(norm)
        keys = turned(tape, site, keys, "attn_k", "", copied=copied)
        tape.drop(keys, values)
    else:
        keys = site.product(tape, "attn_k", layer.k_width)
        keys = turned(tape, site, keys, "attn_k", "attn_v", copied=copied)
        values = site.product(tape, "attn_v", layer.v_width)
        tape.drop(norm)
        tape.drop(keys, rotated(tape, site, values, layer.v_width, "values"))
    return queries, full


def jointly_attended(tape: Tape, site: Site) -> None:
    """As `attention`, from one matrix for queries, keys and values."""
    norm = tape.take(site.shape.embd)
    queries = jointly_projected(tape, site, norm)
    out = unrotated(tape, site, attended_to(tape, site, queries, site.layer.heads * site.layer.head_v))
    result = site.product(tape, "attn_output", site.shape.embd)
    tape.drop(out)
    site.add(tape, result)


def jointly_projected(tape: Tape, site: Site, norm: Block) -> Block:
    """As `projected`, from one matrix for queries, keys and values."""
    layer = site.layer
    joint = site.product(tape, "attn_qkv", layer.query_width + layer.k_width + layer.v_width)
    tape.drop(norm)
    site.small(tape, "attn_qkv.bias")
    site.turn(tape)
    queries = rotated(tape, site, tape.take(layer.query_width), layer.query_width, "keys")
    site.read("rotation of values")
    values = _moved(tape, tape.take(layer.v_width), layer.v_width) if site.rotated else NOTHING
    keys = tape.take(layer.k_width)
    if site.rotated:
        tape.drop(joint)
        tape.drop(rotated(tape, site, keys, layer.k_width, "keys"), values)
    else:
        tape.drop(keys, joint)
    return queries


def unrotated(tape: Tape, site: Site, out: Block) -> Block:
    """The result of an attention over rotated values, turned back."""
    return rotated(tape, site, out, site.layer.heads * site.layer.head_v, "values")


def _queries(
    tape: Tape, site: Site, following: str, *, copied: bool, gated: bool
) -> tuple[Block, Block | None]:
    width = site.layer.query_width
    full = site.product(tape, "attn_q", 2 * width if gated else width)
    if not gated:
        return turned(tape, site, full, "attn_q", following, copied=copied), None
    queries = tape.take(width)
    site.small(tape, "attn_q_norm")
    site.turn(tape, following)
    return rotated(tape, site, queries, width, "keys"), full


def turned(
    tape: Tape, site: Site, block: Block, name: str, following: str, *, copied: bool
) -> Block:
    """Queries or keys, normed and rotated by position: that is in a new place if it is done a head at a time.

    `following`: the matrix whose product comes next.
    """
    width = site.layer.query_width if name == "attn_q" else site.layer.k_width
    site.small(tape, name + ".bias")
    a_head = site.has(name + "_norm") and site.shape.architecture not in NORMED_WHOLE
    if a_head and copied:
        block = _moved(tape, block, width)
    site.small(tape, name + "_norm")
    if copied:
        site.turn(tape, following)
        block = block if a_head else _moved(tape, block, width)
    return rotated(tape, site, block, width, "keys")


def _moved(tape: Tape, block: Block, width: int) -> Block:
    moved = tape.take(width)
    tape.drop(block)
    return moved


def rotated(tape: Tape, site: Site, block: Block, width: int, kind: str) -> Block:
    site.read(f"rotation of {kind}")
    return _moved(tape, block, width) if site.rotated and block[1] else block


def attended_to(tape: Tape, site: Site, queries: Block, width: int) -> Block:
    if site.host and site.host.attends:
        tape.drop(queries)
        return NOTHING
    copies = _copied_caches(tape, site)
    out = tape.take_scratched(width, site.scratch_bytes)
    tape.drop(queries, *copies)
    site.fetch(tape)
    return out


def _copied_caches(tape: Tape, site: Site) -> list[Block]:
    """Behind the host's own operation that stores keys and values: copies of the cache, and the masks."""
    host = site.host
    copies = [tape.take_bytes(size) for size in host.caches if size] if host else []
    if host and copies:
        host.split(tape, "cache")
    site.read(f"mask {site.layer.window}")
    return copies


def latent(tape: Tape, site: Site, *, positions: bool = True) -> None:
    """Latent attention (MLA) with absorbed projections. `positions`: a part of each head is rotated by position."""
    embd, heads = site.shape.embd, site.layer.heads
    rank, rope = site.number("attention.kv_lora_rank"), site.number("rope.dimension_count")
    head, value = site.number("attention.key_length_mla"), site.number("attention.value_length_mla")
    norm = tape.take(embd)
    compressed = site.number("attention.q_lora_rank")
    inner = site.product(tape, "attn_q_a", compressed) if compressed else None
    site.small(tape, "attn_q_a_norm")
    projected = site.product(tape, "attn_q_b" if inner else "attn_q", heads * head)
    if inner:
        tape.drop(inner)
    absorbed = site.product(tape, "attn_k_b", heads * rank)
    site.read("positions")
    if positions:
        projected = _moved(tape, projected, heads * rope)
    queries = tape.take(heads * (rank + rope))
    tape.drop(absorbed, projected)
    latents = site.product(tape, "attn_kv_a_mqa", rank + rope)
    tape.drop(norm)
    normed = tape.take(rank)
    if positions:
        latents = _moved(tape, latents, rope)
    keys = tape.take(rank + rope)
    tape.drop(normed, latents, keys)
    out = attended_to(tape, site, queries, heads * rank)
    unpacked = site.product(tape, "attn_v_b", heads * value)
    tape.drop(out)
    out = _moved(tape, unpacked, heads * value)
    result = site.product(tape, "attn_output", embd)
    tape.drop(out)
    site.add(tape, result)


def dense(
    tape: Tape,
    site: Site,
    *,
    gated: bool = True,
    in_result: bool = True,
    normed: bool = True,
    joint: bool = False,
) -> None:
    """A feed-forward network. `normed`: what it reads is normed first. `joint`: gate and up are one matrix."""
    norm = tape.take(site.shape.embd) if normed else NOTHING
    if joint:
        result = _joint_network(tape, site, site.layer.ff, norm)
    else:
        result = _network(tape, site, site.layer.ff, norm, gated=gated)
    site.small(tape, "post_ffw_norm")
    site.add(tape, result, in_result=in_result)


def _network(
    tape: Tape, site: Site, width: int, inputs: Block | None, *, gated: bool = True, suffix: str = ""
) -> Block:
    """Up, gate, their product, down. `inputs` are dropped when the last of them is read."""
    gate = site.product(tape, "ffn_gate" + suffix, width) if gated else None
    inner = site.product(tape, "ffn_up" + suffix, width)
    if inputs:
        tape.drop(inputs)
    if gate:
        product = tape.take(width)
        tape.drop(inner, gate)
        inner = product
    result = site.product(tape, "ffn_down" + suffix, site.shape.embd)
    tape.drop(inner)
    return result


def _joint_network(tape: Tape, site: Site, width: int, inputs: Block) -> Block:
    both = site.product(tape, "ffn_up", 2 * width)
    tape.drop(inputs)
    inner = tape.take(width)
    tape.drop(both)
    result = site.product(tape, "ffn_down", site.shape.embd)
    tape.drop(inner)
    return result


def parallel(
    tape: Tape,
    site: Site,
    *,
    gated: bool = True,
    joint: bool = False,
    keys_last: bool = True,
    windows_turn: bool = False,
    normed_apart: bool | None = False,
    residual_last: bool = False,
) -> None:
    """Attention and feed-forward read the same stream; the attention's result is projected behind both.

    `joint`: queries, keys and values are one product. `normed_apart`: the feed-forward part has a norm of its own;
    None = if there is more than one head of keys. `windows_turn`: only layers with a window rotate by position.
    `residual_last`: the stream is added last.
    """
    embd, layer = site.shape.embd, site.layer
    apart = layer.heads_kv > 1 if normed_apart is None else normed_apart
    norm = tape.take(embd)
    kept = NOTHING if apart else norm
    if joint:
        queries = jointly_projected(tape, site, norm if apart else NOTHING)
    else:
        copied = layer.window > 0 or not windows_turn
        queries, _ = projected(tape, site, norm if apart else NOTHING, copied=copied, keys_last=keys_last)
    out = attended_to(tape, site, queries, layer.heads * layer.head_v)
    if apart:
        kept = tape.take(embd)
    result = _network(tape, site, layer.ff, kept, gated=gated)
    if not residual_last:
        tape.drop(site.residual)
    out = unrotated(tape, site, out)
    projection = site.product(tape, "attn_output", embd)
    tape.drop(out, projection)
    if residual_last:
        tape.drop(site.residual)
    site.residual = result


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
    inner = site.product(tape, "ffn_up_exps", used * ff)
    gate = site.product(tape, "ffn_gate_exps", used * ff) if routing.gated else None
    if routing.weighed_first:
        tape.drop(inputs)
    elif not layer.ff:
        tape.drop(norm)
    if gate:
        product = tape.take(used * ff)
        tape.drop(inner, gate)
        inner = product
    down = site.product(tape, "ffn_down_exps", used * embd)
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


def _routed(tape: Tape, site: Site, routing: Routing) -> tuple[Block, Block]:
    """Which experts each token takes, and their weights."""
    count, used = site.number("expert_count"), site.layer.experts_used
    probabilities = site.product(tape, "ffn_gate_inp", count)
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
    if not routing.shared_gate:
        tape.drop(_network(tape, site, site.layer.ff, norm, gated=routing.gated, suffix="_shexp"))
        return
    result = _network(tape, site, site.layer.ff, None, suffix="_shexp")
    gate = site.product(tape, "ffn_gate_inp_shexp", 1)
    tape.drop(norm)
    if routing.shared_gate == "ratio":
        gate = _moved(tape, gate, 1)
    tape.drop(gate, result)
