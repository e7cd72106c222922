"""Results as tables and bars for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from llamad.measure.results import BenchResult, Figure, Point, Tried, TuneResult
from llamad.measure.statistics import gain
from llamad.text import printable

_BAR = 30
_HEADINGS = ("PROMPT", "AT ONCE", "PROMPT TOKENS/S", "GENERATED TOKENS/S", "FIRST TOKEN", "")


def bench_text(result: BenchResult) -> str:
    """All of a `llamad bench`."""
    plan = result.plan
    where = f"on {', '.join(plan.devices)}" if plan.devices else "on the CPU"
    served = {"unit": "as its service runs", "router": "behind the router", "temporary": "in an instance of its own"}
    lines = [
        f"{result.name}: {result.architecture} {result.quantisation}, {result.engine}",
        f"measured {served[result.served_by]}: context {plan.context_tokens}, {plan.slots} slots, {where}",
        "",
        *_table([_HEADINGS, *map(_row, result.points)]),
        "",
    ]
    alone = next((one for one in result.points if one.requests_at_once == 1 and one.generated_tokens_s), None)
    if alone and alone.generated_tokens_s:
        lines.append(f"{result.rating}: {_number(alone.generated_tokens_s.median)} tokens/s for one request")
    if result.expected:
        found = result.expected
        share = alone.generated_tokens_s.median / found.tokens_s if alone and alone.generated_tokens_s else 0.0
        lines.append(
            f"a token reads {found.bytes_a_token / 1e9:.2f} GB of weights; {found.bandwidth_bytes_s / 1e9:.0f} GB/s "
            f"({found.source}) allow {_number(found.tokens_s)} tokens/s: {share:.0%} of it is reached"
        )
    lines += _previous(result)
    lines += [f"note: {remark}" for remark in result.remarks]
    return "\n".join(printable(line) for line in lines) + "\n"


def _previous(result: BenchResult) -> list[str]:
    old = result.previous
    if old is None:
        return []
    lines = [f"against {old.measured_at}" + (f" ({'; '.join(old.differs)})" if old.differs else "") + ":"]
    return lines + [f"  {text}" for text in old.changes or ("no difference beyond the spread",)]


def _row(point: Point) -> tuple[str, ...]:
    first = point.first_token_s
    return (
        str(point.prompt_tokens),
        str(point.requests_at_once),
        _figure(point.prompt_tokens_s),
        _figure(point.generated_tokens_s),
        f"{_seconds(first.median)} +-{first.spread:.0%}" if first else "-",
        point.note,
    )


def tune_text(result: TuneResult) -> str:
    """All of a `llamad tune`: what was tried, in bars, and what is better beyond chance."""
    base = ", ".join(f"{key} {value}" for key, value in result.base.items())
    lines = [f"{result.name}: {result.workload}, {result.engine}", f"in force: {base}", ""]
    most = max((one.speed.median for one in result.tried if one.speed), default=0.0)
    rows = [("", "TOKENS/S", "", "")]
    rows += [_tried_row(one, most, result.tried[0].speed) for one in result.tried]
    lines += [*_table(rows), ""]
    lines += [f"left alone: {text}" for text in result.untouched]
    lines += [f"note: {text}" for text in result.remarks]
    if result.best and result.before and result.after:
        words = ", ".join(f"{key} = {toml_value(value)}" for key, value in result.best.items())
        lines.append(
            f"better: {words}: {_number(result.before.median)} -> {_number(result.after.median)} tokens/s "
            f"({gain(result.before.values, result.after.values):+.0%}, measured in turns)"
        )
    else:
        lines.append("nothing beats the settings in force by more than chance")
    return "\n".join(printable(line) for line in lines) + "\n"


def _tried_row(one: Tried, most: float, base: Figure | None) -> tuple[str, str, str, str]:
    name = ", ".join(f"{key} {toml_value(value)}" for key, value in one.settings.items()) or "as it is"
    if one.speed is None:
        return name, "-", "", one.refused
    bar = "#" * max(1, round(_BAR * one.speed.median / most)) if most else ""
    change = f"{gain(base.values, one.speed.values):+.0%}" if base and one.settings else ""
    return name, _figure(one.speed), bar, f"{change} kept" if one.kept else change


def toml_value(value: object) -> str:
    """A setting as a definition has it."""
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their longest word; the last one as long as it is."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return ["  ".join(f"{word:<{width}}" for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _figure(figure: Figure | None) -> str:
    return f"{_number(figure.median)} +-{figure.spread:.0%}" if figure else "-"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 10 else f"{value:.1f} s"
