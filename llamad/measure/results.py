"""What a measurement says, for people and for programs. The models are the schema of `llamad bench -o`. Pure.

What a process of the service's user hands to one of root comes through them: nothing else is believed or printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llamad.errors import ChildError
from llamad.measure.statistics import median, spread

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Text = Annotated[str, Field(max_length=1000)]


class Record(BaseModel):
    """Frozen, and strict about what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(Record):
    """Repeated measurements of one thing."""

    median: Amount
    spread: Amount = Field(description="half the distance between the quartiles, as a share of the median")
    values: Annotated[tuple[Amount, ...], Field(max_length=1000)]

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """The figure of at least one value."""
        return cls(median=median(values), spread=spread(values), values=tuple(values))


class Point(Record):
    """One length of prompts at one number of requests at the same time."""

    prompt_tokens: Count
    requests_at_once: Count
    prompt_tokens_s: Figure | None = Field(
        None, description="tokens of all prompts a second, from sending to first tokens, by the client's clock"
    )
    generated_tokens_s: Figure | None = Field(
        None, description="tokens of all answers a second while all of them were generated"
    )
    first_token_s: Figure | None = Field(
        None, description="seconds from the request to the first token, median of the requests"
    )
    note: Text = ""


class PlanInForce(Record):
    """The settings that were measured."""

    context_tokens: Count
    slots: Count
    layers: Count = 0
    layers_total: Count = 0
    ubatch_tokens: Count | None = None
    flash_attention: bool | None = None
    cache_type_k: Text = ""
    cache_type_v: Text = ""
    devices: tuple[Text, ...] = ()


class Expected(Record):
    """What the bandwidth of the memory allows."""

    bytes_a_token: Count = Field(description="weights that one token reads")
    bandwidth_bytes_s: Amount
    source: Text
    tokens_s: Amount


class Previous(Record):
    """The last result for the same model, and how this one compares."""

    measured_at: Text
    differs: tuple[Text, ...] = ()
    changes: tuple[Text, ...] = ()


class BenchResult(Record):
    """All of one `llamad bench`."""

    format: Literal["llamad-bench-1"] = "llamad-bench-1"
    llamad: Text
    name: Text
    measured_at: Text = Field(description="ISO 8601, UTC")
    model: Text
    model_fingerprint: Text
    architecture: Text
    quantisation: Text
    engine: Text
    served_by: Literal["unit", "router", "temporary"]
    plan: PlanInForce
    generated_tokens: Count
    points: tuple[Point, ...]
    rating: Text
    expected: Expected | None = None
    previous: Previous | None = None
    remarks: tuple[Text, ...] = ()


Key = Literal["parallel", "flash_attention", "ubatch", "kv_cache", "threads", "threads_batch"]
"""A key of `[placement]` that is tried, and may be written."""

Setting = int | bool | Annotated[str, Field(max_length=20, pattern=r"^[a-z0-9_]+$")]
"""The value of a key of `[placement]`."""


class Tried(Record):
    """One candidate of `llamad tune`."""

    settings: dict[Key, Setting]
    """What differs from the settings in force."""
    speed: Figure | None = None
    context_tokens: Count = 0
    refused: Text = ""
    kept: bool = False


class TuneResult(Record):
    """All of one `llamad tune`."""

    format: Literal["llamad-tune-1"] = "llamad-tune-1"
    llamad: Text
    name: Text
    measured_at: Text
    model: Text
    engine: Text
    goal: Literal["throughput", "latency", "prompt"]
    workload: Text
    base: dict[str, Text]
    """The settings in force, as they are written or chosen."""
    tried: Annotated[tuple[Tried, ...], Field(max_length=500)]
    untouched: tuple[Text, ...] = ()
    """Keys that were left alone, with the reason."""
    best: dict[Key, Setting] = {}
    """What is better than the settings in force beyond chance; empty where nothing is."""
    before: Figure | None = None
    after: Figure | None = None
    """The last comparison, in turns."""
    remarks: tuple[Text, ...] = ()


Kind = TypeVar("Kind", bound=Record)


def read_result(kind: type[Kind], text: str) -> Kind:
    """What another llamad printed with `--json`. Raises ChildError for anything else."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise ChildError("the measurement gave no result", why=str(error).splitlines()[0]) from error
