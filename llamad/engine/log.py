"""Reading llama-server's log: bytes to lines, lines to levels and text, lines to what was loaded. Pure.

llama-server writes either text (`0.00.282.733 I load_tensors: ...`, on stderr) or, with `--log-jsonl`, one
JSON object a line (on stdout). Argument errors, aborts and some backends write raw text to stderr in both
modes, so both pipes are read as one set of lines. Nothing here grows with what the child writes.
"""

from __future__ import annotations

import json
import re
from dataclasses import field
from enum import StrEnum
from typing import Literal, NamedTuple

from llamad.frozen import dataclass
from llamad.units import MIB, sane_number

Level = Literal["error", "warning", "info", "debug", "raw"]
"""`raw` is text without a level: continuation lines, and what libraries write straight to stderr."""

_TEXT_LINE = re.compile(r"(?:\x1b\[[\d;]*m)*\d+\.\d\d\.\d{3}\.\d{3} ([IWED]) (.*)", re.DOTALL)
_TEXT_LEVELS: dict[str, Level] = {"I": "info", "W": "warning", "E": "error", "D": "debug"}
_JSON_LEVELS: dict[str, Level] = {"info": "info", "warn": "warning", "error": "error", "debug": "debug"}
_RAW_ERROR = re.compile(
    r"error\b|terminate called|.*(?:CUDA error|ROCm error|MUSA error|GGML_ASSERT|ErrorOutOf|ErrorDeviceLost"
    r"| failed\.$|^\S+\.(?:c|cpp|cu|h):\d+: )"
)
# Everything that could move a terminal's cursor or end a journal field; the tab is kept.
_CONTROL = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), "\ufffd") | {0x09: "\t", 0x0A: "\\n"}
_ANSI = re.compile(r"\x1b\[[\d;]*[A-Za-z]")


LINE_BYTES = 8192
_BLOCK_BYTES = 1 << 17


class LineSplitter:
    """Bytes of a pipe to whole lines, in bounded memory.

    A line longer than `max_line_bytes` keeps its head and says how many bytes were cut; it still comes out
    once, when its end arrives. Any byte but the newline may be part of a line.
    """

    def __init__(self, max_line_bytes: int = LINE_BYTES) -> None:
        self._max_bytes = max_line_bytes
        self._head = b""
        self._cut_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without their newline."""
        pieces = data.split(b"\n")
        rest = pieces.pop()
        lines = []
        if pieces:
            self._keep(pieces[0])
            lines.append(self._take())
            whole = self._max_bytes
            lines += [piece if len(piece) <= whole else shortened(piece, whole) for piece in pieces[1:]]
        self._keep(rest)
        return lines

    def whole_lines(self, data: bytes) -> bytes | None:
        """The lines that `data` completes, in one piece with their newlines; None, and nothing is taken, where a line
        might be too long: then `feed`."""
        if self._cut_bytes or len(data) > _BLOCK_BYTES:
            return None
        end = data.rfind(b"\n") + 1
        if len(data) - end + (0 if end else len(self._head)) > self._max_bytes:
            return None
        if not end:
            self._head += data
            return b""
        block = self._head + data[:end] if self._head else data[:end]
        self._head = data[end:]
        return block

    def flush(self) -> list[bytes]:
        """What is left when the pipe has ended: at most one line."""
        return [self._take()] if self._head or self._cut_bytes else []

    def _keep(self, piece: bytes) -> None:
        room = self._max_bytes - len(self._head)
        self._head += piece[:room]
        self._cut_bytes += max(0, len(piece) - room)

    def _take(self) -> bytes:
        line = self._head
        if self._cut_bytes:
            line += b" [cut, %d bytes more]" % self._cut_bytes
        self._head, self._cut_bytes = b"", 0
        return line


def shortened(line: bytes, max_bytes: int = LINE_BYTES) -> bytes:
    """A line that is too long keeps its head and says how many bytes were cut."""
    return line if len(line) <= max_bytes else line[:max_bytes] + b" [cut, %d bytes more]" % (len(line) - max_bytes)


class LogLine(NamedTuple):
    """One line of the child, fit to be shown: `text` has no prefix, no newline and no control character."""

    level: Level
    text: str
    data: dict[str, object] | None = None
    """The record of a JSON line that is no log text (`fit_memory_breakdown`)."""


def parse_line(raw: bytes | str, *, may_be_json: bool = True) -> LogLine:
    """A line of either log format, or raw text. Never raises, whatever the bytes are.

    `may_be_json`: false for a stream that the server's own records do not go to. Grammars of clients are printed
    there as they came, and must not pass for records.
    """
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    text = text.rstrip("\r\n")
    if may_be_json and text.startswith('{"type":'):
        parsed = _parse_json(text)
        if parsed is not None:
            return parsed
    match = _TEXT_LINE.match(text)
    if match:
        return LogLine(_TEXT_LEVELS[match[1]], _shown(match[2]))
    return LogLine("error" if _RAW_ERROR.match(text) else "raw", _shown(text))


def _parse_json(text: str) -> LogLine | None:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None  # cut, or not llama-server's: shown as it is
    message = record.get("msg")
    if record["type"] == "log" and isinstance(message, str):
        return LogLine(_JSON_LEVELS.get(str(record.get("level")), "info"), _shown(message.rstrip("\r\n")))
    return LogLine("info", _shown(text), record)


def _shown(text: str) -> str:
    if text.isprintable():
        return text
    return _ANSI.sub("", text).translate(_CONTROL)


class Sign(StrEnum):
    """What a line says about the child, where that matters to who watches it."""

    MODEL_LOADED = "model-loaded"
    LISTENING = "listening"
    PROMPT_PROGRESS = "prompt-progress"
    """A batch of a prompt was begun or computed: the compute loop is alive."""
    ENCODING = "encoding"
    """A picture or a sound is being encoded: one long step, on the CPU of minutes, without a word."""
    ALLOC_FAILED = "alloc-failed"
    """A buffer could not be had. Before MODEL_LOADED the start has failed, even if the child goes on."""
    ALLOC_RETRIED = "alloc-retried"
    """The failures so far are made good: the server tries again without pipeline copies."""
    FIT_FAILED = "fit-failed"
    CACHE_FULL = "cache-full"
    """A request was answered 500 because the slots together need more context: no lack of memory."""
    COMPUTE_FAILED = "compute-failed"
    """A request was answered 500 because the batch could not be computed, and the server goes on."""


_PROGRESS_SIGNS: tuple[tuple[str, Sign], ...] = (
    ("prompt processing", Sign.PROMPT_PROGRESS),
    ("memory_seq_rm [", Sign.PROMPT_PROGRESS),
    (" slice encoded in ", Sign.PROMPT_PROGRESS),  # mtmd-helper.cpp: a picture or a sound is a part of the prompt
    ("decoding image batch", Sign.PROMPT_PROGRESS),
    ("encoding image slice", Sign.ENCODING),
    ("encoding audio slice", Sign.ENCODING),
    ("llama_server: model loaded", Sign.MODEL_LOADED),
    ("main: model loaded", Sign.MODEL_LOADED),
    ("listening on ", Sign.LISTENING),
)
# The first needle that is found decides. Pinned memory and upload buffers are done without when refused.
_TROUBLE_SIGNS: tuple[tuple[str, Sign | None], ...] = (
    ("error: Context size has been exceeded", Sign.CACHE_FULL),
    ("error: Compute error", Sign.COMPUTE_FAILED),
    ("pinned memory", None),
    ("host buffer for async uploads", None),
    ("retrying without pipeline parallelism", Sign.ALLOC_RETRIED),
    ("cudaMalloc failed", Sign.ALLOC_FAILED),
    ("failed to allocate", Sign.ALLOC_FAILED),
    ("unable to allocate", Sign.ALLOC_FAILED),
    ("insufficient memory", Sign.ALLOC_FAILED),
    ("emory allocation of size", Sign.ALLOC_FAILED),
    ("Requested buffer size exceeds", Sign.ALLOC_FAILED),
    ("ErrorOutOfDeviceMemory", Sign.ALLOC_FAILED),
    ("ErrorOutOfHostMemory", Sign.ALLOC_FAILED),
    ("failed to fit params", Sign.FIT_FAILED),
    ("encountered an error while trying to fit", Sign.FIT_FAILED),
)


_REQUEST_FAILED = re.compile(
    r"srv +send_error: task id = \d+, error: (?:Compute error|Context size has been exceeded)\."
)


def is_of_the_server(line: LogLine) -> bool:
    """Whether a line that says why a request failed is the server's own, not something that a client wrote."""
    return line.level == "error" and _REQUEST_FAILED.fullmatch(line.text) is not None


def sign_of(line: LogLine) -> Sign | None:
    """The meaning of a line for the supervisor; None for nearly all of them."""
    text = line.text
    for needle, sign in _TROUBLE_SIGNS if line.level in ("error", "warning", "raw") else _PROGRESS_SIGNS:
        if needle in text:
            return sign
    return None


class AllocFailure(NamedTuple):
    """A buffer that could not be had. `buffer` is "" and `size_bytes` 0 where the line does not tell."""

    buffer: str
    size_bytes: int
    text: str


_ALLOC_FORMS: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"failed to allocate output buffer of size (?P<size>[\d.]+) MiB"), MIB),
    (re.compile(r"failed to allocate (?P<buffer>\S+) buffer of size (?P<size>\d+)"), 1),
    (re.compile(r"failed to allocate buffer of size (?P<size>\d+)"), 1),
    (re.compile(r"unable to allocate (?P<buffer>\S+) buffer"), 1),
    (re.compile(r"allocating (?P<size>[\d.]+) MiB on device (?P<index>\d+): cudaMalloc failed"), MIB),
    (re.compile(r"emory allocation of size (?P<size>\d+) failed"), 1),
    (re.compile(r"insufficient memory \(attempted to allocate\s+(?P<size>[\d.]+) MB\)"), MIB),
)


def alloc_failure(line: LogLine) -> AllocFailure:
    """Device and size of a line whose sign is ALLOC_FAILED, as far as it tells them."""
    for form, factor in _ALLOC_FORMS:
        match = form.search(line.text)
        if match:
            found = match.groupdict()
            buffer = found.get("buffer") or (f"CUDA{found['index']}" if "index" in found else "")
            return AllocFailure(buffer, int(sane_number(found.get("size") or "0", factor)), line.text)
    return AllocFailure("", 0, line.text)


BufferKey = tuple[str, str]
"""Buffer type as logged, without an RPC server's address (`Vulkan0`, `CPU_Mapped`, `CUDA_Host`), and the
kind: `model`, `kv`, `rs`, `compute`, `output`, or another word of llama.cpp's in lower case."""


@dataclass(frozen=True)
class Observed:
    """What a child said about its own load. Sizes in bytes, exact to the 0.01 MiB that the log prints."""

    buffers: dict[BufferKey, int] = field(default_factory=dict)
    context_tokens: int = 0
    slots: int = 0
    model_loaded: bool = False
    listening: bool = False
    first_error: str = ""
    """The first error line: the later ones of a failed load only repeat that it failed."""
    alloc_failures: tuple[AllocFailure, ...] = ()
    fit_warnings: tuple[str, ...] = ()

    def bytes_of(self, buffer: str, *kinds: str) -> int:
        """Bytes in one buffer type, over the kinds named."""
        return sum(self.buffers.get((buffer, kind), 0) for kind in kinds)


_BUFFER = re.compile(
    r"(?P<by>\w+): +(?P<name>[^\s\[]+)(?:\[[^\]]*\])? +(?P<kind>\w[\w ]*?) buffer size"
    r" += +(?P<mib>[\d.]+) MiB"
)
# Buffers that come after these are of what guesses ahead: a model of its own, or blocks of the model's.
_DRAFT_BEGINS = ("loading draft model", "creating MTP draft context")
_OF_A_CONTEXT = ("model", "kv", "rs", "output")
_FIT_PASS = re.compile(r"fit(?:ting)? params")
_CONTEXT = re.compile(r"llama_context: n_ctx +(?:=|:) +(\d+)")
_SLOTS = re.compile(r"\bn_slots = (\d+)")
# What the CUDA backend says when a plan without NVIDIA GPUs hides them from its child: meant so.
_HIDDEN_GPUS = "no CUDA-capable device is detected"
_KEEP = 16
_KEEP_BUFFERS = 256


class LoadObserver:
    """Collects `Observed` from the lines of one child, in order.

    Lines of one kind on one buffer add up (two caches of a sliding-window model, a mapping per shard),
    except compute buffers, where a later line of the same context is a newer figure. What was printed while
    llama-server tried out sizes (`--fit on`) is forgotten when the try ends.
    """

    def __init__(self) -> None:
        self._sizes: dict[BufferKey, int] = {}
        self._compute: dict[tuple[int, str, str], int] = {}
        self._contexts = 0
        self._drafting = False
        self._context_tokens = self._slots = 0
        self._loaded = False
        self._listening = False
        self._first_error = ""
        self._serves = False
        self._failures: list[AllocFailure] = []
        self._fit_warnings: list[str] = []

    def line(self, line: LogLine) -> Sign | None:
        """Take in one line and return its sign."""
        if line.level == "error" and not self._first_error and _HIDDEN_GPUS not in line.text:
            self._first_error = line.text
        if self._serves and line.level == "raw":
            pass  # what clients send is printed so, and no buffer of the server's
        elif "buffer size" in line.text:
            self._buffer(line.text)
        elif any(words in line.text for words in _DRAFT_BEGINS):
            self._drafting = True
        elif "sched_reserve: reserving" in line.text:
            self._forget_compute()
        elif "constructing llama_context" in line.text:
            self._contexts += 1
        elif "n_ctx " in line.text or "n_slots = " in line.text:
            self._counts(line.text)
        sign = sign_of(line)
        if sign is not None:
            self._sign(sign, line)
        if not self._serves and "fit" in line.text and _FIT_PASS.search(line.text):
            self._forget_try()
        return sign

    @property
    def buffer_count(self) -> int:
        """How many different buffers were named."""
        return len(self._sizes) + len(self._compute)

    def forget_failures(self) -> None:
        """It serves: from now on only new failures count, the last ones, and nothing that clients may have written."""
        self._serves = True
        self._failures.clear()

    def observed(self) -> Observed:
        """What is known so far."""
        buffers = dict(self._sizes)
        for (_, _, name), size in self._compute.items():
            buffers[name, "compute"] = buffers.get((name, "compute"), 0) + size
        return Observed(
            buffers,
            self._context_tokens,
            self._slots,
            self._loaded,
            self._listening,
            self._first_error,
            tuple(self._failures),
            tuple(self._fit_warnings),
        )

    def _buffer(self, text: str) -> None:
        match = _BUFFER.match(text)
        if not match or len(self._sizes) + len(self._compute) >= _KEEP_BUFFERS:
            return
        name, kind, size_bytes = match["name"], match["kind"].lower(), round(sane_number(match["mib"], MIB))
        if kind.endswith(" state"):  # DeepSeek-V4's own recurrent state
            kind = "rs"
        if self._drafting and kind in _OF_A_CONTEXT:
            kind = f"draft {kind}"
        if kind == "compute":
            self._compute[self._contexts, match["by"], name] = size_bytes
        else:
            self._sizes[name, kind] = self._sizes.get((name, kind), 0) + size_bytes

    def _forget_try(self) -> None:
        self._sizes.clear()
        self._compute.clear()
        self._context_tokens = 0

    def _forget_compute(self) -> None:
        again = (self._contexts, "sched_reserve")
        self._compute = {key: size for key, size in self._compute.items() if key[:2] != again}

    def _counts(self, text: str) -> None:
        context = _CONTEXT.match(text)
        if context and not self._context_tokens:  # the first is the model's, a later one a draft model's
            self._context_tokens = int(sane_number(context[1]))
        slots = _SLOTS.search(text)
        if slots:
            self._slots = int(sane_number(slots[1]))

    def _sign(self, sign: Sign, line: LogLine) -> None:
        if sign is Sign.MODEL_LOADED:
            self._loaded = True
        elif sign is Sign.LISTENING:
            self._listening = True
        elif sign is Sign.ALLOC_RETRIED:
            self._failures.clear()
        elif sign is Sign.ALLOC_FAILED and (self._serves or len(self._failures) < _KEEP):
            self._failures = [*self._failures[1 - _KEEP :], alloc_failure(line)]
        elif sign is Sign.FIT_FAILED and len(self._fit_warnings) < _KEEP:
            self._fit_warnings.append(line.text)
