"""How llama.cpp's backends differ in what they allocate. One table, with where each figure is from. Pure."""

from __future__ import annotations

from llamad.frozen import dataclass
from llamad.units import MIB


@dataclass(frozen=True)
class Backend:
    """Rules of one backend."""

    alignment_bytes: int
    """Each tensor's start in a buffer is a multiple of this."""
    row_padding: int
    """Rows of quantised tensors are filled up to a multiple of this many elements; 0 = not."""
    cache_scratch: bool
    """A cache that is not f16 is copied to f16, one layer at a time, inside the compute buffer."""
    copies_weights: bool
    """Weights that stay on the host are copied to the device for large batches (op offload)."""
    context_bytes: int | None
    """Driver context of a process; None = by the size of the card (see overhead.py)."""
    library_bytes: int
    """Workspaces and graphs of the vendor's libraries."""
    pipelines: bool
    """It has events, so that several devices can work on different micro-batches at once."""
    process_bytes: int
    """Host memory of an idle llama-server with this backend: heap and libraries."""


# alignment, padding and scratch of CUDA: ggml-cuda.cu (128 bytes, MATRIX_ROW_PADDING 512, f16 copies), reproduced
# by the figures of real logs; HIP is the same source. Process sizes of CPU, Vulkan and RPC were measured on build
# 11669 (resident 136, 193 and 135 MiB); of CUDA and HIP they are a guess on the safe side.
_CUDA = Backend(128, 512, True, True, None, 40 * MIB, True, 400 * MIB)

_BACKENDS = {
    "CUDA": _CUDA,
    "ROCm": _CUDA,
    # 0 to 64 was measured on Vulkan (minStorageBufferOffsetAlignment of the driver), 32 over RPC (the remote CPU's)
    "Vulkan": Backend(64, 0, False, True, 128 * MIB, 0, True, 200 * MIB),
    # The remote server has its context already when it tells its free bytes.
    "RPC": Backend(32, 0, False, False, 0, 40 * MIB, False, 144 * MIB),
    "CPU": Backend(32, 0, False, False, 0, 0, False, 144 * MIB),
}
# SYCL, MTL, CANN, ...: the largest of everything known.
_UNKNOWN = _CUDA


def backend_of(name: str) -> Backend:
    """The rules of a backend by llama.cpp's name for it (`CUDA`, `Vulkan`, `RPC`, ...)."""
    return _BACKENDS.get(name, _UNKNOWN)
