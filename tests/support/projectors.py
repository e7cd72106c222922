"""Shapes of real vision projectors: what an mmproj GGUF holds, tensor for tensor, without the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.gguf_writer import GgmlType, Tensor, Value, boolean, f32, f32s, string, u32, write_gguf


@dataclass(frozen=True)
class ProjectorShape:
    """A vision tower and its projection. `kind` is llama.cpp's name of the projector type."""

    title: str
    kind: str
    layers: int
    embd: int
    ff: int
    heads: int
    image: int
    patch: int
    out: int
    """Width of the language model."""
    merge: int = 1
    """Patches a side that become one token."""
    fused: bool = False
    """One tensor for q, k and v."""
    gated: bool = False
    positions: bool = True
    patch_bias: bool = True
    frames: bool = False
    """A second patch embedding, for pairs of frames."""
    deepstack: tuple[int, ...] = ()
    extra: Mapping[str, Value] = field(default_factory=dict)
    """More keys, without `clip.vision.`."""

    def metadata(self) -> dict[str, Value]:
        """The keys of the header."""
        numbers = {
            "embedding_length": self.embd,
            "feed_forward_length": self.ff,
            "block_count": self.layers,
            "projection_dim": self.out,
            "attention.head_count": self.heads,
            "image_size": self.image,
            "patch_size": self.patch,
        }
        own: dict[str, Value] = {key: u32(number) for key, number in numbers.items()}
        own |= {"attention.layer_norm_epsilon": f32(1e-6), "image_mean": f32s([0.5] * 3), "image_std": f32s([0.5] * 3)}
        return {
            "general.architecture": string("clip"),
            "general.type": string("mmproj"),
            "general.name": string(self.title),
            "clip.has_vision_encoder": boolean(True),
            "clip.projector_type": string(self.kind),
            "clip.use_silu" if self.gated else "clip.use_gelu": boolean(True),
        } | {f"clip.vision.{key}": value for key, value in (own | dict(self.extra)).items()}

    def tensors(self) -> list[Tensor]:
        """Every tensor of the file; matrices in f16."""
        found = [_matrix("v.patch_embd.weight", self.patch, self.patch, 3, self.embd)]
        if self.frames:
            found.append(_matrix("v.patch_embd.weight.1", self.patch, self.patch, 3, self.embd))
        if self.patch_bias:
            found.append(_vector("v.patch_embd.bias", self.embd))
        if self.positions:
            found.append(_plain("v.position_embd.weight", self.embd, (self.image // self.patch) ** 2))
        for layer in range(self.layers):
            found += self._block(f"v.blk.{layer}")
        found += [_vector("v.post_ln.weight", self.embd), _vector("v.post_ln.bias", self.embd)]
        for layer in self.deepstack:
            found += self._merger(f"v.deepstack.{layer}.norm", f"v.deepstack.{layer}.fc1", f"v.deepstack.{layer}.fc2")
        return [*found, *self._projection()]

    def write(self, path: Path) -> Path:
        """Write the header over a hole of the real size."""
        write_gguf(path, self.metadata(), self.tensors(), None)
        return path

    def _block(self, block: str) -> Iterator[Tensor]:
        for norm in ("ln1", "ln2"):
            yield _vector(f"{block}.{norm}.weight", self.embd)
            yield _vector(f"{block}.{norm}.bias", self.embd)
        names = {"attn_qkv": 3 * self.embd} if self.fused else dict.fromkeys(("attn_q", "attn_k", "attn_v"), self.embd)
        for name, width in {**names, "attn_out": self.embd}.items():
            yield _matrix(f"{block}.{name}.weight", self.embd, width)
            yield _vector(f"{block}.{name}.bias", width)
        for name in ("ffn_up", "ffn_gate") if self.gated else ("ffn_up",):
            yield _matrix(f"{block}.{name}.weight", self.embd, self.ff)
            yield _vector(f"{block}.{name}.bias", self.ff)
        yield _matrix(f"{block}.ffn_down.weight", self.ff, self.embd)
        yield _vector(f"{block}.ffn_down.bias", self.embd)

    def _merger(self, norm: str, first: str, second: str) -> Iterator[Tensor]:
        wide = self.embd * 4
        yield _vector(f"{norm}.weight", wide)
        yield _vector(f"{norm}.bias", wide)
        yield from self._two(first, second, wide)

    def _two(self, first: str, second: str, wide: int) -> Iterator[Tensor]:
        yield _matrix(f"{first}.weight", wide, wide)
        yield _vector(f"{first}.bias", wide)
        yield _matrix(f"{second}.weight", wide, self.out)
        yield _vector(f"{second}.bias", self.out)

    def _projection(self) -> Iterator[Tensor]:
        if self.kind == "gemma3":
            yield _vector("mm.soft_emb_norm.weight", self.embd)
            yield _matrix("mm.input_projection.weight", self.out, self.embd)
        elif self.kind == "pixtral":
            yield _vector("v.pre_ln.weight", self.embd)
            yield _vector("v.token_embd.img_break", self.out)
            yield _matrix("mm.1.weight", self.embd, self.out)
            yield _matrix("mm.2.weight", self.out, self.out)
        elif self.kind == "mlp":
            yield _matrix("mm.0.weight", self.embd, self.out)
            yield _vector("mm.0.bias", self.out)
            yield _matrix("mm.2.weight", self.out, self.out)
            yield _vector("mm.2.bias", self.out)
        elif self.kind == "idefics3":
            yield _matrix("mm.model.fc.weight", self.embd * self.merge**2, self.out)
        else:
            yield from self._two("mm.0", "mm.2", self.embd * 4)


def _matrix(name: str, *dims: int) -> Tensor:
    return Tensor(name, dims, GgmlType.F16)


def _plain(name: str, *dims: int) -> Tensor:
    return Tensor(name, dims, GgmlType.F32)


def _vector(name: str, length: int) -> Tensor:
    return Tensor(name, (length,), GgmlType.F32)


def _u32s(**numbers: int) -> dict[str, Value]:
    return {key.replace("__", "."): u32(number) for key, number in numbers.items()}


PROJECTORS: Mapping[str, ProjectorShape] = {
    "gemma3": ProjectorShape("Gemma 3 vision", "gemma3", 27, 1152, 4304, 16, 896, 14, 2560, merge=4),
    "qwen3vl": ProjectorShape(
        "Qwen3-VL vision", "qwen3vl_merger", 27, 1152, 4304, 16, 768, 16, 4096, merge=2, fused=True, frames=True,
        deepstack=(8, 16, 24), extra=_u32s(spatial_merge_size=2),
    ),
    "qwen25vl": ProjectorShape(
        "Qwen2.5-VL vision", "qwen2.5vl_merger", 32, 1280, 3420, 16, 560, 14, 3584, merge=2, gated=True, frames=True,
        positions=False, patch_bias=False, extra=_u32s(n_wa_pattern=8, window_size=112),
    ),
    "pixtral": ProjectorShape(
        "Pixtral vision", "pixtral", 24, 1024, 4096, 16, 1024, 16, 5120, gated=True, positions=False, patch_bias=False,
    ),
    "smolvlm": ProjectorShape(
        "SmolVLM vision", "idefics3", 27, 1152, 4304, 16, 384, 14, 2048, merge=3, extra=_u32s(projector__scale_factor=3),
    ),
}  # fmt: skip
