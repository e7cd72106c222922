"""What a model definition and the host settings hold: plain frozen tables, units in names. No I/O.

A value that the admin wrote is a promise that the planner keeps or refuses; a default is the planner's to
choose. `written` of the loader tells the two apart, so every default here is safe to change.

The annotations are the schema: `schema` evaluates them, and makes of each table the strict reader that refuses
what they do not allow. Here they stay texts, because a start whose definition was judged before must not pay for
the library that judges.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Annotated, Literal

    from pydantic import Field

    from llamad.config.schema import (
        Auto,
        CacheType,
        Count,
        Duration,
        ListenText,
        Memory,
        Seconds,
        Size,
        SomeBytes,
        SomeSeconds,
        Tokens,
    )


@dataclass(frozen=True, slots=True)
class Table:
    """A TOML table."""


@dataclass(frozen=True, slots=True, kw_only=True)
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
    gpu_layers: Annotated[int, Field(ge=0, le=1024)] | Auto = "auto"
    split_mode: Literal["layer", "none"] = "layer"
    tensor_split: tuple[Annotated[float, Field(ge=0)], ...] = ()
    main_gpu: Annotated[int, Field(ge=0, le=255)] | Auto = "auto"
    gpus: Auto | tuple[Annotated[int, Field(ge=0, le=255)] | Annotated[str, Field(min_length=1)], ...] = (
        "auto"
    )
    cpu_moe: bool = False
    n_cpu_moe: Annotated[int, Field(ge=0, le=1024)] | Auto = "auto"
    load_mode: Literal["auto", "none", "mmap", "mlock", "mmap+mlock", "dio"] = "auto"
    threads: Annotated[int, Field(ge=1, le=4096)] | Auto = "auto"
    threads_batch: Annotated[int, Field(ge=1, le=4096)] | Auto = "auto"
    numa: Literal["off", "distribute", "isolate", "numactl"] = "off"
    vram_margin: Size = "auto"
    allow_cpu: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
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
    start_stall_s: SomeSeconds = 180.0
    warmup_s: SomeSeconds = 300.0
    stop_s: SomeSeconds = 5.0
    restarts: Count = 5
    stable_s: SomeSeconds = 60.0
    child_log_lines_per_s: Annotated[int, Field(ge=1, le=1_000_000)] = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Server(Table):
    """`[server]`: llama-server's own options that are not about memory."""

    chat_template: str | None = None
    chat_template_file: str | None = None
    jinja: bool = True
    metrics: bool = True
    ui: bool = False
    embeddings: bool = False
    reranking: bool = False
    cache_ram: Size = "auto"
    extra_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle(Table):
    """`[idle]`: when the router may unload the model."""

    keep_alive: Duration = "30min"


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition(Table):
    """One `/etc/llamad/NAME.toml` with its drop-ins and the defaults of `llamad.toml` merged in."""

    model: Annotated[str, Field(min_length=1)]
    aliases: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = ()
    listen: ListenText | None = None
    listen_mode: Literal["0600", "0660", "0666"] = "0600"
    start: Literal["on-demand", "always", "manual"] = "on-demand"
    insecure: bool = False
    api_keys_file: str | None = None
    allowed_hosts: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    placement: Placement = Placement()
    limits: Limits = Limits()
    server: Server = Server()
    environment: dict[str, str] = field(default_factory=dict)
    idle: Idle = Idle()


@dataclass(frozen=True, slots=True, kw_only=True)
class Host(Table):
    """`[host]` of `llamad.toml`."""

    server: Annotated[str, Field(min_length=1)] = "llama-server"
    models: tuple[Annotated[str, Field(min_length=1)], ...] = ("/var/lib/llamad/models",)
    parallel_loads: Annotated[int, Field(ge=1, le=1024)] = 1
    query_s: SomeSeconds = 5.0
    watch: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings(Table):
    """`/etc/llamad/llamad.toml`: host settings, and defaults for the tables of every definition."""

    host: Host = Host()
    placement: Placement = Placement()
    limits: Limits = Limits()
    server: Server = Server()
    environment: dict[str, str] = field(default_factory=dict)
    idle: Idle = Idle()
