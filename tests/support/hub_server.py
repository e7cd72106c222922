"""A hub of models on this machine, and every bad habit that a server of files may have.

    server = HubServer({"org/repo": {"model-Q4_K_M.gguf": data}})
    with server:
        ... server.url ...
    server.faults.drop_after_bytes = 1000

What was asked is in `requests`. A script can run it too: `python3 -m tests.support.hub_server FOLDER PORT` offers the
files of a folder as the repository `bed/models`.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import ssl
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_DATE = "Thu, 01 Jan 2026 00:00:00 GMT"


@dataclass
class Faults:
    """What the server does wrong. Zero, empty and None: nothing."""

    drops: int = 0
    """So many answers with content end after `drop_after_bytes`."""
    drop_after_bytes: int = 1000
    ignore_ranges: bool = False
    ignore_if_range: bool = False
    etags: bool = True
    weak_etags: bool = False
    claim_bytes: int = 0
    """Every answer claims so many bytes more than there are."""
    wrong_at: int | None = None
    """One byte of every answer is another."""
    tell_start: int = 0
    """A partial answer that is not of the beginning is, and says to be, of so many bytes later."""
    statuses: list[int] = field(default_factory=list)
    """Answers to the next requests for files."""
    retry_after: str = ""
    content_encoding: str = ""
    chunked: bool = False
    drip_bytes_s: float = 0.0
    stall_after_bytes: int = 0
    """An answer with more content than this stops there, and the connection stays."""
    change_after_requests: int | None = None
    """From that request for content on, `changed` is there instead."""
    changed: bytes = b""
    redirects: dict[str, str] = field(default_factory=dict)
    """Path -> Location."""
    page_rows: int = 1000
    next_host: str = ""
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass
class Asked:
    """One request."""

    path: str
    fields: dict[str, str]


class HubServer:
    """Serves repositories: name -> path -> content. Everything is in memory."""

    def __init__(self, repos: Mapping[str, Mapping[str, bytes]], certificate: tuple[str, str] | None = None) -> None:
        self.repos = {repo: dict(files) for repo, files in repos.items()}
        self.lfs = True
        self.faults = Faults()
        self.requests: list[Asked] = []
        self.sizes: dict[str, int] = {}
        """Sizes that the interface tells, by path, where they are not the true ones."""
        self.hashes: dict[str, str] = {}
        self.served = 0
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
            self.scheme = "https"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.faults.stop.set()
        self._http.shutdown()
        self._http.server_close()

    def asked(self, part: str) -> list[Asked]:
        """Requests whose path has this part."""
        return [one for one in self.requests if part in one.path]

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                return

            def do_GET(self) -> None:
                with contextlib.suppress(ConnectionError):
                    _Exchange(server, self).answer()
                self.close_connection = True

        return Handler


class _Exchange:
    def __init__(self, server: HubServer, handler: http.server.BaseHTTPRequestHandler) -> None:
        self._server = server
        self._handler = handler
        self._faults = server.faults

    def answer(self) -> None:
        parts = urlsplit(self._handler.path)
        path = unquote(parts.path)
        self._server.requests.append(Asked(self._handler.path, {k.lower(): v for k, v in self._handler.headers.items()}))
        if path in self._faults.redirects:
            self._send(302, b"", {"Location": self._faults.redirects[path]})
            return
        words = path.strip("/").split("/")
        if words[:2] == ["api", "models"] and "/".join(words[2:4]) in self._server.repos:
            self._interface("/".join(words[2:4]), words[4:], parse_qs(parts.query))
        elif len(words) > 4 and words[2] == "resolve" and words[3] in (COMMIT, "main"):
            self._file("/".join(words[:2]), "/".join(words[4:]))
        elif words[0] == "plain":
            self._file("plain", "/".join(words[1:]))
        else:
            self._send(404, b"Entry not found", {})

    def _interface(self, repo: str, words: list[str], query: dict[str, list[str]]) -> None:
        if words[0] == "revision" and words[1] == "main":
            self._json({"sha": COMMIT, "id": repo})
        elif words == ["tree", COMMIT]:
            rows = [self._row(path, data) for path, data in self._server.repos[repo].items()]
            rows.insert(0, {"type": "directory", "path": "folder", "size": 0})
            start = int(query.get("cursor", ["0"])[0])
            end = start + self._faults.page_rows
            host = self._faults.next_host or self._server.url
            following = f'<{host}/api/models/{repo}/tree/{COMMIT}?recursive=true&cursor={end}>; rel="next"'
            self._json(rows[start:end], {"Link": following} if end < len(rows) else {})
        else:
            self._send(404, b'{"error": "no such thing"}', {})

    def _row(self, path: str, data: bytes) -> dict[str, object]:
        size = self._server.sizes.get(path, len(data))
        row: dict[str, object] = {"type": "file", "path": path, "size": size, "oid": "f" * 40}
        if self._server.lfs:
            oid = self._server.hashes.get(path) or hashlib.sha256(data).hexdigest()
            row["lfs"] = {"oid": oid, "size": size, "pointerSize": 135}
        return row

    def _json(self, value: object, fields: Mapping[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(fields or {})})

    def _send(self, status: int, body: bytes, fields: Mapping[str, str]) -> None:
        self._handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Connection": "close", **fields}.items():
            self._handler.send_header(name, value)
        self._handler.end_headers()
        self._handler.wfile.write(body)

    def _file(self, repo: str, path: str) -> None:
        faults, server = self._faults, self._server
        if faults.statuses:
            fields = {"Retry-After": faults.retry_after} if faults.retry_after else {}
            self._send(faults.statuses.pop(0), b"not now", fields)
            return
        data = server.repos.get(repo, {}).get(path)
        if data is None:
            self._send(404, b"Entry not found", {})
            return
        server.served += 1
        if faults.change_after_requests is not None and server.served > faults.change_after_requests:
            data = faults.changed
        self._content(data)

    def _content(self, data: bytes) -> None:
        faults = self._faults
        etag = '"' + hashlib.sha1(data).hexdigest() + '"'
        fields = {"Accept-Ranges": "bytes", "Connection": "close"}
        if faults.etags:
            fields["ETag"] = "W/" + etag if faults.weak_etags else etag
        match = _RANGE.fullmatch(self._handler.headers.get("Range", ""))
        expected = self._handler.headers.get("If-Range")
        if expected not in (None, etag) and not faults.ignore_if_range:
            match = None
        start, end = 0, len(data)
        if match is not None and not faults.ignore_ranges:
            start, end = int(match[1]), min(len(data), int(match[2] or len(data)) + 1)
            if start >= len(data):
                self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            total = len(data) + faults.claim_bytes
            start += faults.tell_start if start else 0
            fields["Content-Range"] = f"bytes {start}-{end - 1}/{total}"
        status = 206 if "Content-Range" in fields else 200
        body = data[start:end]
        if faults.wrong_at is not None and start <= faults.wrong_at < end:
            at = faults.wrong_at - start
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        if faults.content_encoding:
            fields["Content-Encoding"] = faults.content_encoding
        if faults.chunked:
            fields["Transfer-Encoding"] = "chunked"
        else:
            extra = faults.claim_bytes if status == 200 else 0
            fields["Content-Length"] = str(len(body) + extra)
        self._body(status, fields, body)

    def _body(self, status: int, fields: Mapping[str, str], body: bytes) -> None:
        faults, handler = self._faults, self._handler
        handler.send_response_only(status)
        handler.send_header("Date", _DATE)
        for name, value in fields.items():
            handler.send_header(name, value)
        handler.end_headers()
        if len(body) > 2048 and faults.drops > 0:
            faults.drops -= 1
            body = body[: faults.drop_after_bytes]
        if faults.drip_bytes_s and len(body) > 2048:
            for at in range(len(body)):
                handler.wfile.write(body[at : at + 1])
                if faults.stop.wait(1 / faults.drip_bytes_s):
                    return
            return
        if faults.stall_after_bytes and len(body) > faults.stall_after_bytes:
            handler.wfile.write(body[: faults.stall_after_bytes])
            faults.stop.wait()
            return
        if faults.chunked:
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        handler.wfile.write(body)


def main() -> None:
    """Serve the files of a folder as `bed/models` until the end of standard input; print the address first."""
    files = {path.name: path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir()) if path.is_file()}
    with HubServer({"bed/models": files}) as server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
