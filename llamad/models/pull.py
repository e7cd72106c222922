"""`llamad pull`: a model of the hub or of a plain address, with all its shards, into a folder."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from llamad.errors import BadModelError, UsageError, Where, os_error
from llamad.frozen import dataclass
from llamad.models.choose import HubFile, choose, named, projector
from llamad.models.fetch import Wanted, Watcher, fetch, refuse_other, sha256_of
from llamad.models.hub import Hub, Listing, endpoint_of, may_have_a_token
from llamad.models.part import no_room
from llamad.models.reading import Patience
from llamad.models.source import HUB, HubSource, UrlSource, check_revision, file_name, parse_source
from llamad.models.sums import write_sum, written_sum
from llamad.models.token import Token, find_token
from llamad.models.web import Web
from llamad.store import sync_folder
from llamad.text import shown

FOLDER = Path("/var/lib/llamad/models")
_NAME_MOST = 48
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class Order:
    """What to fetch, as the command line says it."""

    source: str
    to: Path | None = None
    """A folder, or with the ending .gguf the very file. By default below `FOLDER`."""
    sha256: str = ""
    revision: str = ""
    mmproj: bool = False
    connections: int = 1
    token_file: str | None = None


@dataclass(frozen=True)
class Pulled:
    """What is there now. `sure`: its hash is the one that was published, or given."""

    files: tuple[Path, ...]
    projector: Path | None
    size_bytes: int
    sure: bool

    @property
    def model(self) -> Path:
        """The file to name in a definition: the first shard."""
        return self.files[0]


@dataclass(frozen=True)
class _Item:
    wanted: Wanted
    target: Path


def pull(
    order: Order,
    watcher: Watcher,
    environ: Mapping[str, str],
    *,
    folder: Path = FOLDER,
    patience: Patience | None = None,
) -> Pulled:
    """Fetch what is ordered, what is there already left as it is. Blocking.

    Raises UsageError, ModelMissingError, BadModelError, AccessError, BusyError as `fetch` does, and Stopped.
    """
    if order.sha256 and not _SHA256.fullmatch(order.sha256):
        raise UsageError(
            f"--sha256 {shown(order.sha256)}", why="it is not 64 hexadecimal digits", fix="copy it whole"
        )
    endpoint = endpoint_of(environ)
    source = parse_source(order.source, endpoint)
    if isinstance(source, UrlSource):
        if order.revision or order.mmproj or order.token_file:
            fix = "write OWNER/REPO or hf:OWNER/REPO/FILE.gguf"
            raise UsageError(
                "--revision, --mmproj and --token-file are for repositories of the hub", fix=fix
            )
        web, items, projecting, token = Web(source.url), _of_url(source, order, folder), None, None
    else:
        token = _token(order, endpoint, environ)
        web = Web(endpoint, token)
        hub = Hub(web, endpoint, wait=time.sleep, with_token=token is not None)
        items, projecting = _of_hub(hub, source, order, folder)
    everything = [*items, *([projecting] if projecting else [])]
    _make_folder(everything[0].target.parent, folder if order.to is None else everything[0].target.parent)
    _require_room(everything)
    for item in everything:
        _have(web, item, watcher, order.connections, patience, with_token=token is not None)
    sizes = [item.target.stat().st_size for item in everything]
    sure = all(item.wanted.sha256 for item in everything)
    return Pulled(
        tuple(item.target for item in items), projecting.target if projecting else None, sum(sizes), sure
    )


def definition_name(path: Path, taken: Sequence[str]) -> str:
    """A name that a definition of this file may have, and none has."""
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", path.name.removesuffix(".gguf")).lower()
    stem = re.sub(r"[-_.](ud-)?(i?q\d.*|bf16|f16|f32|mxfp4.*)$", "", stem)
    name = re.sub(r"[^a-z0-9._-]+", "-", stem).strip("._-")[: _NAME_MOST - 3].rstrip("._-") or "model"
    name = f"{name}-model" if name == "llamad" else name
    candidates = [name, *(f"{name}-{number}" for number in range(2, 100))]
    return next((one for one in candidates if one not in taken), name)


def _token(order: Order, endpoint: str, environ: Mapping[str, str]) -> Token | None:
    token = find_token(order.token_file, environ, for_mirror=endpoint != HUB)
    if token is not None and not may_have_a_token(endpoint):
        if order.token_file is None:
            return None
        raise UsageError(
            f"no token is sent to {endpoint}", why="it is not encrypted", fix="use an https:// address"
        )
    return token


def _of_url(source: UrlSource, order: Order, folder: Path) -> list[_Item]:
    key = hashlib.sha256(urlunsplit(urlsplit(source.url)).encode()).hexdigest()
    target = _place(order, folder, source.name)
    return [_Item(Wanted(source.url, f"url:{key}", sha256=order.sha256.lower()), target)]


def _of_hub(hub: Hub, source: HubSource, order: Order, folder: Path) -> tuple[list[_Item], _Item | None]:
    listing = hub.listing(source.repo, check_revision(order.revision or source.revision))
    if source.file:
        offer = named(listing.files, source.repo, source.file)
    else:
        offer = choose(listing.files, source.repo, source.quantisation)
    if order.sha256 and (len(offer.files) > 1 or order.mmproj):
        raise UsageError("--sha256 is for one file", fix="leave it out: the hub publishes the hash of each")
    below = folder.joinpath(*source.repo.split("/"))
    items = [_item(hub, listing, file, order, below) for file in offer.files]
    targets = {item.target for item in items}
    if len(targets) < len(items):
        raise UsageError("a model of several shards needs a folder", fix="--to FOLDER")
    extra = (
        _item(hub, listing, projector(listing.files, source.repo), order, below) if order.mmproj else None
    )
    if extra is not None and extra.target in targets:
        raise UsageError("a model and its projector need a folder", fix="--to FOLDER")
    return items, extra


def _item(hub: Hub, listing: Listing, file: HubFile, order: Order, below: Path) -> _Item:
    target = _place(order, below, file.path)
    if order.sha256 and file.sha256 and order.sha256.lower() != file.sha256:
        why = f"the hub publishes {file.sha256}"
        raise BadModelError(
            f"{shown(file.path, 200)} is not the file with this hash", why=why, fix="check --sha256"
        )
    sha256 = file.sha256 or order.sha256.lower()
    return _Item(
        Wanted(hub.url_of(listing, file), f"hub:{listing.repo}:{file.path}", file.size_bytes, sha256), target
    )


def _place(order: Order, folder: Path, path: str) -> Path:
    if order.to is not None and order.to.name.endswith(".gguf") and not order.to.is_dir():
        return order.to.absolute()
    return (order.to.absolute() if order.to is not None else folder) / file_name(path)


def _make_folder(folder: Path, root: Path) -> None:
    """The folder, readable for all: what is above `root` must be there. Raises AccessError, BusyError."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    if above := [one for one in missing if one in root.parents]:
        fix = "make it, or install the package"
        raise UsageError("there is no such folder", where=Where(str(above[0])), fix=fix)
    for one in reversed(missing):
        try:
            one.mkdir(mode=0o755)
            one.chmod(
                one.stat().st_mode & 0o2000 | 0o755
            )  # whatever the umask; the group's bit is inherited
            sync_folder(one.parent)
        except FileExistsError:
            continue
        except OSError as error:
            raise os_error(f"cannot make {one}", error, "run it as root, or --to another folder") from error


def _require_room(items: Sequence[_Item]) -> None:
    """Raises BusyError where the disk has no room for all of them: better now than after an hour."""
    lacking = 0
    for item in items:
        part = item.target.with_name(item.target.name + ".part")
        if item.wanted.size_bytes is not None and not item.target.exists():
            lacking += max(0, item.wanted.size_bytes - (part.stat().st_blocks * 512 if part.exists() else 0))
    status = os.statvfs(items[0].target.parent)
    free = status.f_bavail * status.f_frsize
    if lacking > free:
        raise no_room("the model", lacking, free, items[0].target.parent)


def _have(
    web: Web, item: _Item, watcher: Watcher, connections: int, patience: Patience | None, *, with_token: bool
) -> None:
    """Have one file there, and its sum beside it."""
    target, wanted = item.target, item.wanted
    if os.path.lexists(target):
        _require_same(item, watcher)
        return
    digest = fetch(
        web, wanted, target, watcher, connections=connections, patience=patience, with_token=with_token
    )
    write_sum(target, digest)


def _require_same(item: _Item, watcher: Watcher) -> None:
    """Raises UsageError where what has the name is another file, or cannot be told to be the same."""
    target, wanted = item.target, item.wanted
    if not target.is_file():
        raise refuse_other(target, "it is no file")
    size_bytes = target.stat().st_size
    if wanted.size_bytes is not None and size_bytes != wanted.size_bytes:
        raise refuse_other(target, f"it has {size_bytes} bytes, published are {wanted.size_bytes}")
    if not wanted.sha256:
        raise refuse_other(target, "no hash is known that would tell whether it is the same")
    written = written_sum(target)
    if written is None or written[0] != wanted.sha256:
        digest = sha256_of(target, lambda done: watcher.progress(target.name, "checking", done, size_bytes))
        if digest != wanted.sha256:
            raise refuse_other(target, f"its SHA-256 is {digest}, published is {wanted.sha256}")
        write_sum(target, digest)
    watcher.note(f"{target} is there already")
