"""Figures in Prometheus' text format (0.0.4): series of our own, and llama-server's under the model's name. Pure."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{([^{}]*)\})? +(\S+)(?: +-?\d+)?")
_TEXT_BYTES = 1 << 20

Labels = tuple[tuple[str, str], ...]


@dataclass
class Family:
    """All samples of one name."""

    name: str
    kind: str
    help: str
    samples: list[tuple[str, Labels, float]] = field(default_factory=list)
    """Suffix behind the name (`_bucket`, `_sum`, `_count` of a histogram), labels, value."""

    def add(self, value: float, suffix: str = "", **labels: str) -> Family:
        """One more sample."""
        self.samples.append((suffix, tuple(labels.items()), value))
        return self


class Histogram:
    """Counts of values by upper bounds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def into(self, family: Family, **labels: str) -> None:
        """Add the samples, cumulative as Prometheus wants them."""
        total = 0
        for bound, count in zip((*self.bounds, math.inf), self.counts, strict=True):
            total += count
            family.add(total, "_bucket", **labels, le=_number(bound))
        family.add(self.sum, "_sum", **labels)
        family.add(total, "_count", **labels)


def render(families: Iterable[Family]) -> bytes:
    """The exposition: each family once, whoever gave samples to it."""
    merged: dict[str, Family] = {}
    for family in families:
        known = merged.setdefault(family.name, family)
        if known is not family:
            known.samples += family.samples
    lines: list[str] = []
    for name, family in merged.items():
        if family.samples:
            lines.append(f"# HELP {name} {_help(family.help)}")
            lines.append(f"# TYPE {name} {family.kind}")
            lines += (f"{name}{suffix}{_labels(labels)} {_number(value)}" for suffix, labels, value in family.samples)
    return ("\n".join(lines) + "\n").encode()


def parse(text: str, **labels: str) -> list[Family]:
    """The families of another exposition, each sample with these labels put in front of its own.

    What is not understood is left out, and so is a family without a type: never an error, never an invalid line.
    """
    families: dict[str, Family] = {}
    helps: dict[str, str] = {}
    for line in text[:_TEXT_BYTES].splitlines():
        if line.startswith("#"):
            _, what, name, rest = [*line.split(" ", 3), "", "", ""][:4]
            if what == "HELP":
                helps[name] = rest
            elif what == "TYPE" and rest in ("counter", "gauge"):
                families[name] = Family(name, rest, helps.get(name, ""))
            continue
        match = _SAMPLE.fullmatch(line.strip())
        if match is None or match[2] or match[1] not in families:
            continue
        try:
            families[match[1]].add(float(match[3]), **labels)
        except ValueError:
            continue
    return [family for family in families.values() if family.samples]


def value_of(families: Iterable[Family], name: str) -> float | None:
    """The one value of a family without labels of its own."""
    return next((family.samples[0][2] for family in families if family.name == name and family.samples), None)


def escape(text: str) -> str:
    """A label's value."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _labels(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{escape(value)}"' for name, value in labels) + "}" if labels else ""


def _help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def counters(name: str, help_text: str, label: str, values: Mapping[str, float], **labels: str) -> Family:
    """A counter with one sample for each value of `label`."""
    family = Family(name, "counter", help_text)
    for key, value in values.items():
        family.add(value, **labels, **{label: key})
    return family
