"""A plain HTTP client, a clock in the test's hand and an observer: for tests of the front."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from llamad.front.settings import RequestRecord

PATIENCE_S = 5.0


def scenario(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on a loop of its own, with a bound. Errors in the loop's callbacks fail it."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            problems: list[dict[str, Any]] = []
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: problems.append(context))
            await asyncio.wait_for(test(*args, **kwargs), PATIENCE_S)
            await yield_to_loop()
            assert not problems, problems
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            assert not left, left

        asyncio.run(bounded())

    return run


async def yield_to_loop(turns: int = 20) -> None:
    """Let callbacks that are ready run."""
    for _ in range(turns):
        await asyncio.sleep(0)


class FakeClock:
    """Time that passes only in `advance`."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now_s + delay_s, sleeper))
        await sleeper

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass, waking each sleeper at its moment."""
        end_s = self.now_s + seconds
        while True:
            await yield_to_loop()
            self._sleepers = [(at_s, one) for at_s, one in self._sleepers if not one.done()]
            due = min((at_s for at_s, _ in self._sleepers), default=end_s + 1)
            if due > end_s:
                break
            self.now_s = max(self.now_s, due)
            for at_s, one in self._sleepers:
                if at_s <= due and not one.done():
                    one.set_result(None)
        self.now_s = end_s


class Signal:
    """Waiting for a condition on state that callbacks change."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def fire(self) -> None:
        self._event.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._event.clear()
            await self._event.wait()


async def count_nothing(path: str, body: bytes) -> int | None:
    """A llama-server that cannot count."""
    return None


class RecordingObserver:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.signal = Signal()
        self.records: list[RequestRecord] = []
        self.waits = 0
        self.lost: list[int] = []
        self.progressed = 0
        self.counted: list[tuple[str, bytes]] = []
        self.counter: Callable[[str, bytes], Awaitable[int | None]] = count_nothing

    def request_waiting(self) -> None:
        self.waits += 1
        self.signal.fire()

    def request_finished(self, record: RequestRecord) -> None:
        self.records.append(record)
        self.signal.fire()

    def upstream_lost(self, generation: int) -> None:
        self.lost.append(generation)
        self.signal.fire()

    async def count_tokens(self, socket_path: str, path: str, body: bytes) -> int | None:
        self.counted.append((path, body))
        self.signal.fire()
        return await self.counter(path, body)

    def progress(self) -> None:
        self.progressed += 1
        self.signal.fire()


@dataclass
class Answer:
    """An answer as the client read it. `clean`: its framing ended as it should."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    clean: bool = True
    interim: list[int] = field(default_factory=list)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error."""
        return str(self.json["error"]["code"])

    @property
    def events(self) -> list[str]:
        """The data of each event of a stream."""
        blocks = [block for block in self.body.decode().split("\n\n") if block.startswith("data:")]
        return [block.removeprefix("data:").strip() for block in blocks]


class Client:
    """One connection of a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, address: str | tuple[str, int]) -> Client:
        if isinstance(address, str):
            return cls(*await asyncio.open_unix_connection(address))
        return cls(*await asyncio.open_connection(*address))

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()
        await yield_to_loop(3)

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def request(
        self,
        method: str = "POST",
        target: str = "/v1/chat/completions",
        body: bytes | None = b"{}",
        **headers: str,
    ) -> None:
        """Send a request; `X_Name="v"` becomes the field `X-Name: v`."""
        lines = [f"{method} {target} HTTP/1.1"]
        fields = {"Host": "localhost", **{name.replace("_", "-"): value for name, value in headers.items()}}
        if body is not None and "Transfer-Encoding" not in fields:
            fields.setdefault("Content-Length", str(len(body)))
        lines += [f"{name}: {value}" for name, value in fields.items()]
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))

    async def ask(self, *args: Any, **kwargs: Any) -> Answer:
        """Send a request and read the answer."""
        self.request(*args, **kwargs)
        return await self.answer(head_only="HEAD" in args[:1])

    async def head(self) -> Answer:
        """Read heads up to the final one."""
        interim: list[int] = []
        while True:
            text = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = text[:-4].split("\r\n")
            status = int(first.split(" ")[1])
            if status >= 200:
                pairs = (line.split(": ", 1) for line in lines)
                return Answer(status, {name.lower(): value for name, value in pairs}, interim=interim)
            interim.append(status)

    async def answer(self, *, head_only: bool = False) -> Answer:
        """Read one whole answer, or as much as comes."""
        answer = await self.head()
        if head_only or answer.status in (204, 304):
            return answer
        try:
            await self.body(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            answer.clean = False
        return answer

    async def body(self, answer: Answer) -> None:
        if answer.headers.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                answer.body += (await self.reader.readexactly(size + 2))[:-2]
            assert await self.reader.readexactly(2) == b"\r\n"
        elif "content-length" in answer.headers:
            answer.body = await self.reader.readexactly(int(answer.headers["content-length"]))
        else:
            answer.body = await self.reader.read()

    async def chunk(self) -> bytes:
        """Read one chunk of a chunked body."""
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def closed(self) -> bool:
        """Wait for the end of the connection; whether it came without another byte."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True


async def ask(address: str | tuple[str, int], *args: Any, **kwargs: Any) -> Answer:
    """One request on a connection of its own."""
    async with await Client.open(address) as client:
        return await client.ask(*args, **kwargs)


Waits = Callable[[], Awaitable[None]]
