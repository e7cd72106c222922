"""What `extra_args` and `[environment]` may hold."""

from __future__ import annotations

import pytest

from llamad.config.definition import Definition
from llamad.config.environment import refused_variables
from llamad.config.expected import kinds_at
from llamad.config.extra_args import _TYPED, refused_args


def judged(*args: str) -> dict[int, tuple[str, str]]:
    return {index: (fault, fix) for index, fault, fix in refused_args(args)}


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("-c", "placement.context"), ("--ctx-size", "placement.context"), ("-ngl", "placement.gpu_layers"),
        ("--n-gpu-layers", "placement.gpu_layers"), ("-np", "placement.parallel"), ("-kvu", "placement.parallel"),
        ("-fa", "placement.flash_attention"), ("-ctk", "placement.kv_cache"), ("-b", "placement.batch"),
        ("-ub", "placement.ubatch"), ("--host", "listen"), ("--port", "listen"), ("-m", "model"), ("-hf", "model"),
        ("--api-key", "api_keys_file"), ("--load-mode", "placement.load_mode"), ("--no-mmap", "placement.load_mode"),
        ("-dev", "placement.gpus"), ("-ts", "placement.tensor_split"), ("-sm", "placement.split_mode"),
        ("-mg", "placement.main_gpu"), ("--metrics", "server.metrics"), ("--ui", "server.ui"),
        ("--no-webui", "server.ui"), ("--alias", "aliases"), ("-t", "placement.threads"), ("-cram", "server.cache_ram"),
        ("--n-cpu-moe", "placement.n_cpu_moe"), ("--embeddings", "server.embeddings"), ("--jinja", "server.jinja"),
        ("--sleep-idle-seconds", "idle.keep_alive"), ("--no-kv-offload", "placement.kv_offload"),
        ("--lora", "lora.adapters"), ("-mm", "vision.mmproj"), ("--no-mmproj", "vision.mmproj"), ("-md", "draft.model"),
        ("--spec-default", "draft.types"), ("--draft-max", "draft.n_max"), ("--temp", "sampling.temperature"),
        ("-n", "sampling.max_tokens"), ("--grammar", "sampling.grammar_file"), ("--yarn-orig-ctx", "rope.yarn_orig_ctx"),
        ("-rea", "server.reasoning"), ("--override-kv", "server.override_kv"), ("-C", "placement.cpu_mask"),
    ],
)  # fmt: skip
def test_flags_with_a_key_of_their_own(flag: str, key: str) -> None:
    assert judged(flag, "1") == {0: (f"{flag} is set by a key of its own", f"use {key}")}


def test_every_key_that_is_offered_instead_exists() -> None:
    for key in _TYPED:
        assert kinds_at(Definition, tuple(key.split("."))), key


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--tools", "run commands"), ("--agent", "run commands"), ("-ag", "run commands"),
        ("--mcp-servers-config", "run commands"), ("--ui-mcp-proxy", "reach the network"),
        ("--video-ffmpeg-dir", "run other programs"), ("--fit", "plans the memory"), ("-lv", "reads the log"),
        ("--log-file", "reads the log"), ("--no-log-jsonl", "reads the log"), ("--no-warmup", "warms the model up"),
        ("-ot", "plan counts elsewhere"), ("--moe-cache-mib", "plan counts elsewhere"), ("--models-dir", "a definition"),
        ("--media-path", "read files"), ("--slot-save-path", "llamad sets it"), ("--log-prompts-dir", "into files"),
        ("--version", "exits"), ("--list-devices", "exits"), ("--api-prefix", "own paths"),
        ("--mmproj-url", "downloads"), ("--gpt-oss-20b-default", "downloads"), ("--fim-qwen-7b-spec", "downloads"),
    ],
)  # fmt: skip
def test_flags_that_are_refused(flag: str, reason: str) -> None:
    ((fault, fix),) = judged(flag).values()
    assert fault.startswith(f"{flag} is refused: ")
    assert reason in fault
    assert fix == "delete it"


def test_flags_that_llamad_has_no_key_for_pass() -> None:
    passed = [
        "-l", "15043-1", "--perf", "-Cb", "ff", "--no-agent", "--no-ui-mcp-proxy",
        "--cors-origins", "localhost", "--reverse-prompt", '{"a": -1}', "-", "--", "plain",
    ]  # fmt: skip
    assert judged(*passed) == {}


def test_spellings_are_judged_as_llama_server_reads_them() -> None:
    assert judged("--ctx_size", "5", "--ctx-size=5", "-c=5", "--ctx_size 5", "-c 5").keys() == {
        0,
        2,
        3,
        4,
        5,
    }
    assert judged("-C")[0][1] == "use placement.cpu_mask"  # case matters: a mask of processors, not a context


def test_a_flag_and_its_value_are_two_elements() -> None:
    assert judged("--video-fps=5", "--perf 5", "--x=") == {
        0: ('llama-server does not take "--video-fps=5" as one word', 'write two elements: "--video-fps", "5"'),
        1: ('llama-server does not take "--perf 5" as one word', 'write two elements: "--perf", "5"'),
        2: ('llama-server does not take "--x=" as one word', 'write two elements: "--x", ""'),
    }


def variables(*names: str) -> dict[str, str]:
    return {name: f"{fault}; {fix}" for name, fault, fix in refused_variables(names)}


def test_variables_for_the_engine_and_the_drivers_pass() -> None:
    allowed = [
        "GGML_VK_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "HSA_OVERRIDE_GFX_VERSION", "HIP_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES", "GPU_MAX_HW_QUEUES", "VK_ICD_FILENAMES", "MESA_VK_DEVICE_SELECT", "LP_NUM_THREADS",
        "OMP_NUM_THREADS", "LLAMA_ATTN_ROT_DISABLE", "NVIDIA_TF32_OVERRIDE", "SYCL_DEVICE_FILTER", "ONEAPI_DEVICE_SELECTOR",
        "ZES_ENABLE_SYSMAN", "RADV_PERFTEST", "AMD_LOG_LEVEL",
    ]  # fmt: skip
    assert variables(*allowed) == {}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("LLAMA_ARG_CTX_SIZE", "contradict the plan"),
        ("LLAMA_SERVER_ROUTER_PORT", "router mode"),
        ("LLAMA_API_KEY", "use api_keys_file or a credential"),
        ("LD_LIBRARY_PATH", "loads other code"),
        ("LD_PRELOAD", "loads other code"),
        ("HF_TOKEN", "never downloads"),
        ("PATH", "llamad sets it"),
        ("NOTIFY_SOCKET", "llamad sets it"),
        ("https_proxy", "network"),
        ("FOO", "allowed are GGML_*, LLAMA_*"),
        ("GGML X", "is no name of a variable"),
        ("GGML_X=1", "is no name of a variable"),
        ("", "is no name of a variable"),
    ],
)
def test_variables_that_are_refused(name: str, words: str) -> None:
    assert words in variables(name)[name]
