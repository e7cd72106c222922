"""Which type each tensor of a model gets in a quantised file, as llama-quantize chooses it (llama-quant.cpp). Pure.

Without an importance matrix, and for the recipes that are named here alone. A file of another maker may mix otherwise;
sizes then differ by a few per cent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llamad.frozen import dataclass
from llamad.gguf.facts import Tensor
from llamad.gguf.ggml_types import FILE_TYPES, GGML_TYPES, nbytes

RECIPES: Mapping[str, str] = {
    "BF16": "BF16",
    "Q8_0": "Q8_0",
    "Q6_K": "Q6_K",
    "Q5_K_M": "Q5_K",
    "Q4_K_M": "Q4_K",
    "IQ4_XS": "IQ4_XS",
    "Q3_K_M": "Q3_K",
    "MXFP4": "MXFP4",
}
"""Names of recipes, the largest first, and the type of most of their tensors."""
_FILE_TYPE_NAMES = {"MXFP4": "MXFP4_MOE"}
_FALLBACK = {"IQ4_XS": "IQ4_NL", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_KEPT = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv",
)
_ROLES = (
    ("attn_qkv.weight", "value"),
    ("attn_kv_b.weight", "value"),
    ("attn_v.weight", "value"),
    ("attn_k.weight", "key"),
    ("attn_output.weight", "attention output"),
    ("ffn_down", "down"),
)
_IDS = {known.name: number for number, known in GGML_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Blank:
    """A tensor without a type yet. `kept` is the type of one that is never quantised, else empty; `role` what the
    recipes go by; `layer` its block, -1 outside of them.
    """

    name: str
    dims: tuple[int, ...]
    kept: str
    role: str
    layer: int = -1

    def in_layer(self, layer: int) -> Blank:
        """The same tensor of a block."""
        return Blank(f"blk.{layer}.{self.name}", self.dims, self.kept, self.role, layer)


def blank(name: str, dims: tuple[int, ...], kept: str = "") -> Blank:
    """A tensor outside the blocks, or by its name within one."""
    if not kept and (len(dims) < 2 or not name.endswith("weight") or any(part in name for part in _KEPT)):
        kept = "F32" if len(dims) < 2 or "norm" in name else "BF16"
    return Blank(name, dims, kept, _role(name))


def _role(name: str) -> str:
    if name in ("output.weight", "token_embd.weight", "per_layer_token_embd.weight"):
        return "output" if name == "output.weight" else "embedding"
    for part, role in _ROLES:
        if part in name:
            return role
    return ""


@dataclass(frozen=True)
class Kind:
    """What the recipes want to know of a model. `queries_per_key`: of the first layer; 0 where it has no attention."""

    n_layers: int
    n_expert: int
    queries_per_key: int
    llama_70b: bool


def file_type_number(recipe: str) -> int:
    """`general.file_type` of a file of the recipe."""
    wanted = _FILE_TYPE_NAMES.get(recipe, recipe)
    return next(number for number, name in FILE_TYPES.items() if name == wanted)


def typed(blanks: Sequence[Blank], kind: Kind, recipe: str) -> tuple[Tensor, ...]:
    """The tensors of a file of the recipe, in the order given, which must be that of the layers. Raises KeyError."""
    mixer = _Mixer(blanks, kind, recipe)
    found = []
    for one in blanks:
        number = _IDS[mixer.type_of(one)]
        found.append(Tensor(one.name, one.dims, number, nbytes(number, one.dims)))
    return tuple(found)


class _Mixer:
    def __init__(self, blanks: Sequence[Blank], kind: Kind, recipe: str) -> None:
        self._kind = kind
        self._recipe = recipe
        self._base = RECIPES[recipe]
        self._tied = not any(one.role == "output" for one in blanks)
        self._values_total = sum(one.role == "value" for one in blanks)
        self._values = 0
        self._downs = 0

    def type_of(self, one: Blank) -> str:
        if one.kept or self._base == "BF16":
            return one.kept or "BF16"
        wanted = self._mixed(one)
        if one.dims[0] % 256 == 0 or one.dims[0] % _block(wanted) == 0:
            return wanted
        wanted = _FALLBACK.get(wanted, wanted)
        return wanted if one.dims[0] % _block(wanted) == 0 else "F16"

    def _mixed(self, one: Blank) -> str:
        base, recipe, role = self._base, self._recipe, one.role
        if role == "output" or (role == "embedding" and self._tied):
            if recipe == "MXFP4" or one.dims[0] % _block(base):
                return "Q8_0"
            return base if base == "Q8_0" else "Q6_K"
        if recipe == "MXFP4":
            return base if len(one.dims) > 2 else "Q8_0"
        if role == "value":
            return self._value()
        if role == "down":
            return self._down(one.layer)
        eight = self._kind.n_expert == 8
        if role == "key" and eight:
            return "Q8_0"
        if role == "attention output":
            if eight and recipe in ("Q3_K_M", "Q4_K_M", "IQ4_XS"):
                return "Q5_K"
            return "Q4_K" if recipe == "Q3_K_M" and not eight else base
        return base

    def _value(self) -> str:
        """Values are few and matter much."""
        place, kind = self._values, self._kind
        self._values += 1
        found = self._base
        if self._recipe == "Q3_K_M":
            found = "Q5_K" if place < 2 else "Q4_K"
        elif self._recipe == "IQ4_XS" and kind.queries_per_key >= 4:
            found = "Q5_K"
        elif self._recipe in ("Q4_K_M", "Q5_K_M") and _more_bits(place, self._values_total):
            found = "Q6_K"
        if kind.llama_70b and found in ("Q3_K", "Q4_K"):
            found = "Q5_K"
        return "Q8_0" if kind.n_expert == 8 else found

    def _down(self, layer: int) -> str:
        total = self._kind.n_layers
        place = layer if self._kind.n_expert > 1 else self._downs
        self._downs += 1
        if self._recipe == "Q3_K_M":
            return "Q5_K" if place < total // 16 else "Q4_K"
        if self._recipe in ("Q4_K_M", "Q5_K_M") and _more_bits(place, total):
            return "Q6_K"
        if self._recipe == "IQ4_XS" and place < total // 8:
            return "Q5_K"
        return self._base


def _block(name: str) -> int:
    return GGML_TYPES[_IDS[name]].block


def _more_bits(place: int, total: int) -> bool:
    """The outer eighths, and every third between them."""
    eighth = total // 8
    return place < eighth or place >= 7 * total // 8 or (place - eighth) % 3 == 2
