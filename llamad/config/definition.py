"""The schema of a model definition and of the host settings: strict, frozen, units in names. No I/O.

A value that the admin wrote is a promise that the planner keeps or refuses; a default is the planner's to
choose. `written` of the loader tells the two apart, so every default here is safe to change.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from llamad.units import parse_duration, parse_size

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,47}")
RESERVED_NAMES = frozenset({"llamad"})
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]

Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
Auto = Literal["auto"]


def _size(text: str) -> str:
    if text != "auto":
        parse_size(text)
    return text


def _memory(text: str) -> str:
    if re.fullmatch(r"\d{1,3}%", text):
        if not 1 <= int(text[:-1]) <= 100:
            raise ValueError(f'not a share: "{text}" (1% to 100%)')
        return text
    return _size(text)


def _duration(text: str) -> str:
    parse_duration(text)
    return text


Size = Annotated[str, AfterValidator(_size)]
Memory = Annotated[str, AfterValidator(_memory)]
Duration = Annotated[str, AfterValidator(_duration)]


class Table(BaseModel):
    """A TOML table: unknown keys refused, no coercion, frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


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
    main_gpu: Annotated[int, Field(ge=0)] | Auto = "auto"
    gpus: Auto | tuple[int | str, ...] = "auto"
    cpu_moe: bool = False
    n_cpu_moe: Annotated[int, Field(ge=0, le=1024)] | Auto = "auto"
    load_mode: Literal["auto", "none", "mmap", "mlock", "mmap+mlock", "dio"] = "auto"
    threads: Annotated[int, Field(ge=1, le=4096)] | Auto = "auto"
    threads_batch: Annotated[int, Field(ge=1, le=4096)] | Auto = "auto"
    numa: Literal["off", "distribute", "isolate", "numactl"] = "off"
    vram_margin: Size = "auto"
    allow_cpu: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Placement:
        if self.context != "auto" and "context_min" in self.model_fields_set and self.context_min > self.context:
            raise ValueError(f"context_min ({self.context_min}) is above context ({self.context})")
        if self.batch != "auto" and self.ubatch != "auto" and self.ubatch > self.batch:
            raise ValueError(f"ubatch ({self.ubatch}) is above batch ({self.batch})")
        quantised = self.kv_cache not in ("auto", "f32", "f16", "bf16")
        if quantised and self.flash_attention is False:
            raise ValueError(f"kv_cache {self.kv_cache} needs flash_attention")
        return self


class Limits(Table):
    """`[limits]`: every bound and deadline of the relay and of the supervisor."""

    max_concurrent_requests: Annotated[int, Field(ge=1)] | None = None
    queue_requests: Annotated[int, Field(ge=0, le=100_000)] = 100
    wait_s: Annotated[float, Field(ge=0)] = 120.0
    drain_s: Annotated[float, Field(ge=0)] = 60.0
    head_bytes: Annotated[int, Field(ge=1024, le=1 << 20)] = 65_536
    body_bytes: Annotated[int, Field(ge=1024)] = 64 << 20
    replay_bytes: Annotated[int, Field(ge=0)] = 64 << 20
    client_idle_s: Annotated[float, Field(gt=0)] = 75.0
    start_stall_s: Annotated[float, Field(gt=0)] = 180.0
    warmup_s: Annotated[float, Field(gt=0)] = 300.0
    stop_s: Annotated[float, Field(gt=0)] = 5.0
    restarts: Annotated[int, Field(ge=0)] = 5
    stable_s: Annotated[float, Field(gt=0)] = 60.0
    child_log_lines_per_s: Annotated[int, Field(ge=1)] = 200


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

    @model_validator(mode="after")
    def _consistent(self) -> Server:
        if self.chat_template is not None and self.chat_template_file is not None:
            raise ValueError("chat_template and chat_template_file are both written")
        if self.embeddings and self.reranking:
            raise ValueError("embeddings and reranking are both written: a server does one of them")
        return self


class Idle(Table):
    """`[idle]`: when the router may unload the model."""

    keep_alive: Duration = "30min"


class Definition(Table):
    """One `/etc/llamad/NAME.toml` with its drop-ins and the defaults of `llamad.toml` merged in."""

    model: Annotated[str, Field(min_length=1)]
    aliases: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    listen: str | None = None
    listen_mode: Literal["0600", "0660", "0666"] = "0600"
    start: Literal["on-demand", "always", "manual"] = "on-demand"
    insecure: bool = False
    api_keys_file: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    placement: Placement = Placement()
    limits: Limits = Limits()
    server: Server = Server()
    environment: dict[str, str] = {}
    idle: Idle = Idle()


class Host(Table):
    """`[host]` of `llamad.toml`."""

    server: Annotated[str, Field(min_length=1)] = "llama-server"
    models: tuple[str, ...] = ("/var/lib/llamad/models",)
    parallel_loads: Annotated[int, Field(ge=1)] = 1
    query_s: Annotated[float, Field(gt=0)] = 5.0
    watch: bool = True


class HostSettings(Table):
    """`/etc/llamad/llamad.toml`: host settings, and defaults for the tables of every definition."""

    host: Host = Host()
    placement: Placement = Placement()
    limits: Limits = Limits()
    server: Server = Server()
    environment: dict[str, str] = {}
    idle: Idle = Idle()
