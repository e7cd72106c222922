"""What somebody may name to have a model fetched: a repository of the hub, a file of it, or an address. Pure."""

from __future__ import annotations

import re
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from llamad.errors import UsageError
from llamad.frozen import dataclass
from llamad.text import shown

HUB = "https://huggingface.co"
_REPO = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,127}")
_HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_NAME_BYTES = 200  # a file system takes 255; what is written beside a file has a longer name
_FIX = "write OWNER/REPO, OWNER/REPO:QUANT, hf:OWNER/REPO/FILE.gguf or an https:// address"


@dataclass(frozen=True)
class HubSource:
    """A repository: with `file` that one file of it (and its further shards), else what `quantisation` names."""

    repo: str
    quantisation: str = ""
    file: str = ""
    revision: str = "main"


@dataclass(frozen=True)
class UrlSource:
    """One file at a plain address."""

    url: str
    name: str


Source: TypeAlias = HubSource | UrlSource


def parse_source(text: str, endpoint: str = HUB) -> Source:
    """What a word of the command line names. Raises UsageError.

    Addresses of files in a repository of the hub (or of `endpoint`, its mirror) are taken as the repository's files,
    whose hashes are published.
    """
    if "://" in text:
        return _from_url(text, endpoint)
    word = text.removeprefix("hf:").removeprefix("hf.co/").removeprefix("huggingface.co/")
    parts = word.split("/")
    if len(parts) > 2 and word.endswith(".gguf"):
        return _checked(HubSource("/".join(parts[:2]), file="/".join(parts[2:])), text)
    repo, _, tag = word.partition(":")
    return _checked(HubSource(repo, quantisation=tag), text)


def file_name(path: str) -> str:
    """The name under which a file of a server is stored: the last part of its path there.

    Raises UsageError for a name that no GGUF file should have here: hidden, with control characters, too long.
    """
    name = path.rpartition("/")[2]
    problem = ""
    if not name.isprintable() or "\\" in name or "\0" in name:
        problem = "it has control characters in it"
    elif name.startswith((".", "-", "~")):
        problem = f'it begins with "{name[0]}"'
    elif not name.endswith(".gguf"):
        problem = "it does not end in .gguf"
    elif len(name.encode("utf-8", "surrogatepass")) > _NAME_BYTES:
        problem = f"it is longer than {_NAME_BYTES} bytes"
    if problem:
        fix = "name the file that it shall be: --to FOLDER/NAME.gguf"
        raise UsageError(
            f'the server\'s file "{shown(name)}" is not stored under this name', why=problem, fix=fix
        )
    return name


def check_revision(text: str) -> str:
    """A branch, tag or commit of a repository. Raises UsageError."""
    if not _REVISION.fullmatch(text) or ".." in text or "//" in text or text.endswith("/"):
        raise UsageError(f'"{shown(text)}" is no revision', fix="write a branch, a tag or a commit")
    return text


def _from_url(text: str, endpoint: str) -> Source:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UsageError("this is no address", why=str(error), fix=_FIX) from None
    if parts.scheme not in ("http", "https") or not host or not text.isprintable() or " " in text:
        raise UsageError("this is no http:// or https:// address", why=f'"{shown(text, 200)}"', fix=_FIX)
    if parts.username or parts.password:
        why = "everybody on this machine can read the command line, and so the password in it"
        raise UsageError(
            "an address must hold no user name and no password", why=why, fix="--token-file FILE"
        )
    mirror = urlsplit(endpoint)
    if (host, port) == (mirror.hostname, mirror.port) or (host in _HUB_HOSTS and port in (None, 443)):
        words = unquote(parts.path).strip("/").split("/")
        if len(words) == 2 and not words[1].endswith(".gguf"):
            return _checked(HubSource("/".join(words)), text)
        if len(words) > 4 and words[2] in ("resolve", "blob", "raw"):
            return _checked(
                HubSource("/".join(words[:2]), "", "/".join(words[4:]), check_revision(words[3])), text
            )
    return UrlSource(text, unquote(parts.path))


def _checked(source: HubSource, text: str) -> HubSource:
    why = ""
    if not _REPO.fullmatch(source.repo) or ".." in source.repo:
        why = f'"{shown(source.repo)}" is not OWNER/REPO'
    elif (":" in text and not source.file and "://" not in text and not source.quantisation) or (
        source.quantisation and not _TAG.fullmatch(source.quantisation)
    ):
        why = f'"{shown(source.quantisation)}" names no quantisation'
    elif source.file and any(part in ("", ".", "..") for part in source.file.split("/")):
        why = f'"{shown(source.file)}" is no path of a repository'
    if why:
        raise UsageError(f'"{shown(text, 200)}" names no model', why=why, fix=_FIX)
    return source
