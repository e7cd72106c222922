"""The files that make up an installed llama-server: its identity for caches and learned values.

llama.cpp is several packages: the program, its libraries, and a folder of backends that are loaded at run time.
Installing the Vulkan backend changes what the unchanged program can do, so all of them count.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping

_LIBRARIES = ("libggml", "libllama", "libmtmd")
_SYSTEM_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64")
# A folder of programs holds thousands of files and never a library.
_PROGRAM_FOLDERS = frozenset({"/usr/bin", "/bin", "/usr/local/bin"})
_BACKEND = re.compile(r"libggml-([a-z]+)[\w.-]*\.so")
_NO_BACKENDS = frozenset({"base"})


def identity(server: str, env: Mapping[str, str], system_folders: tuple[str, ...] = _SYSTEM_FOLDERS) -> str:
    """A hash of name, size and mtime of llama-server and of every library that it may load. About 2 ms.

    `server` is an absolute path. Only names that begin as llama.cpp's do are looked at, and nothing is run.
    """
    digest = hashlib.sha256(b"1\n")
    for path in _files(server, env, system_folders):
        try:
            stat = os.stat(path)
        except OSError:
            continue  # a dangling link, or removed since it was listed: another identity than before
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def backends(
    server: str, env: Mapping[str, str], system_folders: tuple[str, ...] = _SYSTEM_FOLDERS
) -> frozenset[str]:
    """The backends that llama-server can load, by the names of their libraries: `cpu`, `vulkan`, `cuda`, `hip`, `rpc`.

    Empty for a build that has them built in. Nothing is run.
    """
    names = (_BACKEND.match(os.path.basename(path)) for path in _files(server, env, system_folders))
    return frozenset(found[1] for found in names if found) - _NO_BACKENDS


def _files(server: str, env: Mapping[str, str], system_folders: tuple[str, ...]) -> list[str]:
    found = {server, os.path.realpath(server)}
    for folder in _folders(server, env, system_folders):
        found.update(_libraries_in(folder))
    backend = env.get("GGML_BACKEND_PATH")
    if backend:
        found.update(_libraries_in(backend) if os.path.isdir(backend) else (backend,))
    return sorted(found)


def _folders(server: str, env: Mapping[str, str], system_folders: tuple[str, ...]) -> list[str]:
    program = os.path.dirname(os.path.realpath(server))
    folders = [folder for folder in env.get("LD_LIBRARY_PATH", "").split(":") if folder]
    folders += [f"{program}/../lib", f"{program}/../lib64"]
    if program not in _PROGRAM_FOLDERS:
        folders.append(program)
    folders += [folder for system in system_folders for folder in (system, *_triplets(system))]
    unique = dict.fromkeys(os.path.realpath(folder) for folder in folders)
    return [inner for folder in unique for inner in (folder, f"{folder}/llama", *_backends(folder))]


def _triplets(system: str) -> Iterator[str]:
    for entry in _scan(system):
        if "-linux-" in entry.name:
            yield entry.path


def _backends(folder: str) -> list[str]:
    ggml = f"{folder}/ggml"
    return [ggml, *(entry.path for entry in _scan(ggml) if entry.name.startswith("backends"))]


def _libraries_in(folder: str) -> Iterator[str]:
    inside = os.path.basename(os.path.dirname(folder)) == "ggml"
    for entry in _scan(folder):
        if entry.name.startswith(_LIBRARIES) or (inside and ".so" in entry.name):
            yield entry.path


def _scan(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (
        OSError
    ):  # most of the folders are not there, and one that may not be read is not loaded from either
        return []
