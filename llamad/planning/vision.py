"""Bytes of a vision or audio projector: its weights, and a bound for the largest picture that it may meet. Pure.

From llama.cpp's tools/mtmd/clip.cpp: everything is on one device but the picture itself and masks, which the host
hands over. At its load llama-server reserves for a picture of middling size only ("avoid OOM on warmup"), and
takes more when a larger one comes; here the largest counts. P = patches of all pictures of a batch, E = width of
the tower; activations are f32. Compared with the first figures of build 11669 (tests/data/planning).
"""

from __future__ import annotations

from collections.abc import Mapping

from llamad.frozen import dataclass
from llamad.gguf.beside import SideFile
from llamad.planning.backends import Backend, backend_of
from llamad.planning.terms import CUDA_HEADS
from llamad.planning.weights import device_bytes

_F32 = 4
_F16 = 2
BATCH_TOKENS = 1024
"""llama-server's `--mtmd-batch-max-tokens`."""
# Most tokens of one picture, where it is scaled to fit in these (clip.cpp: set_limit_image_tokens). What is not here
# has one size, or tells its limit in pixels.
_MOST_TOKENS: Mapping[str, int] = {
    "lfm2": 256, "deepseek4v": 384, "minimax_m3": 576, "pixtral": 1024, "kimivl": 1024, "gemma4v": 1120,
    "gemma4uv": 1120, "qwen2vl_merger": 4096, "qwen2.5vl_merger": 4096, "qwen3vl_merger": 4096, "ling3vl": 4096,
    "glm4v": 4096, "kimik25": 4096, "muse-glimmer": 4096, "qwen2.5o": 4096, "hunyuanvl": 16384, "youtuvl": 62500,
}  # fmt: skip
# Patches a side that become one token, where the header does not tell.
_MERGES: Mapping[str, int] = {
    "gemma3": 4, "gemma4v": 3, "qwen2vl_merger": 2, "qwen2.5vl_merger": 2, "qwen3vl_merger": 2, "ling3vl": 2,
    "qwen2.5o": 2, "glm4v": 2, "glm5v": 2, "minimax_m3": 2, "muse-glimmer": 2, "mimovl": 2, "youtuvl": 2,
    "hunyuanvl": 2, "paddleocr": 2, "exaone4_5": 2, "minicpmv4_6": 4, "step3vl": 4,
}  # fmt: skip
_MERGE_KEYS = ("spatial_merge_size", "projector.scale_factor")
_WHOLE_IMAGE = frozenset({"lightonocr"})
"""`preproc_image_size` is the size of the picture; for others that of what is cut into tiles."""
_SIDE_LIMIT = 8192
# Frames of mel spectrogram: 30 s are 3000; the longest chunks known are of 60 s.
_AUDIO_FRAMES = 6000
_ATTENTION_WIDTHS = 6
_FUSED_ATTENTION_WIDTHS = 8
"""Of E: q, k and v, residual, f16 copies; where they come from one matrix they stay while q and k are turned (7.3
were measured)."""
# What takes one picture at a time (clip_graph::support_batch); others take as many as `--mtmd-batch-max-tokens` allows.
_ONE_BY_ONE = frozenset(
    {
        "gemma3", "idefics3", "lfm2", "janus_pro", "phi4", "mlp", "ldp", "ldpv2", "adapter", "resampler", "pixtral",
        "lightonocr", "qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger", "qwen2.5o", "llama4", "kimivl", "kimik25",
        "glm4v", "minicpmv4_6", "hunyuanvl", "youtuvl",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Projector:
    """Bytes of a projector: on the device that computes it, and on the host beside that."""

    weights_bytes: int
    compute_bytes: int
    host_bytes: int
    growth_bytes: int
    """What the device's libraries take while they compute: f16 copies of activations."""

    @property
    def total_bytes(self) -> int:
        """What it takes where host and device are one."""
        return self.weights_bytes + self.compute_bytes + self.host_bytes


@dataclass(frozen=True)
class _Tower:
    """A tower in numbers. Raises BadModelError, through `SideFile.count`, for numbers that are none."""

    kind: str
    embd: int
    ff: int
    heads: int
    patch: int
    image: int
    merge: int
    out: int
    gated: bool
    fused: bool
    stacked: int
    """Layers whose features are added to the tokens (deepstack)."""
    windowed: bool
    pixels: int
    """Most pixels of one picture; 0 = it is not told."""

    @property
    def head(self) -> int:
        """Size of a head."""
        return self.embd // self.heads if self.heads else 0

    def patches(self, image_max_tokens: int | None) -> int:
        """Patches of the largest picture, or of one of its tiles."""
        most = image_max_tokens or _MOST_TOKENS.get(self.kind, 0)
        scaled = self.kind in _MOST_TOKENS or self.pixels
        if image_max_tokens and scaled:
            return image_max_tokens * self.merge**2
        whole = max(self.image // self.patch, 1) ** 2
        return max(whole, most * self.merge**2, self.pixels // self.patch**2)


def projector_bytes(
    file: SideFile,
    backend: str,
    *,
    image_max_tokens: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    flash_attention: bool = True,
) -> Projector:
    """The bytes of `file` on a device of `backend`. Raises BadModelError for numbers that no projector has."""
    rules = backend_of(backend)
    weights = sum(device_bytes(tensor, rules) for tensor in file.tensors)
    device = host = growth = 0
    if file.values.get("clip.has_vision_encoder") or not file.values.get("clip.has_audio_encoder"):
        tower = _vision_tower(file)
        together = 0 if tower.kind in _ONE_BY_ONE else batch_tokens * tower.merge**2
        patches = max(tower.patches(image_max_tokens), together)
        device, host = _compute(tower, patches, flash_attention=flash_attention)
        if rules.cache_scratch and tower.head not in CUDA_HEADS:
            host += 3 * _F32 * patches * tower.embd  # the CPU computes what flash attention has no kernel for
        growth = _growth(tower, patches, rules)
    if file.values.get("clip.has_audio_encoder"):
        tower = _audio_tower(file)
        more, more_host = _compute(tower, _AUDIO_FRAMES, flash_attention=flash_attention)
        device, host = device + more, host + more_host
        growth = max(growth, _growth(tower, _AUDIO_FRAMES, rules))
    return Projector(weights, device, host, growth)


def _compute(tower: _Tower, patches: int, *, flash_attention: bool) -> tuple[int, int]:
    """The compute buffers of device and host at the fullest moment."""
    step, embd = _F32 * patches, tower.embd
    tokens = -(-patches // tower.merge**2)
    stacks = _F32 * tokens * tower.out
    picture = 3 * _F32 * patches * tower.patch**2
    masks = _F16 * patches**2 if tower.windowed else 0
    alive = masks + stacks * tower.stacked
    hidden = 3 * tower.ff + 4 * embd if tower.gated else tower.ff + 3 * embd
    scores = 0 if flash_attention else 2 * _F32 * tower.heads * patches**2
    moments = (
        step * hidden + alive + (picture if tower.gated else 0),
        step * (_FUSED_ATTENTION_WIDTHS if tower.fused else _ATTENTION_WIDTHS) * embd + scores + alive,
        picture + picture // 2 + step * 3 * embd,
        step * 3 * embd + 2 * stacks * (tower.stacked + 1),
    )
    return max(moments), picture + masks + 8 * step


def _growth(tower: _Tower, patches: int, rules: Backend) -> int:
    copies = _F16 * patches * (tower.embd + tower.ff) if rules.cache_scratch else 0
    return copies + rules.library_bytes


def _vision_tower(file: SideFile) -> _Tower:
    def number(key: str, default: int = 0) -> int:
        return file.count(f"clip.vision.{key}", default)

    kind = file.text("clip.projector_type") or file.text("clip.vision.projector_type")
    patch = min(max(1, number("patch_size", 14)), _SIDE_LIMIT)
    merge = next((count for key in _MERGE_KEYS if (count := number(key))), _MERGES.get(kind, 1))
    pixels = number("image_max_pixels")
    if kind in _WHOLE_IMAGE:
        pixels = max(pixels, number("preproc_image_size") ** 2)
    names = {tensor.name for tensor in file.tensors}
    return _Tower(
        kind=kind,
        embd=number("embedding_length"),
        ff=max(number("feed_forward_length"), _widest(file, "v.blk.")),
        heads=number("attention.head_count"),
        patch=patch,
        image=min(number("image_size"), _SIDE_LIMIT),
        merge=min(max(1, merge), 64),
        out=number("projection_dim"),
        gated=any(".ffn_gate" in name for name in names),
        fused=any(".attn_qkv." in name for name in names),
        stacked=len({name.split(".")[2] for name in names if name.startswith("v.deepstack.")}),
        windowed=bool(number("n_wa_pattern") or "clip.vision.wa_layer_indexes" in file.values),
        pixels=pixels,
    )


def _audio_tower(file: SideFile) -> _Tower:
    def number(key: str) -> int:
        return file.count(f"clip.audio.{key}")

    return _Tower(
        kind=file.text("clip.audio.projector_type"),
        embd=number("embedding_length"),
        ff=max(number("feed_forward_length"), _widest(file, "a.blk.")),
        heads=number("attention.head_count"),
        patch=8,  # a frame has up to 256 numbers, a patch of a picture 3 * 8 * 8
        image=0,
        merge=1,
        out=number("projection_dim"),
        gated=any(tensor.name.startswith("a.blk.") and ".ffn_gate" in tensor.name for tensor in file.tensors),
        fused=any(tensor.name.startswith("a.") and ".attn_qkv." in tensor.name for tensor in file.tensors),
        stacked=0,
        windowed=False,
        pixels=0,
    )


def _widest(file: SideFile, prefix: str) -> int:
    """The widest row of a feed-forward matrix: old conversions write no `feed_forward_length`."""
    of_ffn = (t for t in file.tensors if t.name.startswith(prefix) and ".ffn_" in t.name and len(t.dims) > 1)
    return max((max(tensor.dims[:2]) for tensor in of_ffn), default=0)
