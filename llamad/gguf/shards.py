"""A model of several files: `NAME-00001-of-00003.gguf` and so on, opened through the first."""

from __future__ import annotations

from dataclasses import dataclass

from llamad.errors import LlamadError, ModelMissingError, Where
from llamad.gguf.header import Header, read_header
from llamad.gguf.identity import shard_of, shard_path
from llamad.gguf.window import bad_model
from llamad.text import shown

_RENAME = "give all shards the names that they were published under"


@dataclass(frozen=True, slots=True)
class _ShardName:
    prefix: str
    number: int
    count: int

    def other(self, number: int) -> str:
        return shard_path(self.prefix, number, self.count)


def read_model(path: str) -> tuple[Header, ...]:
    """The headers of all files of a model, in order; one for a model that is not split.

    `path` must be the first shard, which holds the keys. Raises as `read_header`; ModelMissingError names the
    shard that is missing, BadModelError the first shard where another was given.
    """
    name = _shard_name(path)
    if name and name.number > 1:
        raise _not_the_first(path, name)
    first = read_header(path)
    count = first.number("split.count") or 0
    if count <= 1:
        return (first,)
    if (first.number("split.no") or 0) != 0:
        raise bad_model(path, f"it is shard {first.number('split.no')} of {count}, not the first", _RENAME)
    if name is None or name.count != count:
        why = f"it is the first of {count} shards, llama.cpp wants it named NAME-00001-of-{count:05d}.gguf"
        raise bad_model(path, why, _RENAME)
    headers = (first, *(_read_shard(name, number) for number in range(2, count + 1)))
    _check_together(headers)
    return headers


def _shard_name(path: str) -> _ShardName | None:
    shard = shard_of(path)
    return _ShardName(*shard) if shard else None


def _not_the_first(path: str, name: _ShardName) -> LlamadError:
    why = f"it is shard {name.number} of {name.count}, not the first"
    return bad_model(path, why, f"write {name.other(1)}")


def _read_shard(name: _ShardName, number: int) -> Header:
    path = name.other(number)
    try:
        shard = read_header(path)
    except ModelMissingError as error:
        raise ModelMissingError(
            f"shard {number} of {name.count} of the model is missing",
            where=Where(path),
            why=error.why,
            fix="put all shards into one folder",
        ) from error
    if shard.number("split.no") != number - 1 or shard.number("split.count") != name.count:
        raise bad_model(path, f"it is not shard {number} of {name.count} of this model", _RENAME)
    return shard


def _check_together(headers: tuple[Header, ...]) -> None:
    first = headers[0]
    names: set[str] = set()
    for header in headers:
        for tensor in header.tensors:
            if tensor.name in names:
                why = f"the tensor {shown(tensor.name)} is in two shards"
                raise bad_model(header.path, why, "fetch all shards again")
            names.add(tensor.name)
    claimed = first.number("split.tensors.count")
    if claimed is not None and claimed != len(names):
        why = f"the shards hold {len(names)} tensors, the first says {claimed}"
        raise bad_model(first.path, why, "fetch all shards again")
