"""Compute buffers of devices by replaying the graph: exact for the architectures that have a program. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamad.planning.graphs.replay import Replay, Run

if TYPE_CHECKING:
    from llamad.planning.choice import Choice
    from llamad.planning.layers import ModelShape

_PIPELINE_COPIES = 4  # GGML_SCHED_MAX_COPIES


class Replayed:
    """The replayed graph of one model, for any choice. Prepared once."""

    def __init__(self, shape: ModelShape) -> None:
        self._replay = Replay(shape)
        self._latent = "attention.key_length_mla" in shape.numbers

    def device_bytes(
        self,
        choice: Choice,
        blocks: tuple[int, int],
        masks_bytes: int,
        scratches: dict[object, int],
        *,
        outputs: int,
        embeds: bool,
        mixed: bool,
    ) -> int:
        """The buffer of a device with the layers from `blocks[0]` up to `blocks[1]`, without rotation matrices.

        `masks_bytes`: of one copy of the inputs. `scratches`: f16 copies of the cache of each kind of layer.
        """
        copies = _PIPELINE_COPIES if choice.pipeline else 1
        quantised = choice.type_k not in ("f16", "f32", "bf16")
        run = Run(
            start=blocks[0],
            stop=blocks[1],
            tokens=padded_tokens(choice),
            sequences=choice.slots,
            outputs=outputs,
            embeds=embeds,
            copies=copies,
            mixed=mixed and embeds,
            rotated=quantised and not self._latent,
            scratches=tuple(scratches.get(kind, 0) for kind in self._replay.kinds),
        )
        with_masks, behind = self._replay.heights(run)
        return max(with_masks + masks_bytes * copies, behind + (masks_bytes * copies if choice.pipeline else 0))


def padded_tokens(choice: Choice) -> int:
    """Tokens of the largest graph: a micro-batch, evenly split over the sequences."""
    return -(-choice.step_tokens // choice.slots) * choice.slots
