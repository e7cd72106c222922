"""What a list of files says of each: what it is, its shape, quantisation, size and context."""

from __future__ import annotations

from math import prod

from llamad.frozen import dataclass
from llamad.gguf.read import file_type, kind_of, model_facts
from llamad.gguf.shards import read_model

_NOT_FOR_A_LIST = 1 << 60


@dataclass(frozen=True)
class Glance:
    """One model (from all its shards) or other GGUF file. 0 and empty where a kind has no such thing."""

    kind: str
    """`model`, or what `kind_of` calls it"""
    name: str
    architecture: str
    quantisation: str
    parameters: int
    layers: int
    experts: int
    experts_used: int
    context_tokens: int
    shards: int
    file_bytes: int


def glance(path: str) -> Glance:
    """Read a file, or all shards of a model by its first. Raises as `read_model`, and as `model_facts` for a model
    that cannot be served.
    """
    headers = read_model(path)
    first = headers[0]
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    kind = kind_of(first, tensors)
    parameters = min(_NOT_FOR_A_LIST, sum(prod(tensor.dims) for tensor in tensors))
    if kind == "model":
        facts = model_facts(headers)
        return Glance(
            kind, facts.name, facts.architecture, facts.file_type, parameters, facts.n_layers, facts.n_expert,
            facts.n_expert_used, facts.n_ctx_train, len(headers), facts.file_bytes,
        )  # fmt: skip
    return Glance(
        kind,
        first.text("general.name"),
        first.text("general.architecture"),
        file_type(first, tensors) if tensors else "",
        parameters,
        layers=0,
        experts=0,
        experts_used=0,
        context_tokens=0,
        shards=len(headers),
        file_bytes=sum(header.file_bytes for header in headers),
    )
