"""Former results of a model, kept beside what its service learned; and how a new one compares."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from llamad.measure.results import BenchResult, Figure, Previous
from llamad.measure.statistics import gain
from llamad.store import load_cache, store_cache

FILE_NAME = "bench.json"
_KEPT = 50


def last_result(folder: Path, new: BenchResult) -> BenchResult | None:
    """The last result for the same model: with the same engine and plan if there is one, else any."""
    of_model = [old for old in _read(folder) if old.model_fingerprint == new.model_fingerprint]
    same = [old for old in of_model if not differences(old, new)]
    found = same or of_model
    return found[-1] if found else None


def keep(folder: Path, new: BenchResult) -> bool:
    """Put a result beside the former ones; False where it cannot be kept. The oldest beyond 50 are dropped."""
    kept = [*_read(folder), new.model_copy(update={"previous": None})][-_KEPT:]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return store_cache(folder / FILE_NAME, [one.model_dump(mode="json") for one in kept])


def compared(old: BenchResult, new: BenchResult) -> Previous:
    """What became faster or slower, point by point. Pure."""
    changes = []
    if old.generated_tokens == new.generated_tokens:
        before = {(one.prompt_tokens, one.requests_at_once): one for one in old.points}
        for point in new.points:
            former = before.get((point.prompt_tokens, point.requests_at_once))
            if former is None:
                continue
            place = f"prompts of {point.prompt_tokens}, {point.requests_at_once} at once"
            pairs = (
                ("prompt", former.prompt_tokens_s, point.prompt_tokens_s),
                ("generation", former.generated_tokens_s, point.generated_tokens_s),
            )
            changes += [f"{place}: {text}" for what, a, b in pairs if a and b and (text := _change(what, a, b))]
    return Previous(measured_at=old.measured_at, differs=differences(old, new), changes=tuple(changes))


def differences(old: BenchResult, new: BenchResult) -> tuple[str, ...]:
    """What was another engine, plan or way to serve. Pure."""
    pairs: Iterable[tuple[str, object, object]] = (
        ("engine", old.engine, new.engine),
        *((key, getattr(old.plan, key), value) for key, value in new.plan),
    )
    return tuple(f"{key}: {before} -> {after}" for key, before, after in pairs if before != after)


def _change(what: str, before: Figure, after: Figure) -> str:
    """Empty where the difference is no larger than what the values spread by."""
    share = gain(before.values, after.values)
    if abs(share) <= max(0.02, before.spread + after.spread):
        return ""
    return f"{what} {before.median:.1f} -> {after.median:.1f} tokens/s ({share:+.0%})"


def _read(folder: Path) -> list[BenchResult]:
    """What is kept, oldest first; an entry of another version is left out."""
    entries = load_cache(folder / FILE_NAME)
    found = []
    for entry in entries if isinstance(entries, list) else ():
        try:
            found.append(BenchResult.model_validate(entry))
        except ValidationError:
            continue
    return found
