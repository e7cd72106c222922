"""Streamed answers, counted by how they end."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from tests.system.conftest import wait_for


def stream(address: str, tokens: int, first: Callable[[], None] = lambda: None, **more: Any) -> str:
    """One streamed answer: `done`, `error: CAUSE`, or how it was lost. `first` is called with its first event. `more`:
    of the request.
    """
    connection = http.client.HTTPConnection(address, timeout=120)
    last: dict[str, object] = {}
    try:
        body = {"prompt": [10, 11, 12], "n_predict": tokens, "stream": True, "ignore_eos": True, **more}
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            return f"{response.status} {response.read()[:200]!r}"
        for line in response:
            if line.startswith(b"data: {"):
                if not last:
                    first()
                last = json.loads(line[6:])
        error = last.get("error")
        if isinstance(error, dict):
            return f"error: {error.get('code')} {error.get('type')}"
        return "done" if last.get("stop") else "cut"
    except ConnectionRefusedError:
        return "refused"
    except (OSError, http.client.HTTPException) as error:
        return f"lost: {type(error).__name__}"
    finally:
        connection.close()


class Streams:
    """Clients that stream one answer after the other for as long as they are not told to stop. `more`: of each request."""

    def __init__(self, url: str, clients: int, tokens: int, **more: Any) -> None:
        self.outcomes: Counter[str] = Counter()
        self.waits_s: list[float] = []
        """From each request to its first event."""
        self._address = urlsplit(url).netloc
        self._tokens, self._more = tokens, more
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            began_s = time.monotonic()
            outcome = stream(self._address, self._tokens, lambda: self._begun(began_s), **self._more)  # noqa: B023
            with self._lock:
                self.outcomes[outcome] += 1

    def _begun(self, since_s: float) -> None:
        self.waits_s.append(time.monotonic() - since_s)

    def more(self, count: int = 10) -> None:
        """Return when so many more streams have ended."""
        before = self.outcomes.total()
        wait_for(lambda: self.outcomes.total() >= before + count, f"{count} more streams", 120)

    def end(self) -> Counter[str]:
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=180)
            assert not thread.is_alive()
        return self.outcomes
