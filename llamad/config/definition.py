"""The schema of a model definition and of the host settings: strict, frozen, units in names. No I/O.

A value that the admin wrote is a promise that the planner keeps or refuses; a default is the planner's to
choose. `written` of the loader tells the two apart, so every default here is safe to change.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from llamad.config.listen import parse_listen
from llamad.units import parse_duration, parse_size

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,47}")
RESERVED_NAMES = frozenset({"llamad"})
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


@dataclass(frozen=True)
class Words:
    """Marks a type with what it expects, in the words of an error message."""

    text: str


class KeyProblem(ValueError):
    """A rule between keys of one table is broken; `key` is the one to point at."""

    def __init__(self, key: str, text: str, fix: str = "change one of the two") -> None:
        super().__init__(text)
        self.key = key
        self.fix = fix


def _size(text: str) -> str:
    if text != "auto":
        parse_size(text)
    return text


def _memory(text: str) -> str:
    if re.fullmatch(r"\d+%", text):
        if not 1 <= int(text[:-1][:4]) <= 100:
            raise ValueError(f'not a share: "{text}" (write 1% to 100%)')
        return text
    return _size(text)


def _duration(text: str) -> str:
    parse_duration(text)
    return text


def _listen(text: str) -> str:
    parse_listen(text)
    return text


Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
Auto = Literal["auto"]
Size = Annotated[str, AfterValidator(_size), Words('a size such as "512MiB", or "auto"')]
Memory = Annotated[
    str, AfterValidator(_memory), Words('a size such as "10GiB", a share such as "60%", or "auto"')
]
Duration = Annotated[str, AfterValidator(_duration), Words('a duration such as "30min"')]
ListenText = Annotated[str, AfterValidator(_listen), Words('an address such as "127.0.0.1:8081"')]
Seconds = Annotated[float, Field(ge=0, le=10_000_000)]
SomeSeconds = Annotated[float, Field(gt=0, le=10_000_000)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
SomeBytes = Annotated[int, Field(ge=0, le=2**40)]


class Table(BaseModel):
    """A TOML table: unknown keys refused, no coercion, frozen.

    Validators are built when first used, and the defaults below without any: a table that is only a part of
    another needs none of its own, and every command pays for what is built at import.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True
    )


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

    @model_validator(mode="after")
    def _consistent(self) -> Placement:
        if (
            self.context != "auto"
            and "context_min" in self.model_fields_set
            and self.context_min > self.context
        ):
            raise KeyProblem("context_min", f"{self.context_min} is above context ({self.context})")
        if self.batch != "auto" and self.ubatch != "auto" and self.ubatch > self.batch:
            raise KeyProblem("ubatch", f"{self.ubatch} is above batch ({self.batch})")
        quantised = self.kv_cache not in ("auto", "f32", "f16", "bf16")
        if quantised and self.flash_attention is False:
            raise KeyProblem("kv_cache", f'"{self.kv_cache}" needs flash attention, which is switched off')
        if self.cpu_moe and self.n_cpu_moe != "auto":
            raise KeyProblem("n_cpu_moe", "cpu_moe is written too, which moves the experts of all layers")
        if self.tensor_split and not any(self.tensor_split):
            raise KeyProblem("tensor_split", "all shares are 0", "give one device a share above 0")
        return self


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
            raise KeyProblem(
                "chat_template_file", "chat_template is written too; a server takes one of them"
            )
        if self.embeddings and self.reranking:
            raise KeyProblem("reranking", "embeddings is true too; a server does one of them")
        return self


class Idle(Table):
    """`[idle]`: when the router may unload the model."""

    keep_alive: Duration = "30min"


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
    placement: Placement = Placement.model_construct()
    limits: Limits = Limits.model_construct()
    server: Server = Server.model_construct()
    environment: dict[str, str] = {}
    idle: Idle = Idle.model_construct()


class Host(Table):
    """`[host]` of `llamad.toml`."""

    server: Annotated[str, Field(min_length=1)] = "llama-server"
    models: tuple[Annotated[str, Field(min_length=1)], ...] = ("/var/lib/llamad/models",)
    parallel_loads: Annotated[int, Field(ge=1, le=1024)] = 1
    query_s: SomeSeconds = 5.0
    watch: bool = True


class HostSettings(Table):
    """`/etc/llamad/llamad.toml`: host settings, and defaults for the tables of every definition."""

    host: Host = Host.model_construct()
    placement: Placement = Placement.model_construct()
    limits: Limits = Limits.model_construct()
    server: Server = Server.model_construct()
    environment: dict[str, str] = {}
    idle: Idle = Idle.model_construct()
