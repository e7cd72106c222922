"""Recurrent mixers as takes and drops: state-space models, delta nets, short convolutions, RWKV. Pure.

In the order of llama.cpp's mamba-base.cpp, delta-net-base.cpp, qwen35.cpp, kimi-linear.cpp, lfm2.cpp, rwkv7.cpp. A
state is kept a sequence: `sequences` of them are fetched, and tokens are split evenly over the sequences.
"""

from __future__ import annotations

from llamad.planning.graphs.parts import attended, projected_attention
from llamad.planning.graphs.site import NOTHING, Site
from llamad.planning.graphs.tape import Block, Tape

F32 = 4


def state_bytes(sequences: int, elements: int) -> int:
    """Bytes of one kind of state of all sequences."""
    return F32 * sequences * elements


def _expect_states(site: Site) -> None:
    """The host keeps the states of its layers: copies of them come with a matrix."""
    if site.hosted:
        site.expect("conv", state_bytes(site.sequences, site.layer.conv_state))


def _conv_state(tape: Tape, site: Site) -> Block:
    """The shifting state of this layer: fetched now unless an earlier layer did."""
    if site.hosted:
        return NOTHING
    carried, site.carried = site.carried, ()
    return carried[0] if carried else tape.take_bytes(state_bytes(site.sequences, site.layer.conv_state))


def _joined(tape: Tape, site: Site, width: int, kernel: int) -> Block:
    """Old columns before the new ones."""
    if site.hosted:
        old = site.received("conv")
        joined = tape.take_bytes(F32 * width * (tape.rows + (kernel - 1) * site.sequences))
        tape.drop(old)
        return joined
    return tape.take_bytes(F32 * width * (tape.rows + (kernel - 1) * site.sequences))


def _spare_states(tape: Tape, site: Site) -> None:
    """States of sequences that are not in this batch are copied through a place of their own."""
    tape.drop(tape.take_bytes(state_bytes(site.sequences - 1, site.layer.scan_state)))


def mamba1(tape: Tape, site: Site, *, inner_norms: bool = False) -> None:
    """A state-space model with one decay a channel."""
    inner, state = site.number("ssm.inner_size"), site.number("ssm.state_size")
    rank, kernel = site.number("ssm.time_step_rank"), site.number("ssm.conv_kernel")
    _expect_states(site)
    old = _conv_state(tape, site)
    norm = tape.take(site.shape.embd)
    both = site.product(tape, "ssm_in", 2 * inner)
    tape.drop(norm)
    joined = _joined(tape, site, inner, kernel)
    tape.drop(old)
    mixed = tape.take(inner)
    tape.drop(joined)
    projected = site.product(tape, "ssm_x", rank + 2 * state)
    step = tape.take(rank)
    steps = site.product(tape, "ssm_dt", inner)
    tape.drop(step)
    used = [steps, projected]
    if inner_norms:
        used = [steps, tape.take(state), tape.take(state)]
        tape.drop(projected)
    if site.hosted:
        tape.drop(*used)
        scanned = _scanned_by_host(tape, site, inner)
        gate = tape.take(inner)
        tape.drop(both, mixed)
        mixed = scanned
    else:
        scanned = tape.take_bytes(F32 * inner * (tape.rows + state * site.sequences))
        tape.drop(*used)
        _spare_states(tape, site)
        site.fetch(tape)
        gate = tape.take(inner)
        tape.drop(both, scanned)
    product = tape.take(inner)
    tape.drop(gate, mixed)
    result = site.product(tape, "ssm_out", site.shape.embd)
    tape.drop(product)
    site.add(tape, result, in_result=False)


def _scanned_by_host(tape: Tape, site: Site, inner: int) -> Block:
    """The host scans its own states: the result comes with the next vector."""
    scanned = tape.take(inner)
    site.small(tape, "ssm_d")
    return scanned


def mamba2(tape: Tape, site: Site) -> None:
    """A state-space model with one decay a head."""
    result, _ = _scanned(tape, site, _conv_state(tape, site))
    site.add(tape, result)


def attention_beside_mamba(tape: Tape, site: Site) -> None:
    """Falcon-H1: both from the same input; the attention is projected after the scan."""
    out, _ = attended(tape, site)
    old = _conv_state(tape, site)
    result, projected = _scanned(tape, site, old, beside=out, normed=False)
    tape.drop(result)
    site.add(tape, projected)


def _scanned(
    tape: Tape, site: Site, old: Block, *, beside: Block = (0, 0), normed: bool = True
) -> tuple[Block, Block]:
    """The result of the mixer, and of the attention beside it."""
    inner, state = site.number("ssm.inner_size"), site.number("ssm.state_size")
    heads, groups = site.number("ssm.time_step_rank"), site.number("ssm.group_count", 1)
    wide = inner + 2 * groups * state
    _expect_states(site)
    if not normed and site.host and site.hosted:  # behind the host's attention: the split starts at the norm
        site.host.placed["ssm_in"] = tape.take_bytes(site.host.matrices["ssm_in"])
    norm = tape.take(site.shape.embd)
    projected = site.product(tape, "ssm_in", inner + wide + heads)
    tape.drop(norm)
    joined = _joined(tape, site, wide, site.number("ssm.conv_kernel"))
    tape.drop(old)
    mixed = tape.take(wide)
    tape.drop(joined)
    steps = tape.take(heads)
    if site.hosted:
        tape.drop(steps)
        scanned = NOTHING
    else:
        scanned = tape.take_bytes(F32 * inner * (tape.rows + state * site.sequences))
        tape.drop(steps)
        _spare_states(tape, site)
    if not normed:
        beside = projected_attention(tape, site, beside)
    else:
        site.fetch(tape)
    gate = NOTHING
    if site.hosted and not normed:
        gate = tape.take(inner)
        tape.drop(projected)
    if site.hosted:
        scanned = _scanned_by_host(tape, site, inner)
    if not gate[1]:
        gate = tape.take(inner)
        tape.drop(projected)
    skipped = tape.take(inner)
    tape.drop(mixed)
    if site.hosted:
        scanned, skipped = skipped, scanned
    tape.drop(scanned)
    product = tape.take(inner)
    tape.drop(gate, skipped)
    if normed:
        gate = tape.take(inner)
        tape.drop(product)
        product = gate
    result = site.product(tape, "ssm_out", site.shape.embd)
    tape.drop(product)
    return result, beside


def delta_net(tape: Tape, site: Site, *, repeated: bool = False) -> None:
    """A gated delta net (qwen3next, qwen35). `repeated`: queries and keys are widened to the heads of the values."""
    values, state = site.number("ssm.inner_size"), site.number("ssm.state_size")
    heads, keys = site.number("ssm.time_step_rank"), state * site.number("ssm.group_count")
    wide = values + 2 * keys
    _expect_states(site)
    norm = tape.take(site.shape.embd)
    old = _conv_state(tape, site)
    projected = site.product(tape, "attn_qkv", wide)
    joined = _joined(tape, site, wide, site.number("ssm.conv_kernel"))
    tape.drop(old, projected)
    states = _scan_states(tape, site)
    mixed = tape.take(wide)
    tape.drop(joined)
    queries = _repeated(tape, keys, values if repeated and values > keys else 0)
    columns = _repeated(tape, keys, values if repeated and values > keys else 0)
    decay, beta = _gates(tape, site, heads, joined=repeated)
    if site.hosted:
        states = site.received("scan")
    out = tape.take_bytes(F32 * values * (tape.rows + state * site.sequences))
    tape.drop(queries, columns, mixed, decay, beta, states)
    normed = tape.take(values)
    tape.drop(out)
    gate = site.product(tape, "attn_gate", values)
    tape.drop(norm)
    opened = tape.take(values)
    tape.drop(gate, opened)
    result = site.product(tape, "ssm_out", site.shape.embd)
    tape.drop(normed)
    site.add(tape, result, in_result=False)


def _scan_states(tape: Tape, site: Site) -> Block:
    size = state_bytes(site.sequences, site.layer.scan_state)
    if not site.hosted:
        return tape.take_bytes(size)
    site.expect("scan", size)
    return NOTHING


def _repeated(tape: Tape, width: int, widened: int) -> Block:
    block = tape.take(width)
    if not widened:
        return block
    wide = tape.take(widened)
    tape.drop(block)
    return wide


def _gates(tape: Tape, site: Site, heads: int, *, joined: bool) -> tuple[Block, Block]:
    """Decay and step size: from one projection, or from one each."""
    projected = site.product(tape, "ssm_ba" if joined else "ssm_alpha", 2 * heads if joined else heads)
    decay = tape.take(heads)
    site.small(tape, "ssm_a")
    if not joined:
        tape.drop(projected)
        projected = site.product(tape, "ssm_beta", heads)
    beta = tape.take(heads)
    tape.drop(projected)
    return decay, beta


def delta_attention(tape: Tape, site: Site) -> None:
    """Kimi's delta attention: a convolution each for queries, keys and values."""
    kernel, head = site.number("ssm.conv_kernel"), site.number("kda.head_dim")
    heads = site.layer.heads
    width = heads * head
    norm = tape.take(site.shape.embd)
    old = _conv_state(tape, site)
    joined = []
    for last in (False, False, True):
        projected = tape.take(width)
        joined.append(_joined(tape, site, width, kernel))
        tape.drop(*([old] if last else []), projected)
    states = tape.take_bytes(state_bytes(site.sequences, site.layer.scan_state))
    mixed = [_convolved(tape, joined[0], width, normed=True), _convolved(tape, joined[1], width, normed=True)]
    mixed.append(_convolved(tape, joined[2], width, normed=False))
    decay = _low_rank(tape, width, head)
    scaled = tape.take(width)
    tape.drop(decay)
    step = tape.take(heads)
    beta = tape.take(heads)
    tape.drop(step)
    out = tape.take_bytes(F32 * width * (tape.rows + head * site.sequences))
    tape.drop(*mixed, scaled, beta, states)
    _gated_out(tape, site, norm, out, width)


def _convolved(tape: Tape, joined: Block, width: int, *, normed: bool) -> Block:
    mixed = tape.take(width)
    tape.drop(joined)
    for _ in range(2 if normed else 1):
        moved = tape.take(width)
        tape.drop(mixed)
        mixed = moved
    return mixed


def _gated_out(tape: Tape, site: Site, norm: Block, out: Block, width: int) -> None:
    copied = tape.take(width)
    tape.drop(out)
    normed = tape.take(width)
    tape.drop(copied)
    low = tape.take(site.number("kda.head_dim"))
    tape.drop(norm)
    gate = tape.take(width)
    tape.drop(low)
    opened = tape.take(width)
    tape.drop(gate, opened)
    flat = tape.take(width)
    tape.drop(normed)
    result = tape.take(site.shape.embd)
    tape.drop(flat)
    site.add(tape, result)


def short_convolution(tape: Tape, site: Site) -> None:
    """LFM2's gated convolution."""
    embd = site.shape.embd
    _expect_states(site)
    old = _conv_state(tape, site)
    norm = tape.take(embd)
    three = site.product(tape, "shortconv.in_proj", 3 * embd)
    tape.drop(norm)
    product = tape.take(embd)
    joined = _joined(tape, site, embd, site.number("shortconv.l_cache"))
    tape.drop(old, product)
    site.fetch(tape)
    mixed = tape.take(embd)
    tape.drop(joined, three)
    result = site.product(tape, "shortconv.out_proj", embd)
    tape.drop(mixed)
    site.add(tape, result, in_result=False)


def time_mix(tape: Tape, site: Site) -> None:
    """RWKV 7: time mix and channel mix. The values of the first layer stay alive for all others."""
    embd, first = site.shape.embd, not site.carried
    old = _conv_state(tape, site) if first else site.carried[0]
    states = tape.take_bytes(state_bytes(site.sequences, site.layer.scan_state)) if first else site.carried[1]
    if first:
        site.add(tape, tape.take(embd))
    norm = tape.take(embd)
    out, six = _time_mixed(tape, site, states, first=first)
    low = tape.take(site.number("attention.gate_lora_rank"))
    tape.drop(six)
    gate = tape.take(embd)
    tape.drop(low, gate)
    projected = tape.take(embd)
    tape.drop(out)
    result = tape.take(embd)
    tape.drop(projected)
    site.add(tape, result)
    _channel_mixed(tape, site, norm, old)


def _time_mixed(tape: Tape, site: Site, states: Block, *, first: bool) -> tuple[Block, Block]:
    embd, size = site.shape.embd, site.number("wkv.head_size", 64)
    difference = tape.take(embd)
    six = tape.take(6 * embd)
    tape.drop(difference)
    receptance = tape.take(embd)
    decay = _low_rank(tape, embd, site.number("attention.decay_lora_rank"))
    keys = tape.take(embd)
    rate = _low_rank(tape, embd, site.number("attention.iclr_lora_rank"))
    replaced = tape.take(embd)
    mixed = tape.take(embd)
    tape.drop(replaced)
    values = tape.take(embd)
    if not first:
        residual = tape.take(embd)
        tape.drop(_low_rank(tape, embd, site.number("attention.value_residual_mix_lora_rank")), residual)
    normed = tape.take(embd)
    tape.drop(keys)
    negated = tape.take(embd)
    tape.drop(rate)
    out = tape.take_bytes(F32 * embd * (tape.rows + size * site.sequences))
    tape.drop(decay, negated, normed, states)
    normed = tape.take(embd)
    tape.drop(out)
    out = tape.take(embd)
    tape.drop(normed)
    product = tape.take(embd)
    tape.drop(mixed, receptance)
    total = tape.take(embd // max(1, size))
    tape.drop(product)
    bonus = tape.take(embd)
    tape.drop(*([] if first else [values]), total, bonus)
    return out, six


def _low_rank(tape: Tape, width: int, rank: int) -> Block:
    low = tape.take(rank)
    block = tape.take(width)
    tape.drop(low)
    return block


def _channel_mixed(tape: Tape, site: Site, norm: Block, old: Block) -> None:
    embd = site.shape.embd
    mixed = tape.take(embd)
    last = tape.take_bytes(state_bytes(site.sequences, 2 * embd))
    tape.drop(norm, last)
    site.carried = ()
    if site.fetch_bytes:
        scan_bytes = state_bytes(site.sequences, site.layer.scan_state)
        site.carried = (tape.take_bytes(site.fetch_bytes), tape.take_bytes(scan_bytes))
    shifted = tape.take(embd)
    tape.drop(old)
    inputs = tape.take(embd)
    tape.drop(shifted, mixed)
    inner = tape.take(site.number("feed_forward_length"))
    tape.drop(inputs)
    result = tape.take(embd)
    tape.drop(inner)
    site.add(tape, result)
