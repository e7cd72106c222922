"""A model served for a measurement alone: an own `llamad serve`, with an own name, address and state.

It is the same daemon as the service's, so it plans, leases its memory in the ledger, proves and supervises as that
does. Its definition is the model's with one drop-in more, in a folder of its own; nothing of the model's is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from llamad.config.definition import Definition
from llamad.config.loaded import Loaded
from llamad.config.names import definition_names
from llamad.engine.query import dies_with_us
from llamad.errors import BusyError, ExitCode, LlamadError, os_error
from llamad.measure.client import Target
from llamad.service.paths import Paths
from llamad.service.status import read_status
from llamad.text import printable

LONGEST_NAME = 48
_STOP_S = 30.0
_LINES = 20
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "XDG_RUNTIME_DIR", "PYTHONPATH", "TMPDIR")


class NotStarted(LlamadError):
    """An instance for a measurement did not become ready; its exit code is that of `llamad serve`."""

    def __init__(self, what: str, *, exit_code: ExitCode = ExitCode.CRASH_LOOP, why: str = "", fix: str = "") -> None:
        super().__init__(what, why=why, fix=fix)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Serving:
    """An instance that answers."""

    target: Target
    status: Mapping[str, object]
    """What it says of itself, as `llamad status --json` has it."""


class Instances:
    """Serves variants of one definition, one at a time.

    `command` starts this llamad; `root` is the folder of definitions, whose others are seen as the service sees them.
    `cache` outlives a measurement: compiled kernels are in it.
    """

    def __init__(
        self,
        loaded: Loaded,
        root: Path,
        command: Sequence[str],
        environ: Mapping[str, str],
        *,
        cache: Path,
        wait_s: float,
    ) -> None:
        self._loaded = loaded
        self._root = root
        self._command = command
        self._environ = environ
        self._cache = cache
        self._wait_s = wait_s
        self.name = temporary_name(loaded.name, definition_names(root))

    @asynccontextmanager
    async def serve(
        self, placement: Mapping[str, object], say: Callable[[str], None], start_s: float
    ) -> AsyncIterator[Serving]:
        """The model with these keys of `[placement]`, ready; gone when the context is left, however it is.

        Raises NotStarted with the reason, BusyError for memory that others have.
        """
        with tempfile.TemporaryDirectory(prefix="llamad-measure-") as scratch:
            folder = Path(scratch)
            key = secrets.token_urlsafe(24)
            self._write(folder, placement, key)
            with _Ear(folder / "notify") as ear:
                daemon = await self._start(folder)
                try:
                    await self._ready(daemon, ear, say, start_s)
                    yield Serving(self._target(key), self._status())
                finally:
                    await daemon.stop()
                    self._remove_traces()

    def _write(self, folder: Path, placement: Mapping[str, object], key: str) -> None:
        """The folder of definitions: copies, so that nothing is read that is edited meanwhile."""
        root = folder / "etc"
        root.mkdir(mode=0o700)
        try:
            _copy_definitions(self._root, root, self._loaded.name, self.name)
        except OSError as error:
            raise os_error(f"cannot copy the definitions of {self._root}", error, "run it as root") from error
        (folder / "key").touch(mode=0o600)
        (folder / "key").write_text(f"{key}\n")
        self._copy_lessons(folder)
        import tomli_w

        drop_in = own_settings(self._loaded.definition, self.name, str(folder / "key"), self._wait_s)
        drop_in["placement"] = dict(placement)
        own = root / f"{self.name}.toml.d" / "999999-measure.toml"
        own.parent.mkdir(mode=0o700, exist_ok=True)
        own.write_text(tomli_w.dumps(drop_in))

    def _copy_lessons(self, folder: Path) -> None:
        """What the service learned about its memory counts here too; what is learned here, for bytes of others, not."""
        state = folder / "state"
        state.mkdir(mode=0o700)
        learned = Paths.of(self._loaded.name, dict(self._environ)).state / "learned.toml"
        with contextlib.suppress(OSError):
            shutil.copyfile(learned, state / learned.name)

    async def _start(self, folder: Path) -> _Daemon:
        env = {name: self._environ[name] for name in _KEPT_VARIABLES if name in self._environ}
        env |= {
            "NOTIFY_SOCKET": str(folder / "notify"),
            "STATE_DIRECTORY": str(folder / "state"),
            "CACHE_DIRECTORY": str(self._cache),
        }
        argv = dies_with_us([*self._command, "--config", str(folder / "etc"), "serve", self.name])
        process = await asyncio.create_subprocess_exec(
            *argv, env=env, cwd="/", stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        return _Daemon(process)

    async def _ready(self, daemon: _Daemon, ear: _Ear, say: Callable[[str], None], start_s: float) -> None:
        """Return when it is ready. Raises NotStarted, BusyError."""
        try:
            async with asyncio.timeout(start_s):
                while (ready := await self._hear(daemon, ear)) is False:
                    say(printable(ear.status))
        except TimeoutError:
            raise NotStarted(
                f"{self._loaded.name} was not ready within {start_s:.0f} s",
                exit_code=ExitCode.TEMPORARY,
                why=printable(ear.status),
                fix="give it more time: --timeout",
            ) from None
        if ready is None:
            raise self._reason(daemon.process.returncode or 0, ear.status, await daemon.last_lines())

    async def _hear(self, daemon: _Daemon, ear: _Ear) -> bool | None:
        """Wait for its next message: whether it is ready; None if it has ended."""
        heard, ended = asyncio.create_task(ear.hear()), asyncio.create_task(daemon.process.wait())
        try:
            await asyncio.wait({heard, ended}, return_when=asyncio.FIRST_COMPLETED)
            return heard.result() if heard.done() else None
        finally:
            heard.cancel()
            ended.cancel()

    def _reason(self, code: int, status: str, lines: Sequence[str]) -> LlamadError:
        """Why it ended before it was ready: in its own last words."""
        known = code in ExitCode._value2member_map_
        words = status or (lines[-1] if lines else f"exit status {code}")
        why = printable(words.replace(self.name, self._loaded.name))
        if code == ExitCode.TEMPORARY:
            return BusyError(f"{self._loaded.name} cannot be started for a measurement", why=why,
                             fix="free memory, or stop what has it: `llamad status`")  # fmt: skip
        return NotStarted(
            f"{self._loaded.name} cannot be started for a measurement",
            exit_code=ExitCode(code) if known and code else ExitCode.CRASH_LOOP, why=why,
            fix=f"`llamad check {self._loaded.name}`, `llamad plan {self._loaded.name}`",
        )  # fmt: skip

    def _paths(self) -> Paths:
        return Paths.of(self.name, {key: self._environ[key] for key in _KEPT_VARIABLES if key in self._environ})

    def _status(self) -> Mapping[str, object]:
        runtime = self._paths().runtime
        return read_status(self.name, runtime.parent) or {}

    def _target(self, key: str) -> Target:
        return Target(unix_path=str(self._paths().public_sockets / socket_name(self.name)), key=key)

    def _remove_traces(self) -> None:
        """What `llamad serve` leaves outside systemd: its run-time folder."""
        runtime = self._paths().runtime
        if runtime.name == self.name:
            shutil.rmtree(runtime, ignore_errors=True)


def temporary_name(name: str, taken: Sequence[str]) -> str:
    """What a measured instance of a model is called in the ledger and in the journal; no definition's name."""
    for suffix in (".bench", *(f".bench{n}" for n in range(2, 100))):
        found = name[: LONGEST_NAME - len(suffix)] + suffix
        if found not in taken:
            return found
    raise BusyError(f"no free name to measure {name} under", fix="rename the definitions that end in .bench")


def socket_name(name: str) -> str:
    """The name of its address."""
    return f"{name}.sock"


def own_settings(definition: Definition, name: str, key_file: str, wait_s: float) -> dict[str, object]:
    """What a measured instance has otherwise than the service: its address and key, and nothing that would hold back
    or change what is measured. Pure.
    """
    found: dict[str, object] = {
        "listen": f"unix:{socket_name(name)}",
        "listen_mode": "0600",
        "api_keys_file": key_file,
        "limits": {"start_wait_s": wait_s, "restarts": 0, "queue_requests": 1000, "wait_s": 3600.0},
        "cache": {"responses": 0},
        "log": {"requests": "off"},
        "server": {"metrics": True},
    }
    if definition.admin_keys_file is not None:
        found["admin_keys_file"] = key_file
    limits = found["limits"]
    assert isinstance(limits, dict)
    for key in ("max_input_tokens", "max_output_tokens", "max_total_tokens", "max_concurrent_requests"):
        if getattr(definition.limits, key) is not None:
            limits[key] = 1_000_000
    return found


def _copy_definitions(source: Path, target: Path, name: str, own: str) -> None:
    """Host settings and other definitions as they are, because they claim shares of the devices; `name` as `own`."""
    for found in sorted(source.iterdir()):
        stem = found.name.removesuffix(".d").removesuffix(".toml")
        wanted = stem == name or os.access(found, os.R_OK)  # a neighbour that cannot be read claims nothing
        into = target / found.name.replace(stem, own if stem == name else stem, 1)
        if wanted and found.name == f"{stem}.toml" and found.is_file():
            shutil.copyfile(found, into)
        elif wanted and found.name == f"{stem}.toml.d" and found.is_dir():
            _copy_folder(found, into)


def _copy_folder(source: Path, target: Path) -> None:
    target.mkdir(mode=0o700)
    for found in source.iterdir():
        if found.is_file():
            shutil.copyfile(found, target / found.name)


class _Ear:
    """The socket that the instance tells its state to, as systemd's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.status = ""

    def __enter__(self) -> _Ear:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._socket.bind(str(self._path))
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    async def hear(self) -> bool:
        """Wait for one message; whether it says that the instance is ready. Descriptors that come along are dropped."""
        data = await asyncio.get_running_loop().sock_recv(self._socket, 8192)
        fields = dict(line.split("=", 1) for line in data.decode("utf-8", "replace").splitlines() if "=" in line)
        self.status = fields.get("STATUS", self.status)
        return fields.get("READY") == "1"


class _Daemon:
    """The `llamad serve` of an instance; what it writes is read for as long as it lives, or it would be held up."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._pump = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        held = b""
        while data := await self.process.stderr.read(1 << 16):
            *whole, held = (held + data)[-(1 << 16) :].split(b"\n")
            self._lines.extend(line.decode("utf-8", "replace") for line in whole if line.strip())

    async def last_lines(self) -> Sequence[str]:
        """What it wrote last; for one that has ended."""
        await self._pump
        return self._lines

    async def stop(self) -> None:
        """Have it stop as the service stops; killed, with its llama-server, where that takes too long."""
        try:
            if self.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self.process.send_signal(signal.SIGTERM)
                try:
                    await asyncio.wait_for(asyncio.shield(self.process.wait()), _STOP_S)
                except TimeoutError:
                    with contextlib.suppress(ProcessLookupError):
                        self.process.kill()
                    await self.process.wait()
        finally:
            self._pump.cancel()
