"""What a file is that is not a GGUF, by its first bytes, in words. Pure."""

from __future__ import annotations

import re

FIRST_BYTES = 1024
_GGUF = b"GGUF"
_CONVERT = "convert it with llama.cpp's convert_hf_to_gguf.py, or fetch the model's GGUF file"
_UNPACK = "unpack it and name the .gguf file inside"
_PAGE = 'fetch the file itself: a link with "/resolve/" in it, not "/blob/"'
_MAGICS: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "it is a ZIP archive or a PyTorch checkpoint", _CONVERT),
    (b"\x80\x02", "it is a PyTorch checkpoint (a Python pickle)", _CONVERT),
    (b"\x1f\x8b", "it is compressed with gzip", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd", _UNPACK),
    (b"\xfd7zXZ\x00", "it is compressed with xz", _UNPACK),
    (b"BZh", "it is compressed with bzip2", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "it is a 7-Zip archive", _UNPACK),
    (b"lmgg", "it is in the old GGML format of 2023", _CONVERT),
    (b"fmgg", "it is in the old GGMF format of 2023", _CONVERT),
    (b"tjgg", "it is in the old GGJT format of 2023", _CONVERT),
    (b"algg", "it is a LoRA adapter in the old GGLA format of 2023", _CONVERT),
    (b"\x89HDF", "it is a Keras (HDF5) checkpoint", _CONVERT),
    (b"\x7fELF", "it is a program", "name the .gguf file"),
)
_LFS_SIZE = re.compile(rb"^size (\d{1,20})$", re.MULTILINE)


def foreign(first: bytes, path: str) -> tuple[str, str] | None:
    """Why a file that begins with `first` is no GGUF, and the fix; None where it may be one."""
    if first.startswith(_GGUF):
        return None
    if not first:
        return "the file is empty", "fetch the file again"
    for magic, words, fix in _MAGICS:
        if first.startswith(magic):
            return words, fix
    return _text(first) or _binary(first, path)


def _text(first: bytes) -> tuple[str, str] | None:
    start = first.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"version https://git-lfs"):
        size = _LFS_SIZE.search(first)
        words = f" for a file of {int(size[1])} bytes" if size else ""
        return f"it is a Git LFS pointer{words}, not the file itself", "run `git lfs pull` in that folder"
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "it is a web page that was saved under the model's name", _PAGE
    if start.startswith((b"{", b"invalid username", b"access to model", b"entry not found")):
        return "it is a text, perhaps the error answer of a download", _PAGE
    return None


def _binary(first: bytes, path: str) -> tuple[str, str]:
    if len(first) > 8 and first[8:9] == b"{" and 2 <= int.from_bytes(first[:8], "little") < 100 << 20:
        return "it is a safetensors file", _CONVERT
    if not first.strip(b"\0"):
        return "it begins with zeros", "wait until the download has finished, or fetch the file again"
    if path.endswith((".part", ".crdownload", ".incomplete", ".download", ".aria2", ".tmp")):
        return "it is a download that has not finished", "name the finished file"
    return f"it is not a GGUF file (it begins with {_shown(first[:8])})", "name a .gguf file"


def _shown(first: bytes) -> str:
    printable = all(0x20 <= byte < 0x7F for byte in first)
    return f'"{first.decode("ascii")}"' if printable else f"bytes {first.hex(' ')}"
