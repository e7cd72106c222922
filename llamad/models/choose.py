"""Which files of a repository make the model that is wanted. Pure: names and sizes of a server are hostile."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from llamad.errors import ModelMissingError, UsageError
from llamad.frozen import dataclass
from llamad.gguf.identity import shard_of, shard_path
from llamad.text import shown
from llamad.units import format_bytes

DEFAULT_QUANTISATION = "Q4_K_M"
_PREFERRED = (
    "Q4_K_M", "UD-Q4_K_XL", "Q4_K_XL", "Q4_K_L", "MXFP4", "MXFP4_MOE", "NVFP4", "Q4_K_S", "IQ4_XS", "IQ4_NL", "Q4_0",
    "Q4_1", "Q5_K_M", "Q5_K_S", "Q5_0", "Q6_K", "Q8_0", "Q3_K_M", "BF16", "F16", "F32",
)  # fmt: skip
"""What is taken where none is asked for and the default is not there."""
_LABEL = re.compile(
    r"(?<![A-Za-z0-9])(?P<label>(?:UD-)?(?:"
    r"I?Q[1-9]_(?:K_(?:XXL|XL|[SML])|K(?!_)|[01](?:_\d+_\d+)?|XXS|XS|NL|[SML])|TQ[12]_0|"
    r"MXFP4(?:_MOE)?|NVFP4|BF16|F(?:P)?16|F(?:P)?32))(?![A-Za-z0-9_])",
    re.IGNORECASE,
)
_PROJECTOR = re.compile(r"(?:^|[-_.])mmproj(?:[-_.]|$)", re.IGNORECASE)
_OTHER = re.compile(r"(?:^|[-_.])(?:imatrix|vocab|lora|adapter|draft|eagle\d?)(?:[-_.]|$)", re.IGNORECASE)
_SHOWN = 24


@dataclass(frozen=True)
class HubFile:
    """One file of a repository. `sha256` is empty where the hub publishes none."""

    path: str
    size_bytes: int
    sha256: str = ""


@dataclass(frozen=True)
class Offer:
    """A model that a repository holds: all its shards, or its one file."""

    label: str
    """The quantisation by its name; empty where the name tells none."""
    files: tuple[HubFile, ...]

    @property
    def size_bytes(self) -> int:
        """All shards together."""
        return sum(file.size_bytes for file in self.files)


def label_of(path: str) -> str:
    """The quantisation that a file's name tells, in capitals; else its folder's; empty for none."""
    for part in reversed(path.split("/")):
        found = list(_LABEL.finditer(part))
        if found:
            return (
                found[-1]["label"]
                .upper()
                .replace("FP16", "F16")
                .replace("FP32", "F32")
                .replace("BF16", "BF16")
            )
    return ""


def offers(files: Iterable[HubFile]) -> list[Offer]:
    """The models of a repository, those of several shards once and only if all shards are there."""
    by_path = {file.path: file for file in files if file.path.endswith(".gguf")}
    found = []
    for path, file in sorted(by_path.items()):
        name = path.rpartition("/")[2]
        if _PROJECTOR.search(name) or _OTHER.search(name):
            continue
        shard = shard_of(path)
        if shard is None:
            found.append(Offer(label_of(path), (file,)))
        elif shard[1] == 1 and (whole := _shards(by_path, shard[0], shard[2])):
            found.append(Offer(label_of(path), whole))
    return found


def choose(files: Sequence[HubFile], repo: str, quantisation: str = "") -> Offer:
    """The model to fetch: of the quantisation that was asked for, else the best known one that is there.

    Raises UsageError, with what there is, where that is none or not one; ModelMissingError where there is no model.
    """
    there = offers(files)
    if not there:
        raise ModelMissingError(
            f"{repo} holds no GGUF model",
            fix="look for a repository of GGUF files: they mostly end in -GGUF",
        )
    if quantisation:
        return _asked(there, repo, quantisation)
    if len(there) == 1:
        return there[0]
    for label in _PREFERRED:
        matching = [offer for offer in there if offer.label == label]
        if matching:
            return _only(matching, repo, label)
    raise UsageError(f"{repo} holds several models", why=_listed(there), fix=f"name one, as {repo}:QUANT")


def named(files: Sequence[HubFile], repo: str, path: str) -> Offer:
    """The model of one file, with its further shards. Raises ModelMissingError for what is not there."""
    by_path = {file.path: file for file in files}
    shard = shard_of(path)
    if shard is not None and (whole := _shards(by_path, shard[0], shard[2])):
        return Offer(label_of(path), whole)
    if shard is None and path in by_path:
        return Offer(label_of(path), (by_path[path],))
    why = "a shard of it is missing" if shard and path in by_path else ""
    near = difflib.get_close_matches(path, [one for one in by_path if one.endswith(".gguf")], 1)
    fix = f"did you mean hf:{repo}/{shown(near[0], 200)}?" if near else f"look at the files of {repo}"
    raise ModelMissingError(f"{repo} holds no {shown(path, 200)}", why=why, fix=fix)


def projector(files: Sequence[HubFile], repo: str) -> HubFile:
    """The vision or audio projector: in F16 where there are several. Raises ModelMissingError."""
    found = [f for f in files if f.path.endswith(".gguf") and _PROJECTOR.search(f.path.rpartition("/")[2])]
    for label in ("F16", "BF16", "Q8_0", "F32"):
        for file in found:
            if label_of(file.path) == label:
                return file
    if not found:
        raise ModelMissingError(f"{repo} holds no projector (mmproj)", fix="leave --mmproj out")
    return found[0]


def _shards(by_path: dict[str, HubFile], prefix: str, count: int) -> tuple[HubFile, ...]:
    """All of them in order; none if one is missing."""
    if count > len(by_path):
        return ()
    paths = [shard_path(prefix, number, count) for number in range(1, count + 1)]
    return tuple(by_path[path] for path in paths) if all(path in by_path for path in paths) else ()


def _asked(there: Sequence[Offer], repo: str, quantisation: str) -> Offer:
    label = quantisation.upper()
    matching = [offer for offer in there if label in (offer.label, offer.label.removeprefix("UD-"))]
    exact = [offer for offer in matching if offer.label == label] or matching
    if exact:
        return _only(exact, repo, label)
    near = difflib.get_close_matches(label, {offer.label for offer in there}, 1)
    fix = f"did you mean {repo}:{near[0]}?" if near else "name one of these"
    raise UsageError(f"{repo} holds no {shown(quantisation)}", why=f"it holds {_listed(there)}", fix=fix)


def _only(matching: Sequence[Offer], repo: str, label: str) -> Offer:
    if len(matching) == 1:
        return matching[0]
    names = ", ".join(shown(offer.files[0].path, 100) for offer in matching[:_SHOWN])
    raise UsageError(
        f"{repo} holds several models in {label}", why=names, fix=f"name one: hf:{repo}/FILE.gguf"
    )


def _listed(there: Sequence[Offer]) -> str:
    words = [
        f"{one.label or shown(one.files[0].path, 80)} ({format_bytes(one.size_bytes)})"
        for one in there[:_SHOWN]
    ]
    return ", ".join(words) + (", ..." if len(there) > _SHOWN else "")
