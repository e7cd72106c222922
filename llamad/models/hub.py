"""A hub of models with Hugging Face's interface: which files a repository holds, with their sizes and hashes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from llamad.errors import BusyError, LlamadError, UsageError
from llamad.frozen import dataclass
from llamad.models.choose import HubFile
from llamad.models.source import HUB, HubSource, check_revision, parse_source
from llamad.models.token import find_token
from llamad.models.web import Interrupted, Web, body_of, host_of, is_this_machine, refusal
from llamad.text import shown

ENDPOINT = "HF_ENDPOINT"
"""The variable that names a mirror, as the hub's own tools have it."""
_PAGE_BYTES = 8 << 20
_PAGES_MOST = 50
_FILES_MOST = 20_000
_PATH_MOST = 1000
_TRIES = 3
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NEXT = re.compile(r'<([^<>]+)>\s*;\s*rel="?next"?')


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]


def endpoint_of(environ: Mapping[str, str]) -> str:
    """The hub, or the mirror that the environment names. Raises BusyError for what is no address of one."""
    endpoint = (environ.get(ENDPOINT) or HUB).rstrip("/")
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or "@" in parts.netloc:
        raise BusyError(
            f"{ENDPOINT} is no address of a hub", why=endpoint, fix=f"write for example {ENDPOINT}={HUB}"
        )
    return endpoint


def may_have_a_token(endpoint: str) -> bool:
    """Whether what is sent there can be read by nobody on the way."""
    parts = urlsplit(endpoint)
    return parts.scheme == "https" or is_this_machine(parts.hostname or "")


class Hub:
    """Asks one hub. `wait` is called with seconds between tries, and raises to give up."""

    def __init__(
        self, web: Web, endpoint: str, *, wait: Callable[[float], None], with_token: bool = False
    ) -> None:
        self._web = web
        self._endpoint = endpoint
        self._wait = wait
        self._with_token = with_token

    def listing(self, repo: str, revision: str) -> Listing:
        """Every file of the repository. The branch may move meanwhile: all further addresses name the commit.

        Raises ModelMissingError, AccessError, BusyError.
        """
        about, _ = self._json(f"{self._endpoint}/api/models/{repo}/revision/{quote(revision, safe='')}")
        commit = about.get("sha") if isinstance(about, dict) else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise self._nonsense("no commit")
        files: list[HubFile] = []
        url: str | None = f"{self._endpoint}/api/models/{repo}/tree/{commit}?recursive=true"
        for _ in range(_PAGES_MOST):
            if url is None or len(files) > _FILES_MOST:
                break
            rows, following = self._json(url)
            if not isinstance(rows, list):
                raise self._nonsense("no list of files")
            files += [file for row in rows if (file := _file_of(row)) is not None]
            url = self._next(url, following)
        if len(files) > _FILES_MOST or url is not None:
            raise self._nonsense(f"more than {_FILES_MOST} files")
        return Listing(repo, commit, tuple(files))

    def url_of(self, listing: Listing, file: HubFile) -> str:
        """Where a file of the commit is fetched."""
        return f"{self._endpoint}/{listing.repo}/resolve/{listing.commit}/{quote(file.path)}"

    def _next(self, url: str, link: str) -> str | None:
        match = _NEXT.search(link)
        if match is None:
            return None
        following: str = urljoin(url, match[1])
        if urlsplit(following)[:2] != urlsplit(self._endpoint)[:2]:
            raise self._nonsense("a next page on another host")
        return following

    def _json(self, url: str) -> tuple[Any, str]:
        """A value of the interface, and its Link field."""
        for number in range(_TRIES):
            try:
                return self._asked(url)
            except Interrupted as error:
                if number == _TRIES - 1:
                    raise error.final("cannot ask the hub") from error
                self._wait(max(0.5 * 2**number, error.after_s))
        raise AssertionError

    def _asked(self, url: str) -> tuple[Any, str]:
        answer = self._web.get(url, {"Accept": "application/json"})
        try:
            problem = refusal(answer, url, with_token=self._with_token)
            if problem is not None:
                raise problem
            return json.loads(body_of(answer, _PAGE_BYTES)), answer.headers.get("Link", "")
        except (ValueError, RecursionError) as error:
            raise self._nonsense("no JSON") from error
        finally:
            answer.close()

    def _nonsense(self, what: str) -> LlamadError:
        fix = f"check that {ENDPOINT} names a hub" if self._endpoint != HUB else "try again later"
        return BusyError(f"{host_of(self._endpoint)} does not answer as a hub", why=what, fix=fix)


def _file_of(row: object) -> HubFile | None:
    """A row of a listing; None for a folder, and for what is none of ours to guess."""
    if not isinstance(row, dict) or row.get("type") != "file":
        return None
    path, size, lfs = row.get("path"), row.get("size"), row.get("lfs")
    sha256 = ""
    if isinstance(lfs, dict):
        size = lfs.get("size", size)
        sha256 = str(lfs.get("oid", "")).removeprefix("sha256:")
    if not isinstance(path, str) or not 0 < len(path) <= _PATH_MOST or not path.isprintable():
        return None
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 1 << 50:
        return None
    return HubFile(path, size, sha256 if _SHA256.fullmatch(sha256) else "")


def published(repo: str, environ: Mapping[str, str], *, wait: Callable[[float], None]) -> list[HubFile]:
    """What a repository (`OWNER/REPO`, or with `@REVISION`) publishes. Raises as `Hub.listing`, and UsageError."""
    name, _, revision = repo.partition("@")
    endpoint = endpoint_of(environ)
    source = parse_source(name, endpoint)
    if not isinstance(source, HubSource) or source.file or source.quantisation:
        raise UsageError(f'"{shown(repo)}" is no repository', fix="write OWNER/REPO")
    token = find_token(None, environ, for_mirror=endpoint != HUB) if may_have_a_token(endpoint) else None
    hub = Hub(Web(endpoint, token), endpoint, wait=wait, with_token=token is not None)
    return list(hub.listing(source.repo, check_revision(revision or source.revision)).files)
