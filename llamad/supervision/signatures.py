"""Texts of llama.cpp that name a cause of death. Pure data.

From common/arg.cpp, llama-model-loader.cpp, llama-mmap.cpp, ggml-cuda.cu (also ROCm and MUSA), ggml-vulkan.cpp,
ggml-sycl.cpp, ggml-metal, ggml-rpc.cpp, gguf.cpp, clip.cpp and the server. The corpus is in tests/data/causes.
"""

from __future__ import annotations

import re

_Table = tuple[tuple[re.Pattern[str], str], ...]


def _table(*rows: tuple[str, str]) -> _Table:
    return tuple((re.compile(pattern), name) for pattern, name in rows)


# What is said with every GPU hidden, or of a backend that is done without: decides nothing.
HARMLESS = re.compile(
    r"\w+_init: failed to initialize (CUDA|ROCm|MUSA|SYCL)|load_backend: failed to (load|find|initialize)"
    r"|failed to allocate .*pinned memory|host buffer for async uploads|mtmd_get_memory_usage"
    r"|failed to parse tool use chat template \(ignoring it\)|fit_params|failed to mlock|error printing grammar"
)

# The first line that matches anything decides; the order here is only a tie-break inside one line.
SIGNATURES = _table(
    (r"^setpriv: |^sh: \d+: |^/bin/sh: ", "not-executed"),
    (r"invalid device: ", "no-device"),
    (r"device_index:-?\d+ is out of range|ggml_vulkan: Device with index \d+ does not exist", "no-device"),
    (r"chat template parsing error|supplied chat template is not supported|failed to initialize chat template"
     r"|failed to parse chat template", "bad-template"),
    (r"^error: invalid argument|error while handling (argument|environment variable)|the argument has been removed"
     r"|quantized V cache (requires|was requested)|^error: .* (must be|is not supported|requires)\b", "bad-flag"),
    (r"no backends are loaded|no CPU backend found", "no-backend"),
    (r"failed to load lora adapter|llama_adapter_lora_init", "bad-lora"),
    (r"Failed to load CLIP model|failed to load multimodal model", "bad-projector"),
    (r"failed to load draft model|failed to create MTP context", "bad-draft"),
    (r"[Pp]ermission denied|Operation not permitted", "permission"),
    (r"failed to open GGUF file .*\(No such file|failed to open .*: No such file", "model-missing"),
    (r"unknown model architecture|CLIP cannot be used as main model|unknown pre-tokenizer type|unknown tokenizer"
     r"|unsupported model architecture|invalid ggml type|bad GGUF version|unsupported GGUF version"
     r"|unknown projector type", "model-unsupported"),
    (r"invalid magic characters|failed to read (magic|key-value pairs|tensor info|header)|not within the file bounds"
     r"|missing tensor|tensor '[^']*' (not found|has wrong|has invalid data|is duplicated)|wrong number of tensors"
     r"|key not found in model|key \S+ has wrong|error loading model (hyperparameters|vocabulary)|corrupted model"
     r"|unexpectedly reached end of file|invalid split|illegal split|found tensors with invalid data|read error: "
     r"|gguf_init_from\w*: (failed|.*(invalid|duplicate|out of range|not aligned))", "model-bad"),
    (r"couldn't bind HTTP server socket|couldn't start HTTP listener|[Aa]ddress already in use", "address-in-use"),
    # A device that is gone, before memory: its errors come in the same clothes.
    (r"device lost|DeviceLost|DEVICE_LOST|device fault on|(CUDA|ROCm|MUSA) error: (an illegal (memory|instruction)"
     r"|unspecified launch failure|uncorrectable ECC|no (CUDA|ROCm)-capable device|the launch timed out"
     r"|hardware stack error|misaligned address|invalid device ordinal|.*busy or unavailable|unknown error"
     r"|device kernel image is invalid|GPU has fallen|system has unsupported)|GPU (hang|Hang)|HW Exception by GPU"
     r"|HSA_STATUS_ERROR_(EXCEPTION|MEMORY_FAULT|ILLEGAL)|Memory access fault by GPU|kIOGPUCommandBufferCallbackError"
     r"(Hang|PageFault|SubmissionsIgnored|InnocentVictim)|RPC server crashed|Failed to connect to", "device-lost"),
    (r"no kernel image is available|(CUDA|ROCm|MUSA) error: .*(unsupported|insufficient for)"
     r"|architecture is not supported|does not support 16-bit storage|Vulkan 1\.2 required", "gpu-unsupported"),
    (r"ErrorOutOfHostMemory|ggml_aligned_malloc: insufficient memory|mmap failed: Cannot allocate|std::bad_alloc"
     r"|failed to allocate (CPU|\w+_Host)\w* buffer|can't allocate \d+ Bytes of memory on host|posix_memalign failed"
     r"|vm_allocate failed|Buffer allocation failed"
     r"|LLVM ERROR: out of memory|fatal: Memory allocation failed|ggml_(malloc|calloc): failed", "host-out-of-memory"),
    (r"system_error|thread constructor failed|Resource temporarily unavailable", "too-many-tasks"),
    (r"cudaMalloc failed|(CUDA|ROCm|MUSA) error: (out of memory|the resource allocation failed|hipErrorOutOfMemory)"
     r"|hipErrorOutOfMemory|cudaErrorMemoryAllocation|CUBLAS_STATUS_ALLOC_FAILED|ROCBLAS_STATUS_MEMORY_ERROR"
     r"|ErrorOutOfDeviceMemory|OutOfDeviceMemoryError|ErrorFragmentation|Requested (preallocation )?(buffer )?size"
     r"( is too large| exceeds)|emory allocation of size \d+ failed"
     r"|can't allocate \d+ Bytes of memory on device|OUT_OF_DEVICE_MEMORY|OUT_OF_RESOURCES"
     r"|MEM_OBJECT_ALLOCATION_FAILURE|error: failed to allocate buffer, size =|Insufficient Memory"
     r"|CallbackErrorOutOfMemory|unable to allocate [A-Z]\w*\d+ buffer|failed to allocate (?!CPU)[A-Z]\w*\d+\S* buffer"
     r"|cannot run the operation \(\w+\)|failed to allocate buffer for (kv|rs) cache"
     r"|failed to allocate compute|gallocr_reserve\w*: failed|failed to allocate output buffer"
     r"|process_ubatch: failed to allocate graph|failed to allocate buffer of size", "gpu-out-of-memory"),
    (r"(CUDA|ROCm|MUSA|SYCL|BLAS) error|Exception caught at file:\S*ggml-sycl|command buffer \d+ failed with status",
     "gpu-error"),
)  # fmt: skip

# Of a child that had served, whose log may quote what clients wrote: only lines that begin as the backends' own do.
SERVED = _table(
    (r"(CUDA|ROCm|MUSA) error: (out of memory|the resource allocation failed)", "gpu-out-of-memory"),
    (r"\w*buffer_type_alloc_buffer: allocating .* failed: out of memory", "gpu-out-of-memory"),
    (r"ggml_vulkan: (Device memory allocation of size \d+ failed|.*ErrorOutOfDeviceMemory)", "gpu-out-of-memory"),
    (r"terminate called after throwing an instance of 'vk::OutOfDeviceMemoryError'", "gpu-out-of-memory"),
    (r"ggml_\w+: (can't allocate \d+ Bytes of memory on device|error: failed to allocate buffer, size)",
     "gpu-out-of-memory"),
    (r"error: Insufficient Memory", "gpu-out-of-memory"),
    (r"(ggml_gallocr_\w+|ggml_backend_buft_\w+): failed to allocate", "gpu-out-of-memory"),
    (r"terminate called after throwing an instance of 'vk::DeviceLostError'|ggml_vulkan: device (lost|fault)",
     "device-lost"),
    (r"(CUDA|ROCm|MUSA) error: (an illegal|unspecified|uncorrectable|no |the launch|hardware|misaligned|unknown)",
     "device-lost"),
    (r"HW Exception by GPU|Memory access fault by GPU|error: .*kIOGPUCommandBufferCallbackError", "device-lost"),
    (r"\S*ggml-rpc\.cpp:\d+: Remote RPC server crashed", "device-lost"),
    (r"ggml_aligned_malloc: insufficient memory|terminate called after throwing an instance of 'std::bad_alloc'",
     "host-out-of-memory"),
    (r"\S*ggml-cuda\.cu:\d+: (CUDA|ROCm|MUSA) error|(CUDA|ROCm|MUSA) error: |.*Exception caught at file:\S*ggml-sycl",
     "gpu-error"),
)  # fmt: skip

# Which part of a load it was that failed; lines that come before or after the one that names the cause.
PARTS = _table(
    (r"failed to load draft model|failed to create MTP context|speculative_init_result: failed", "draft"),
    (r"failed to load multimodal model|clip_init: |mtmd_init|failed to allocate compute graph|clip\.cpp", "vision"),
    (r"failed to load lora adapter", "lora"),
    (r"error loading model: unable to allocate|unable to allocate \S+ buffer", "weights"),
    (r"failed to allocate buffer for (kv|rs) cache|pre-allocated tensor \((cache|c|r|s)_", "context"),
    (r"failed to allocate compute|gallocr_reserve|failed to allocate output buffer|failed to reserve", "compute"),
)  # fmt: skip
