"""From headers to ModelFacts, for every architecture by the same keys. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

from llamad.gguf.facts import ModelFacts, Tensor
from llamad.gguf.ggml_types import FILE_TYPES, type_name
from llamad.gguf.header import Counted, Header, Value
from llamad.gguf.shards import read_model
from llamad.gguf.window import bad_model
from llamad.text import shown

LAYERS_LIMIT = 512
EXPERTS_LIMIT = 1024
_COUNT_LIMIT = (1 << 31) - 1
_FTYPE_GUESSED = 1024
_OTHER_KINDS: Mapping[str, tuple[str, str]] = {
    "mmproj": ("it is a vision or audio projector (mmproj), not a model", "name the model's file"),
    "adapter": ("it is a LoRA adapter, not a model", "name the base model's file"),
    "imatrix": ("it is an importance matrix, not a model", "name the model's file"),
    "controlvector": ("it is a control vector, not a model", "name the model's file"),
}
_KIND_OF_ARCHITECTURE = {"clip": "mmproj", "controlvector": "controlvector", "imatrix": "imatrix"}
_IMAGE_MODELS = frozenset(("flux", "sd1", "sd3", "sdxl", "wan", "lumina2", "qwen_image", "hidream", "ltxv"))
_WITHOUT_OUTPUT = frozenset(
    {
        "bert",
        "nomic-bert",
        "nomic-bert-moe",
        "jina-bert-v2",
        "jina-bert-v3",
        "modern-bert",
        "neo-bert",
        "eurobert",
    }
)
"""Encoders: no output layer is made for them, so a missing `output.weight` is no tied embedding."""


def read_facts(path: str) -> ModelFacts:
    """Facts of the model at `path` (its first shard). Raises as `read_model` and `model_facts`."""
    return model_facts(read_model(path))


def model_facts(headers: tuple[Header, ...]) -> ModelFacts:
    """Facts of a model from the headers of all its files, first shard first.

    Raises BadModelError for what is no language or embedding model, and for counts that are missing, negative
    or beyond llama.cpp's limits (512 layers, 1024 experts).
    """
    first = headers[0]
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    _refuse_other_kinds(first, tensors)
    keys = _Keys(first)
    n_layers = keys.count("block_count", limit=LAYERS_LIMIT)
    n_embd = keys.count("embedding_length")
    n_head = keys.per_layer("attention.head_count", n_layers, default=(0,) * n_layers)
    n_ff = keys.per_layer("feed_forward_length", n_layers, default=(0,) * n_layers)
    n_expert = keys.count("expert_count", default=0, limit=EXPERTS_LIMIT)
    head_size = n_embd // max(n_head) if max(n_head, default=0) else 0
    by_name = {tensor.name: tensor for tensor in tensors}
    return ModelFacts(
        path=first.path,
        shards=tuple(header.path for header in headers),
        file_bytes=sum(header.file_bytes for header in headers),
        fingerprint=_fingerprint(headers),
        architecture=keys.architecture,
        name=first.text("general.name") or first.path.rpartition("/")[2].removesuffix(".gguf"),
        file_type=file_type(first, tensors),
        n_layers=n_layers,
        n_layers_nextn=keys.count("nextn_predict_layers", default=0, limit=n_layers),
        n_embd=n_embd,
        n_vocab=_n_vocab(keys, by_name),
        n_ctx_train=keys.count("context_length"),
        n_head=n_head,
        n_head_kv=keys.per_layer("attention.head_count_kv", n_layers, default=n_head),
        head_k=keys.count("attention.key_length", default=head_size),
        head_v=keys.count("attention.value_length", default=head_size),
        n_ff=n_ff,
        n_expert=n_expert,
        n_expert_used=keys.count("expert_used_count", default=0, limit=n_expert),
        n_ff_expert=_n_ff_expert(keys, n_expert, n_ff, tensors),
        sliding_window=keys.count("attention.sliding_window", default=0, limit=(1 << 32) - 1),
        tied_embeddings=_tied(keys.architecture, by_name),
        has_chat_template="tokenizer.chat_template" in first.values,
        tensors=tensors,
        hparams={key: value for key, value in first.values.items() if not isinstance(value, Counted)},
    )


class _Keys:
    """The architecture's own keys of a header, checked as they are asked for."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self.architecture = header.text("general.architecture")
        if not self.architecture:
            raise self.bad("its header names no architecture")

    def bad(self, why: str) -> Exception:
        return bad_model(self._header.path, why, "fetch the file again, or another conversion of the model")

    def value(self, key: str) -> Value | None:
        return self._header.values.get(f"{self.architecture}.{key}")

    def length(self, key: str) -> int:
        """Entries of an array of the header, by its full key; 0 where there is none."""
        value = self._header.values.get(key)
        return value.count if isinstance(value, Counted) else 0

    def count(self, key: str, *, default: int | None = None, limit: int = _COUNT_LIMIT) -> int:
        """The count under one key; of a per-layer array its largest entry."""
        value = self.value(key)
        if value is None:
            if default is None:
                raise self.bad(f"its header has no {shown(self.architecture)}.{key}")
            return default
        entries = value if isinstance(value, tuple) else (value,)
        return max((self._checked(key, entry, limit) for entry in entries), default=default or 0)

    def per_layer(self, key: str, n_layers: int, *, default: tuple[int, ...]) -> tuple[int, ...]:
        """A count for each layer, from one number for all or an array of exactly `n_layers`."""
        value = self.value(key)
        if value is None:
            return default
        if not isinstance(value, (tuple, Counted)):
            return (self._checked(key, value, _COUNT_LIMIT),) * n_layers
        if isinstance(value, Counted) or len(value) != n_layers:
            entries = value.count if isinstance(value, Counted) else len(value)
            raise self.bad(f"{shown(self.architecture)}.{key} has {entries} entries for {n_layers} layers")
        return tuple(self._checked(key, entry, _COUNT_LIMIT) for entry in value)

    def _checked(self, key: str, value: Value, limit: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
            text = shown(str(value)) if not isinstance(value, Counted) else f"a long {value.kind}"
            raise self.bad(f"{shown(self.architecture)}.{key} is {text} (0 to {limit})")
        return value


def kind_of(first: Header, tensors: tuple[Tensor, ...]) -> str:
    """What a file is: `model`, or `mmproj`, `adapter`, `imatrix`, `controlvector`, `image`, `vocabulary`."""
    kind = first.text("general.type")
    if kind in _OTHER_KINDS:
        return kind
    architecture = first.text("general.architecture")
    if architecture in _KIND_OF_ARCHITECTURE:
        return _KIND_OF_ARCHITECTURE[architecture]
    if "adapter.type" in first.values:
        return "adapter"
    if architecture in _IMAGE_MODELS:
        return "image"
    return "model" if tensors else "vocabulary"


def _refuse_other_kinds(first: Header, tensors: tuple[Tensor, ...]) -> None:
    kind = kind_of(first, tensors)
    if kind in _OTHER_KINDS:
        raise bad_model(first.path, *_OTHER_KINDS[kind])
    if kind == "image":
        architecture = first.text("general.architecture")
        raise bad_model(
            first.path, f"it is an image or video model ({architecture})", "name a language model"
        )
    if kind == "vocabulary":
        raise bad_model(first.path, "it holds no tensors, only a vocabulary", "name the model's file")


def _n_vocab(keys: _Keys, by_name: Mapping[str, Tensor]) -> int:
    claimed = keys.count("vocab_size", default=0) or keys.length("tokenizer.ggml.tokens")
    if claimed:
        return claimed
    embedding = by_name.get("token_embd.weight")
    return embedding.dims[1] if embedding and len(embedding.dims) > 1 else 0


def _n_ff_expert(keys: _Keys, n_expert: int, n_ff: tuple[int, ...], tensors: tuple[Tensor, ...]) -> int:
    """Width of one expert: its key, else the shape of an expert tensor, else the dense width (Mixtral)."""
    claimed = keys.count("expert_feed_forward_length", default=0)
    if claimed or not n_expert:
        return claimed
    shapes = (tensor.dims[0] for tensor in tensors if tensor.name.endswith("ffn_down_exps.weight"))
    return next(shapes, max(n_ff, default=0))


def _tied(architecture: str, by_name: Mapping[str, Tensor]) -> bool:
    has_embedding, has_output = "token_embd.weight" in by_name, "output.weight" in by_name
    return has_embedding and not has_output and architecture not in _WITHOUT_OUTPUT


def file_type(first: Header, tensors: tuple[Tensor, ...]) -> str:
    """The quantisation in words: the recipe that the header names, else the type of most bytes. Raises IndexError
    without any tensor.
    """
    number = first.number("general.file_type")
    if number is not None and number & ~_FTYPE_GUESSED in FILE_TYPES:
        return FILE_TYPES[number & ~_FTYPE_GUESSED]
    bytes_of: Counter[int] = Counter()
    for tensor in tensors:
        bytes_of[tensor.type_id] += tensor.size_bytes
    return type_name(bytes_of.most_common(1)[0][0])


def _fingerprint(headers: tuple[Header, ...]) -> str:
    """sha256 over every file's digest (size, tensor table, samples of the data) and the kept keys of the first.

    The same fingerprint means the same layout in memory. Weights that were trained further in the same layout
    are told apart only where they differ in the first or last 4 KiB of a file's data.
    """
    digest = hashlib.sha256()
    for header in headers:
        digest.update(header.digest.encode())
    for key in sorted(headers[0].values):
        digest.update(f"{key}={headers[0].values[key]!r}\n".encode("utf-8", "backslashreplace"))
    return digest.hexdigest()
