"""A plan as llama-server's arguments, in the spellings that the installed build knows. Pure.

Every placement flag is written out, also where it equals a default: `/etc/llama.cpp/config.ini` can change what
is left out. Option and value are items of their own. `flags_tables` writes the sections that the plan has no part in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llamad.engine.arguments import Args
from llamad.engine.build import Capabilities
from llamad.engine.endpoint import TcpEndpoint
from llamad.engine.flags_tables import add_tables
from llamad.engine.names import child_names
from llamad.planning.plan import Plan

if TYPE_CHECKING:
    from llamad.config.definition import Definition, Placement

ALL_LAYERS = 999


def server_args(
    plan: Plan,
    definition: Definition,
    caps: Capabilities,
    *,
    socket_path: str,
    alias_names: Sequence[str],
    written: frozenset[str] = frozenset(),
) -> list[str]:
    """The arguments after the program's name that serve `plan` on a unix socket, or on a `TcpEndpoint`.

    `alias_names` are what the model answers to, the definition's own name first. Devices are named as the child
    will name them (see `names`). Raises ConfigError if the build lacks a flag that the plan or a value of the
    definition needs; a default that is not `written` (as `Loaded` has it) is left out instead.
    """
    return _args(plan, definition, caps, socket_path, alias_names, written, fit="off")


def dry_run_args(
    plan: Plan,
    definition: Definition,
    caps: Capabilities,
    *,
    socket_path: str,
    written: frozenset[str] = frozenset(),
) -> list[str]:
    """The same arguments for a run that only prints what it would allocate: with the fit, on another socket.

    Raises ConfigError as `server_args` does, and if the build cannot be asked (`can_ask`).
    """
    return _args(plan, definition, caps, socket_path, (), written, fit="on")


def can_ask(caps: Capabilities) -> bool:
    """Whether the build prints a memory breakdown before it loads."""
    return caps.has("--fit")


def logs_jsonl(caps: Capabilities) -> bool:
    """Whether the build logs JSON lines (to stdout) when told to; else text (to stderr)."""
    return caps.has("--log-jsonl")


def _args(
    plan: Plan,
    definition: Definition,
    caps: Capabilities,
    socket_path: str,
    alias_names: Sequence[str],
    written: frozenset[str],
    *,
    fit: str,
) -> list[str]:
    args = Args(caps)
    args.need("the model file", plan.model, "-m", "--model")
    if alias_names:
        args.offered(",".join(alias_names), "--alias")
    _address(args, socket_path)
    _context(args, plan)
    _devices(args, plan, definition.placement)
    if fit == "on":
        args.need("asking for the memory breakdown", fit, "--fit")
    else:
        args.offered(fit, "--fit")
    _placement(args, definition.placement)
    args.offered(str(plan.cache_ram_mib), "--cache-ram")
    if plan.checkpoints is not None and definition.placement.ctx_checkpoints == "auto":
        args.offered(str(plan.checkpoints), "--ctx-checkpoints", "--swa-checkpoints")
    add_tables(args, plan, definition, written, asking=fit == "on")
    _log(args)
    return [*args.items, *definition.server.extra_args]


def _address(args: Args, endpoint: str) -> None:
    if not isinstance(endpoint, TcpEndpoint):
        args.need("the socket", endpoint, "--host")
        return
    args.need("front", endpoint.host, "--host")
    args.need("front", str(endpoint.port), "--port")
    if endpoint.key_file is not None:
        args.need("the API keys", str(endpoint.key_file), "--api-key-file")


def _context(args: Args, plan: Plan) -> None:
    args.need("the context", str(plan.context_tokens), "-c", "--ctx-size")
    args.need("the number of slots", str(plan.slots), "-np", "--parallel")
    if plan.slots > 1 and plan.unified_cache:
        args.need("one cache shared by the slots", None, "-kvu", "--kv-unified")
    elif plan.slots > 1:
        args.offered(None, "-no-kvu", "--no-kv-unified")
    args.need("the batch", str(plan.batch_tokens), "-b", "--batch-size")
    args.need("the micro-batch", str(plan.ubatch_tokens), "-ub", "--ubatch-size")
    _flash_attention(args, plan)
    args.need("kv_cache", plan.cache_type_k, "-ctk", "--cache-type-k")
    args.need("kv_cache", plan.cache_type_v, "-ctv", "--cache-type-v")


def _flash_attention(args: Args, plan: Plan) -> None:
    if "on" in args.caps.values.get("-fa", frozenset()):
        args.need("flash_attention", "on" if plan.flash_attention else "off", "-fa")
    elif plan.flash_attention:  # before b6325 it was a switch, off by default
        args.need("flash_attention", None, "-fa", "--flash-attn")


def _devices(args: Args, plan: Plan, placement: Placement) -> None:
    if placement.rpc and any(device.name.startswith("RPC") for device in plan.devices):
        # Before the choice of devices, which is read with those that are known by then; and all of them, or they
        # have other numbers.
        args.need("rpc", ",".join(placement.rpc), "--rpc")
    names = child_names(plan.devices)
    layers = ALL_LAYERS if plan.layers >= plan.layers_total else plan.layers
    args.need("gpu_layers", str(layers if plan.devices else 0), "-ngl", "--gpu-layers", "--n-gpu-layers")
    if not plan.devices:
        args.offered("none", "--device")
        return
    args.need("the choice of devices", ",".join(names.values()), "--device")
    args.need("split_mode", plan.split_mode, "-sm", "--split-mode")
    if plan.split_mode == "none":
        args.need("main_gpu", str(list(names).index(plan.main_device)), "-mg", "--main-gpu")
    elif len(plan.devices) > 1 and plan.tensor_split:
        args.need("tensor_split", ",".join(map(str, plan.tensor_split)), "-ts", "--tensor-split")
    if plan.host_experts:
        args.need("n_cpu_moe", str(plan.host_experts), "--n-cpu-moe")
    if plan.host_ffn:
        args.need("n_cpu_ffn", str(plan.host_ffn), "--n-cpu-ffn")
    if _stops_pipeline(plan):
        args.need("devices that work one at a time", _NO_PIPELINE, "-ot", "--override-tensor")


# Any override of tensors' places, also one that matches none, keeps llama.cpp from making copies of the inputs.
_NO_PIPELINE = "llamad-no-pipeline=CPU"


def _stops_pipeline(plan: Plan) -> bool:
    """Whether llama.cpp would make copies for a pipeline that the plan does not count."""
    whole = plan.layers >= plan.layers_total and not plan.host_experts and not plan.host_ffn
    return len(plan.devices) > 1 and whole and not plan.pipeline


_OLDER_LOAD_MODES: dict[str, tuple[str, ...]] = {
    "auto": (),
    "mmap": (),
    "none": ("--no-mmap",),
    "mlock": ("--no-mmap", "--mlock"),
    "mmap+mlock": ("--mlock",),
    "dio": ("--direct-io",),
}
"""Flags for each load mode before b10105."""


def _placement(args: Args, placement: Placement) -> None:
    if args.caps.has("--load-mode"):
        args.need(f'load_mode = "{placement.load_mode}"', placement.load_mode, "--load-mode")
    else:
        for flag in _OLDER_LOAD_MODES[placement.load_mode]:
            args.need(f'load_mode = "{placement.load_mode}"', None, flag)
    if placement.threads != "auto":
        args.need("threads", str(placement.threads), "-t", "--threads")
    if placement.threads_batch != "auto":
        args.need("threads_batch", str(placement.threads_batch), "-tb", "--threads-batch")
    if placement.numa != "off":
        args.need("numa", placement.numa, "--numa")


def _log(args: Args) -> None:
    """What the proof reads: buffer sizes. Level 4 shows them where it is `trace`, the default does before."""
    if "trace" in args.caps.values.get("-lv", frozenset()):
        args.need("the proof of placement", "4", "-lv")
    args.offered(None, "--log-jsonl")
    args.offered("off", "--log-colors")
