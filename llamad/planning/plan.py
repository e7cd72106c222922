"""The Plan: what llama-server will be told, what it will take, and why. Pure data; sizes in bytes."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Literal

from llamad.frozen import dataclass
from llamad.units import mib

Source = Literal["learned", "asked", "computed"]


@dataclass(frozen=True)
class BuildGates:
    """What a llama.cpp build does to its buffers. Defaults are those of builds since mid 2026."""

    build: int = 0
    """b-number; 0 = unknown."""
    mask_f16: bool = True
    """llama.cpp #23764: attention mask input in f16."""
    outputs_limited: bool = True
    """llama.cpp #23861: the server reserves logits for its slots, not for the whole micro-batch."""
    scratch_in_graph: bool = True
    """llama.cpp #23907: f16 copies of a quantised cache are part of the compute buffer."""
    mixed_inputs: bool = True
    """A micro-batch may mix tokens and embeddings (llama_batch_ext): the graph's `inp_mixed_embd` takes one
    micro-batch of embeddings more on the device and two on the host. Seen in build 11669, not in 0.5.0-dev."""
    mtp_skipped: bool = True
    """Multi-token-prediction blocks are not loaded unless speculative decoding asks for them."""

    @classmethod
    def of_build(cls, build: int) -> BuildGates:
        """The gates of a b-number. Where the exact build of a change is unknown, the larger variant counts.

        0 (a build that does not tell its number) gets the newest gates: say otherwise if `--help` shows it is old.
        """
        if build <= 0:
            return cls()
        return cls(
            build=build,
            mask_f16=build >= _MASK_F16_BUILD,
            outputs_limited=build >= _OUTPUTS_LIMITED_BUILD,
            scratch_in_graph=build >= _SCRATCH_IN_GRAPH_BUILD,
            mixed_inputs=build >= _MIXED_INPUTS_BUILD,
            mtp_skipped=build >= _MTP_SKIPPED_BUILD,
        )


# First builds, from llama.cpp's history: #23764 was merged on 2026-05-28 (b9272 is of 05-22, b9460 of 06-01).
# b10716 is of 2026-09-11, before the last source whose buffers were seen without mixed inputs. Blocks for
# multi-token prediction were loaded always in May 2026 and no more in August (b10488).
_MASK_F16_BUILD = 9460
_OUTPUTS_LIMITED_BUILD = 9460
_SCRATCH_IN_GRAPH_BUILD = 9489
_MIXED_INPUTS_BUILD = 10717
_MTP_SKIPPED_BUILD = 10488


@dataclass(frozen=True)
class Parts:
    """Bytes of one device (or of the host) by part."""

    weights_bytes: int = 0
    context_bytes: int = 0
    compute_bytes: int = 0
    overhead_bytes: int = 0
    """Driver context and run-time growth outside llama.cpp's buffers."""
    margin_bytes: int = 0
    vision_bytes: int = 0
    """A projector: its weights, and what the largest picture takes."""
    adapters_bytes: int = 0
    """LoRA adapters and control vectors."""
    draft_bytes: int = 0
    """Buffers of what guesses ahead. Blocks of the model's own that do so are among `weights_bytes`."""

    @property
    def buffers_bytes(self) -> int:
        """What llama-server's own breakdown of the model shows."""
        return self.weights_bytes + self.context_bytes + self.compute_bytes

    @property
    def beside_bytes(self) -> int:
        """What is there beside the model."""
        return self.vision_bytes + self.adapters_bytes + self.draft_bytes

    @property
    def held_bytes(self) -> int:
        """All buffers."""
        return self.buffers_bytes + self.beside_bytes

    @property
    def total_bytes(self) -> int:
        """Everything, margin included."""
        return self.held_bytes + self.overhead_bytes + self.margin_bytes


@dataclass(frozen=True)
class DevicePlan:
    """One device's share of a plan."""

    name: str
    uuid: str
    free_bytes: int
    total_device_bytes: int
    layers: int
    parts: Parts
    budget_bytes: int = 0
    """What `parts.total_bytes` may reach: free bytes less what is held back, and the `memory` limit."""
    held_back_bytes: int = 0
    """Of the free bytes: what is promised to others."""


@dataclass(frozen=True)
class Reason:
    """One choice, in words: `topic` is the key it is about (`context`, `parallel`, `devices`, ...)."""

    topic: str
    text: str


@dataclass(frozen=True)
class Plan:
    """Explicit values for every placement flag, with the bytes they cost.

    `layers` counts as llama-server does: `layers_total` is the number of blocks + 1 for the output.
    """

    model: str
    context_tokens: int
    context_train_tokens: int
    slots: int
    unified_cache: bool
    cache_type_k: str
    cache_type_v: str
    batch_tokens: int
    ubatch_tokens: int
    flash_attention: bool
    layers: int
    layers_total: int
    split_mode: str
    main_device: str
    tensor_split: tuple[int, ...]
    cache_ram_mib: int
    devices: tuple[DevicePlan, ...]
    host: Parts
    host_available_bytes: int
    reasons: tuple[Reason, ...]
    source: Source = "computed"
    next_context: NextContext | None = None
    warnings: tuple[str, ...] = field(default=())
    host_experts: int = 0
    """The experts of the first n blocks stay on the host."""
    host_ffn: int = 0
    """The dense feed-forward part of the first n blocks stays on the host."""
    pipeline: bool = False
    """Several devices work on different micro-batches at once."""
    checkpoints: int | None = None
    """How many checkpoints of windows and states a slot may keep in host memory; None = the model has neither."""
    exact: bool = True
    """Whether the formulas are proved for this; else the computed bytes are a bound."""
    vision_place: str = ""
    """The device that computes pictures, `host`, or empty where there is no projector."""
    doubts: tuple[str, ...] = ()
    """Why computed bytes are no more than a bound."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """Everything to warn of: doubts are none any more once the bytes come from a better source."""
        return (*self.doubts, *self.warnings) if self.source == "computed" else self.warnings

    def with_parts(self, devices: dict[str, Parts], host: Parts, source: Source) -> Plan:
        """The same choices with bytes from a better source; devices not named keep theirs."""
        renewed = tuple(replace(d, parts=devices.get(d.name, d.parts)) for d in self.devices)
        return replace(self, devices=renewed, host=host, source=source)

    def to_json(self, args: list[str]) -> dict[str, object]:
        """The object that `llamad plan --json` prints; sizes in MiB."""
        return {
            "model": self.model,
            "context_tokens": self.context_tokens,
            "slots": self.slots,
            "layers": self.layers,
            "layers_total": self.layers_total,
            "host_experts": self.host_experts,
            "devices": [
                {"name": d.name, "layers": d.layers, **_parts_json(d.parts), "free_mib": mib(d.free_bytes)}
                for d in self.devices
            ],
            "host": {"name": "host", **_parts_json(self.host), "free_mib": mib(self.host_available_bytes)},
            "args": args,
            "reasons": [f"{reason.topic}: {reason.text}" for reason in self.reasons],
            "warnings": list(self.remarks),
            "source": self.source,
        }


@dataclass(frozen=True)
class NextContext:
    """What stands between this plan and the next larger context."""

    context_tokens: int
    device: str
    missing_bytes: int


BESIDE = ("vision", "adapters", "draft")
"""Parts that are shown only where there are any."""


def _parts_json(parts: Parts) -> dict[str, float]:
    beside = {f"{name}_mib": mib(size) for name in BESIDE if (size := getattr(parts, f"{name}_bytes"))}
    return {
        **beside,
        "weights_mib": mib(parts.weights_bytes),
        "context_mib": mib(parts.context_bytes),
        "compute_mib": mib(parts.compute_bytes),
        "overhead_mib": mib(parts.overhead_bytes),
        "margin_mib": mib(parts.margin_bytes),
        "total_mib": mib(parts.total_bytes),
    }
