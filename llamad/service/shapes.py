"""The objects that `--json` prints, as types: docs/schema is made of them, and the tests hold real output to them.

Nothing that runs imports this. Sizes are in MiB where a name ends in `_mib`; times are seconds since 1970. Keys may be
added in later versions, and none changes its meaning.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel


class Shape(BaseModel):
    """An object with these keys and no others: what is printed must be described here."""

    model_config = ConfigDict(extra="forbid", strict=True)


Mib = Annotated[float, Field(description="MiB")]
Seconds = Annotated[int, Field(description="seconds since 1970; 0 where it is not known")]


class Activity(Shape):
    """What the model is doing now."""

    active_requests: Annotated[int, Field(description="requests that are with llama-server")]
    waiting_requests: Annotated[int, Field(description="requests that wait at the gate")]
    requests: Annotated[int, Field(description="requests that are over, since llamad started")]
    output_tokens: Annotated[int, Field(description="tokens that those have generated")]
    tokens_per_s: Annotated[float, Field(description="generated in the last 10 s, by all requests together")]


class Death(Shape):
    """A death of a llama-server."""

    at: Seconds
    cause: Annotated[str, Field(description="its name, as in events.md")]
    text: Annotated[str, Field(description="the cause in words")]


class NextContext(Shape):
    """What the next larger context lacks."""

    context_tokens: int
    device: str
    missing_mib: Mib


class ServedDevice(Shape):
    """What the plan in force has on a device."""

    name: Annotated[str, Field(description="llama-server's name of it: CUDA0")]
    uuid: str
    weights_mib: Mib
    context_mib: Mib
    compute_mib: Mib
    margin_mib: Annotated[float, Field(description="left free beyond every known byte")]
    total_mib: Annotated[float, Field(description="of the device in all")]
    buffers_mib: Annotated[float, Field(description="weights, context and compute together")]
    planned_mib: Annotated[float, Field(description="everything, with the margin")]
    free_at_start_mib: Mib


class ServedHost(Shape):
    """What the plan in force has of the host's memory."""

    buffers_mib: Mib


class ModelStatus(Shape):
    """One model. What is not known, or not served, is left out."""

    name: str
    state: Annotated[str, Field(description="ready, loading, waiting, failed, stopped, unloaded, ...")]
    text: Annotated[str, Field(description="what systemctl status shows")] = ""
    enabled: Annotated[bool, Field(description="whether its unit starts at boot")]
    served_by: Annotated[
        Literal["unit", "router"] | None, Field(description="the router, or a process of its own")
    ] = None
    pid: Annotated[int | None, Field(description="of llamad")] = None
    since: Seconds = 0
    restarts: Annotated[int | None, Field(description="starts after a death, since llamad started")] = None
    last_death: Death | None = None
    activity: Activity | None = None
    model: Annotated[str | None, Field(description="the model file")] = None
    context_tokens: int | None = None
    context_trained_tokens: int | None = None
    next_context: NextContext | None = None
    slots: int | None = None
    unified_cache: Annotated[bool | None, Field(description="the slots share one")] = None
    ubatch_tokens: int | None = None
    flash_attention: bool | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    layers: Annotated[int | None, Field(description="on devices")] = None
    layers_total: int | None = None
    source: Annotated[
        Literal["learned", "asked", "computed"] | None, Field(description="where the plan's bytes are from")
    ] = None
    engine: Annotated[str | None, Field(description="the build of llama-server")] = None
    devices: list[ServedDevice] | None = None
    host: ServedHost | None = None


class Lease(Shape):
    """What a model was promised, or waits for."""

    name: str
    phase: Literal["waiting", "promised", "loading", "settled", "returning"]
    promised_mib: dict[str, float]
    names: Annotated[dict[str, str], Field(description="llama-server's names of the places")]
    waits_for: str
    ticket: Annotated[int, Field(description="its place in the order of arrival; 0: it never waited")]


class Status(Shape):
    """`llamad status --json`; with --watch an object a line."""

    models: list[ModelStatus]
    leases: list[Lease]


class Definition(Shape):
    """A definition, as it is listed."""

    name: str
    state: str
    listen: Annotated[str, Field(description='"-" where it has no address of its own')]
    model: Annotated[str, Field(description="the model file; of a definition with a mistake, the mistake")]
    aliases: list[str] = Field(default_factory=list)
    valid: bool


class ModelFile(Shape):
    """A GGUF file; `problem` alone where it is of no use."""

    path: str
    used_by: Annotated[list[str], Field(description="the definitions that serve it")]
    problem: str | None = None
    kind: Annotated[str | None, Field(description="model, mmproj, adapter, vocabulary, ...")] = None
    name: str | None = None
    architecture: str | None = None
    quantisation: str | None = None
    parameters: int | None = None
    layers: int | None = None
    experts: int | None = None
    experts_used: int | None = None
    context_tokens: Annotated[int | None, Field(description="that it was trained for")] = None
    shards: int | None = None
    file_bytes: Annotated[int | None, Field(description="of all its shards")] = None
    fits_here_tokens: Annotated[int | None, Field(description="with --fit: the context that it gets; 0: none")] = None
    fits_here: Annotated[str | None, Field(description="with --fit: where, or why not")] = None


class Listing(Shape):
    """`llamad list --json`."""

    models: list[Definition]
    files: list[ModelFile]


class Part(Shape):
    """What a plan counts on a device, or of the host's memory."""

    name: str
    layers: Annotated[int | None, Field(description="of a device")] = None
    vision_mib: Mib | None = None
    adapters_mib: Mib | None = None
    draft_mib: Mib | None = None
    weights_mib: Mib
    context_mib: Mib
    compute_mib: Mib
    overhead_mib: Annotated[float, Field(description="of the driver, outside llama-server's buffers")]
    margin_mib: Mib
    total_mib: Mib
    free_mib: Mib


class Plan(Shape):
    """`llamad plan --json`; with --compare a list of two."""

    model: str
    context_tokens: int
    slots: int
    layers: Annotated[int, Field(description="on devices, counted as llama-server does")]
    layers_total: int
    host_experts: Annotated[int, Field(description="the experts of so many blocks stay on the host")]
    devices: list[Part]
    host: Part
    args: Annotated[list[str], Field(description="of llama-server")]
    reasons: Annotated[list[str], Field(description="`topic: why`")]
    warnings: list[str]
    source: Literal["learned", "asked", "computed"]


class Three(Shape):
    """Buffers by what they are for."""

    weights: Mib
    context: Mib
    compute: Mib


class Load(Shape):
    """Predicted and real buffers of the last proved load."""

    device: str
    predicted_mib: Three
    real_mib: Three


class Measured(Shape):
    """What the driver shows beyond the buffers."""

    uuid: str
    loaded_mib: Mib
    peak_mib: Mib
    used: Annotated[bool, Field(description="whether plans count with it")]


class Lesson(Shape):
    """One lack of memory, and what it taught."""

    at: Seconds
    device: str
    cause: str
    context_tokens: int
    size_mib: Annotated[int, Field(description="of the allocation that failed")]
    correction_mib: int
    how: Annotated[str, Field(description="measured, tried, grown or guessed")]
    stepped_to_tokens: Annotated[int | None, Field(description="the context that was had then")] = None


class Explanation(Shape):
    """`llamad explain --json`."""

    name: str
    state: str
    status: ModelStatus
    loads: list[Load]
    measured: list[Measured]
    lessons: list[Lesson]
    left_out_mib: Annotated[dict[str, float], Field(description="of every plan, by device")]
    room_mib: Annotated[dict[str, float], Field(description="the most that is planned on, by device")]
    deaths: list[Death]
    held_by_others_mib: Annotated[dict[str, dict[str, float]], Field(description="by device, by model")]
    help: Annotated[list[str], Field(description="what would help, in words")]
    problems: Annotated[list[str], Field(description="what could not be read")]


class Value(Shape):
    """A value in force, and where it was written; nulls for a default."""

    value: Any
    file: str | None
    line: int | None
    column: int | None


class Shown(Shape):
    """`llamad show --json`."""

    name: str
    file: str
    values: Annotated[dict[str, Value], Field(description="by dotted key")]


class Problem(Shape):
    """One problem of a definition."""

    file: str | None
    line: Annotated[int | None, Field(description="from 1; null where it is the file as a whole")]
    column: int | None
    what: str
    why: str
    fix: str


class Checked(Shape):
    """One definition that was checked."""

    name: str
    problems: list[Problem]


class VerifiedFile(Shape):
    """One file of a model."""

    path: str
    size_bytes: int
    sha256: Annotated[str, Field(description="empty where it was not computed")]
    against: Annotated[str, Field(description="what the hash was compared with")]
    problem: str


class Verified(Shape):
    """A model with all its shards."""

    path: str
    good: bool
    proved: Annotated[bool, Field(description="whether every byte was compared with a published hash")]
    problem: str
    fix: str
    kind: str
    architecture: str
    quantisation: str
    size_bytes: int
    notes: list[str]
    files: list[VerifiedFile]


class Verification(Shape):
    """`llamad verify --json`."""

    models: list[Verified]


class MachineDevice(Shape):
    """A device that advice is for."""

    name: str
    description: str
    free_bytes: int
    bytes_s: Annotated[float, Field(description="bandwidth of its memory, bytes a second")]
    bytes_s_source: str


class MachineHost(Shape):
    """The host that advice is for."""

    available_bytes: int
    bytes_s: float
    bytes_s_source: str


class Machine(Shape):
    """The machine that advice is for."""

    devices: list[MachineDevice]
    host: MachineHost
    allow_cpu: bool


class Advice(Shape):
    """One well-known model."""

    name: str
    title: str
    architecture: str
    released: str
    parameters: int
    active_parameters: Annotated[int, Field(description="that a token uses")]
    quantisation: str
    weights_bytes: int
    fits: bool
    context_tokens: Annotated[int, Field(description="that it would get; 0 where it does not fit")]
    context_train_tokens: int
    tokens_s: Annotated[float, Field(description="of one stream, about")]
    devices: list[str]
    host_experts: int
    layers: int
    why: str
    pull: Annotated[str, Field(description="for `llamad pull`")]


class Recommendation(Shape):
    """`llamad recommend --json`."""

    machine: Machine
    models: list[Advice]


class Checks(RootModel[list[Checked]]):
    """`llamad check --json`."""


DOCUMENTS: dict[str, type[BaseModel]] = {
    "status": Status, "list": Listing, "plan": Plan, "explain": Explanation, "show": Shown, "check": Checks,
    "verify": Verification, "recommend": Recommendation,
}  # fmt: skip
"""By verb."""


def schema_of(verb: str) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of what a verb prints. It allows keys that a later version may add."""
    found = _open(DOCUMENTS[verb].model_json_schema(mode="validation"))
    assert isinstance(found, dict)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"llamad {verb} --json", **found}


def _open(value: Any) -> Any:
    """Without `additionalProperties: false`, and without the titles that only repeat the keys."""
    if isinstance(value, list):
        return [_open(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: {name: _open(one) for name, one in inner.items()} if key in ("properties", "$defs") else _open(inner)
        for key, inner in value.items()
        if not (key == "additionalProperties" and inner is False) and key != "title"
    }
