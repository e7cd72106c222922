"""What a model definition and the host settings hold: plain frozen tables, units in names. No I/O.

A value that the admin wrote is a promise that the planner keeps or refuses; a default is the planner's to
choose. `written` of the loader tells the two apart, so every default here is safe to change.

The annotations are the schema: `schema` evaluates them, and makes of each table the strict reader that refuses
what they do not allow. Here they stay texts, because a start whose definition was judged before must not pay for
the library that judges.
"""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, FrozenInstanceError, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, dataclass_transform

if TYPE_CHECKING:
    from typing import Annotated, Literal

    from pydantic import Field

    from llamad.config.schema import (
        Auto,
        CacheType,
        Count,
        CpuMask,
        CpuRange,
        Duration,
        Factor,
        FilePath,
        LayerRange,
        Layers,
        ListenText,
        Memory,
        Penalty,
        RpcServer,
        Sampler,
        Scalar,
        Scale,
        Seconds,
        Share,
        Size,
        SomeBytes,
        SomeFactor,
        SomeSeconds,
        Speculation,
        Tag,
        Threads,
        Tokens,
        TokensOrNone,
    )


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
class Table:
    """A TOML table: each class that inherits from it is a frozen dataclass, its annotations the keys.

    What `dataclass` would write anew for each of them is here once: compiling it took a start longer than reading
    the definition.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __init_subclass__(cls) -> None:
        dataclass(init=False, repr=False, eq=False, match_args=False)(cls)

    def __init__(self, **values: Any) -> None:
        own = self.__dict__
        for name, spec in self.__dataclass_fields__.items():
            if name in values:
                own[name] = values.pop(name)
            elif spec.default is not MISSING:
                own[name] = spec.default
            elif spec.default_factory is not MISSING:
                own[name] = spec.default_factory()
            else:
                raise TypeError(f"{type(self).__name__} needs {name}")
        if values:
            raise TypeError(f"{type(self).__name__} has no {', '.join(values)}")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({values})"


class Placement(Table):
    """`[placement]`: what the planner may choose, and what the admin promised."""

    context: Tokens | Auto = "auto"
    context_min: Tokens = 4096
    parallel: Annotated[int, Field(ge=1, le=256)] | Auto = "auto"
    kv_cache: CacheType | Auto = "f16"
    batch: Tokens | Auto = "auto"
    memory: Memory = "auto"
    ubatch: Tokens | Auto = "auto"
    flash_attention: bool | Auto = "auto"
    gpu_layers: Layers | Auto = "auto"
    split_mode: Literal["layer", "none"] = "layer"
    tensor_split: tuple[Annotated[float, Field(ge=0)], ...] = ()
    main_gpu: Annotated[int, Field(ge=0, le=255)] | Auto = "auto"
    gpus: Auto | tuple[Annotated[int, Field(ge=0, le=255)] | Annotated[str, Field(min_length=1)], ...] = (
        "auto"
    )
    rpc: tuple[RpcServer, ...] = ()
    cpu_moe: bool = False
    n_cpu_moe: Layers | Auto = "auto"
    n_cpu_ffn: Layers | Auto = "auto"
    kv_offload: bool = True
    op_offload: bool = True
    repack: bool = True
    no_host: bool = False
    swa_full: bool = False
    ctx_checkpoints: Annotated[int, Field(ge=0, le=1024)] | Auto = "auto"
    checkpoint_every: TokensOrNone | Auto = "auto"
    load_mode: Literal["auto", "none", "mmap", "mlock", "mmap+mlock", "dio"] = "auto"
    lazy_mode: Literal["auto", "on", "off"] = "auto"
    threads: Threads | Auto = "auto"
    threads_batch: Threads | Auto = "auto"
    cpu_mask: CpuMask | None = None
    cpu_range: CpuRange | None = None
    cpu_strict: bool = False
    priority: Literal["low", "normal"] = "normal"
    poll: Annotated[int, Field(ge=0, le=100)] | Auto = "auto"
    numa: Literal["off", "distribute", "isolate", "numactl"] = "off"
    vram_margin: Size = "auto"
    allow_cpu: bool = False


class Limits(Table):
    """`[limits]`: every bound and deadline of the relay and of the supervisor."""

    max_concurrent_requests: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    queue_requests: Annotated[int, Field(ge=0, le=100_000)] = 100
    wait_s: Seconds = 120.0
    drain_s: Seconds = 60.0
    head_bytes: Annotated[int, Field(ge=1024, le=1 << 20)] = 65_536
    body_bytes: Annotated[int, Field(ge=1024, le=2**40)] = 64 << 20
    replay_bytes: SomeBytes = 64 << 20
    client_idle_s: SomeSeconds = 75.0
    max_input_tokens: Tokens | None = None
    max_output_tokens: Tokens | None = None
    max_total_tokens: Tokens | None = None
    heartbeat_s: Seconds = 0.0
    start_stall_s: SomeSeconds = 180.0
    start_wait_s: Seconds = 600.0
    warmup_s: SomeSeconds = 300.0
    hang_s: SomeSeconds = 60.0
    stop_s: SomeSeconds = 5.0
    restarts: Count = 5
    stable_s: SomeSeconds = 60.0
    child_log_lines_per_s: Annotated[int, Field(ge=1, le=1_000_000)] = 200


class Server(Table):
    """`[server]`: llama-server's own options that are not about memory."""

    chat_template: str | None = None
    chat_template_file: FilePath | None = None
    chat_template_kwargs: dict[str, Scalar] = field(default_factory=dict)
    jinja: bool = True
    skip_chat_parsing: bool = False
    prefill_assistant: bool = True
    reasoning: Literal["auto", "on", "off"] = "auto"
    reasoning_format: Literal["auto", "none", "deepseek", "deepseek-legacy"] = "auto"
    reasoning_effort: Literal["default", "minimal", "low", "medium", "high", "xhigh", "max"] = "default"
    reasoning_budget: Annotated[int, Field(ge=-1, le=2**31 - 1)] = -1
    reasoning_budget_message: str | None = None
    reasoning_preserve: bool | Auto = "auto"
    metrics: bool = True
    ui: bool = False
    embeddings: bool = False
    reranking: bool = False
    pooling: Literal["auto", "none", "mean", "cls", "last", "rank"] = "auto"
    embd_normalize: Annotated[int, Field(ge=-1, le=1000)] = 2
    cache_ram: Size = "auto"
    cache_prompt: bool = True
    cache_reuse: TokensOrNone = 0
    cache_idle_slots: bool = True
    cont_batching: bool = True
    context_shift: bool = False
    slot_prompt_similarity: Share = 0.1
    special: bool = False
    spm_infill: bool = False
    check_tensors: bool = False
    override_kv: dict[str, Scalar] = field(default_factory=dict)
    tags: tuple[Tag, ...] = ()
    threads_http: Threads | Auto = "auto"
    timeout_s: Annotated[int, Field(ge=1, le=10_000_000)] = 3600
    sse_ping_s: Annotated[int, Field(ge=-1, le=10_000_000)] = 30
    extra_args: tuple[str, ...] = ()


class Sampling(Table):
    """`[sampling]`: how tokens are chosen where a request does not say. None: as the model's file, or llama-server."""

    samplers: tuple[Sampler, ...] = ()
    seed: Annotated[int, Field(ge=0, le=2**32 - 2)] | None = None
    max_tokens: Tokens | None = None
    keep: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    ignore_eos: bool = False
    temperature: Factor | None = None
    dynatemp_range: Factor | None = None
    dynatemp_exp: Factor | None = None
    top_k: TokensOrNone | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    top_n_sigma: Annotated[float, Field(ge=-1, le=1000)] | None = None
    typical_p: Share | None = None
    xtc_probability: Share | None = None
    xtc_threshold: Share | None = None
    repeat_penalty: Factor | None = None
    repeat_last_n: TokensOrNone | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    dry_multiplier: Factor | None = None
    dry_base: Factor | None = None
    dry_allowed_length: TokensOrNone | None = None
    dry_penalty_last_n: TokensOrNone | None = None
    dry_sequence_breakers: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] = ()
    adaptive_target: Annotated[float, Field(ge=-1, le=1)] | None = None
    adaptive_decay: Annotated[float, Field(ge=0, le=0.99)] | None = None
    mirostat: Annotated[int, Field(ge=0, le=2)] | None = None
    mirostat_lr: Factor | None = None
    mirostat_ent: Factor | None = None
    grammar_file: FilePath | None = None
    json_schema_file: FilePath | None = None
    backend_sampling: bool = False


class Draft(Table):
    """`[draft]`: tokens that are guessed ahead and checked by the model (speculative decoding)."""

    types: tuple[Speculation, ...] = ()
    model: FilePath | None = None
    n_max: Annotated[int, Field(ge=1, le=1024)] | None = None
    n_min: Annotated[int, Field(ge=0, le=1024)] | None = None
    p_min: Share | None = None
    p_split: Share | None = None
    sampling: Literal["greedy", "probabilistic"] = "greedy"
    backend_sampling: bool = True
    gpus: Auto | tuple[Annotated[str, Field(min_length=1)], ...] = "auto"
    gpu_layers: Layers | Auto = "auto"
    kv_cache: CacheType = "f16"
    ubatch: Tokens | Auto = "auto"
    cpu_moe: bool = False
    n_cpu_moe: Layers | Auto = "auto"
    threads: Threads | Auto = "auto"
    threads_batch: Threads | Auto = "auto"
    ngram_lookup: Annotated[int, Field(ge=1, le=1024)] | None = None
    ngram_draft: Annotated[int, Field(ge=1, le=1024)] | None = None
    ngram_draft_min: Annotated[int, Field(ge=0, le=1024)] | None = None
    ngram_min_hits: Annotated[int, Field(ge=1, le=1024)] | None = None
    ngram_cache_file: FilePath | None = None


class Lora(Table):
    """`[lora]`: what is laid over the model's weights; files with their scales."""

    adapters: dict[str, Scale] = field(default_factory=dict)
    init_without_apply: bool = False
    control_vectors: dict[str, Scale] = field(default_factory=dict)
    control_vector_layers: LayerRange | None = None


class Vision(Table):
    """`[vision]`: the projector that lets a model see images, or hear."""

    mmproj: FilePath | None = None
    offload: bool = True
    gpu: Annotated[str, Field(min_length=1)] = "auto"
    image_min_tokens: Tokens | None = None
    image_max_tokens: Tokens | None = None
    batch_tokens: Tokens | None = None


class Rope(Table):
    """`[rope]`: how positions are encoded, where it is not as the model's file says."""

    scaling: Literal["none", "linear", "yarn"] | None = None
    scale: SomeFactor | None = None
    freq_base: SomeFactor | None = None
    freq_scale: SomeFactor | None = None
    yarn_orig_ctx: Tokens | None = None
    yarn_ext_factor: Annotated[float, Field(ge=-1, le=1000)] | None = None
    yarn_attn_factor: Annotated[float, Field(ge=-1, le=1000)] | None = None
    yarn_beta_slow: Annotated[float, Field(ge=-1, le=1000)] | None = None
    yarn_beta_fast: Annotated[float, Field(ge=-1, le=1000)] | None = None


class Idle(Table):
    """`[idle]`: when the router may unload the model."""

    keep_alive: Duration = "30min"


class Cache(Table):
    """`[cache]`: answers that are kept for the same request."""

    responses: Count = 0
    response_bytes: SomeBytes = 16 << 20


class Log(Table):
    """`[log]`: what is written down of requests."""

    requests: Literal["info", "debug", "off"] = "info"


class Definition(Table):
    """One `/etc/llamad/NAME.toml` with its drop-ins and the defaults of `llamad.toml` merged in."""

    model: Annotated[str, Field(min_length=1)]
    aliases: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = ()
    listen: ListenText | None = None
    listen_mode: Literal["0600", "0660", "0666"] = "0600"
    front: Literal["relay", "direct"] = "relay"
    start: Literal["on-demand", "always", "manual"] = "on-demand"
    insecure: bool = False
    api_keys_file: FilePath | None = None
    admin_keys_file: FilePath | None = None
    tls_cert: FilePath | None = None
    tls_key: FilePath | None = None
    allowed_hosts: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    placement: Placement = Placement()
    limits: Limits = Limits()
    cache: Cache = Cache()
    log: Log = Log()
    server: Server = Server()
    sampling: Sampling = Sampling()
    draft: Draft = Draft()
    lora: Lora = Lora()
    vision: Vision = Vision()
    rope: Rope = Rope()
    environment: dict[str, str] = field(default_factory=dict)
    idle: Idle = Idle()

    @property
    def is_direct(self) -> bool:
        """Whether clients reach llama-server itself, and not llamad's front."""
        return self.front == "direct"


class Host(Table):
    """`[host]` of `llamad.toml`."""

    server: Annotated[str, Field(min_length=1)] = "llama-server"
    models: tuple[Annotated[str, Field(min_length=1)], ...] = ("/var/lib/llamad/models",)
    parallel_loads: Annotated[int, Field(ge=1, le=1024)] = 1
    query_s: SomeSeconds = 5.0
    watch: bool = True
    listen: ListenText = "127.0.0.1:8080"
    listen_mode: Literal["0600", "0660", "0666"] = "0600"
    insecure: bool = False
    api_keys_file: FilePath | None = None
    tls_cert: FilePath | None = None
    tls_key: FilePath | None = None
    allowed_hosts: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    resident_s: Seconds = 30.0
    unit_grace_s: Seconds = 10.0


class HostSettings(Table):
    """`/etc/llamad/llamad.toml`: host settings, and defaults for the tables of every definition."""

    host: Host = Host()
    placement: Placement = Placement()
    limits: Limits = Limits()
    cache: Cache = Cache()
    log: Log = Log()
    server: Server = Server()
    sampling: Sampling = Sampling()
    environment: dict[str, str] = field(default_factory=dict)
    idle: Idle = Idle()
