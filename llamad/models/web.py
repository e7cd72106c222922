"""Requests to servers that may do anything: bounded in time, size and redirects, and without a secret for others.

Proxies are those of the environment (http_proxy, https_proxy, no_proxy), certificates those of the system.
"""

from __future__ import annotations

import http.client
import ipaddress
import ssl
import string
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from llamad import __version__
from llamad.errors import AccessError, BusyError, LlamadError, ModelMissingError, UsageError
from llamad.frozen import dataclass
from llamad.models.token import Token
from llamad.text import shown

TIMEOUT_S = 30.0
BODY_S = 120.0
REDIRECTS_MOST = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_FOR_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT_S = 300.0
_READ_BYTES = 1 << 20


class Interrupted(Exception):
    """What a second try may heal: no connection, no answer, a short answer. `after_s`: as the server asks."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        self.why = why
        self.after_s = after_s
        super().__init__(why)

    def final(self, what: str) -> BusyError:
        """The error where no try healed it."""
        return BusyError(
            what, why=self.why, fix="check the network and the proxy, and run the same command again"
        )


class Answer(Protocol):
    """An answer's head, and its body as it comes."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Message: ...

    def read(self, most_bytes: int) -> bytes:
        """What has come, at most so many bytes; empty at the end. Raises Interrupted."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


@dataclass(frozen=True)
class _Answer:
    raw: http.client.HTTPResponse
    host: str

    @property
    def status(self) -> int:
        return self.raw.status

    @property
    def headers(self) -> Message:
        return self.raw.headers

    def read(self, most_bytes: int) -> bytes:
        try:
            return self.raw.read1(min(most_bytes, _READ_BYTES))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Interrupted(f"{self.host}: {_words(error)}") from error

    def close(self) -> None:
        with suppress(OSError, http.client.HTTPException, ValueError):
            self.raw.close()


class Web:
    """Asks servers. `token` is sent to the host of `home` alone, over https or to this machine."""

    def __init__(self, home: str, token: Token | None = None, *, timeout_s: float = TIMEOUT_S) -> None:
        self._home = urlsplit(home)
        self._token = token
        self._timeout_s = timeout_s
        self._openers: dict[str, urllib.request.OpenerDirector] = {}

    def get(self, url: str, fields: Mapping[str, str] | None = None) -> Answer:
        """The answer, of whatever status, after at most ten redirects. The caller closes it.

        Raises Interrupted for what a second try may heal, AccessError for a certificate that is not trusted or a
        redirect from https to http, UsageError for what is no address.
        """
        seen: set[str] = set()
        for _ in range(REDIRECTS_MOST + 1):
            answer = self._ask(url, fields or {})
            if answer.status not in _REDIRECTS:
                return answer
            target = answer.headers.get("Location", "")
            answer.close()
            seen.add(url)
            url = self._followed(url, target)
            if url in seen:
                raise AccessError(f"{host_of(url)} redirects in a circle", fix="correct the address")
        why = f"the last to {host_of(url)}"
        raise AccessError(f"more than {REDIRECTS_MOST} redirects", why=why, fix="correct the address")

    def _followed(self, url: str, target: str) -> str:
        before = urlsplit(url)
        try:
            new = urljoin(url, quote(target, safe=string.punctuation))
            after, _ = urlsplit(new), urlsplit(new).port
        except ValueError:
            after = SplitResult("", "", "", "", "")
        if not target or after.scheme not in ("http", "https") or not after.hostname or "@" in after.netloc:
            raise AccessError(
                f"{before.hostname} redirects to what is no address",
                why=shown(target),
                fix="correct the address",
            )
        if before.scheme == "https" and after.scheme == "http":
            why = f"{before.hostname} redirects from https to http: {after.hostname}"
            raise AccessError(
                "refused to go on without encryption", why=why, fix="tell who runs that server"
            )
        return new

    def _ask(self, url: str, fields: Mapping[str, str]) -> Answer:
        host = host_of(url)
        try:
            request = urllib.request.Request(url, headers={"User-Agent": f"llamad/{__version__}", **fields})
            request.add_header("Accept-Encoding", "identity")
            if self._token is not None and self._is_home(urlsplit(url)):
                request.add_unredirected_header("Authorization", f"Bearer {self._token.text}")
            raw: Any = self._opener(request.type).open(request, timeout=self._timeout_s)
        except urllib.error.URLError as error:
            raise _not_opened(host, error.reason) from error
        except (OSError, http.client.HTTPException) as error:
            raise _not_opened(host, error) from error
        except ValueError as error:
            raise UsageError(f"this is no address: {shown(host)}", why=shown(str(error), 200)) from None
        return _Answer(raw, host)

    def _is_home(self, place: SplitResult) -> bool:
        home = self._home
        if (place.scheme, place.hostname, place.port) != (home.scheme, home.hostname, home.port):
            return False
        host = place.hostname or ""
        return place.scheme == "https" or (is_this_machine(host) and not _has_proxy(place.netloc))

    def _opener(self, scheme: str) -> urllib.request.OpenerDirector:
        """No redirects, no errors raised for a status, no other schemes: only what is needed here."""
        if scheme not in self._openers:
            director = urllib.request.OpenerDirector()
            director.add_handler(urllib.request.ProxyHandler())
            director.add_handler(urllib.request.HTTPHandler())
            if scheme == "https":  # reading the certificates takes a moment
                director.add_handler(urllib.request.HTTPSHandler(context=ssl.create_default_context()))
            director.add_handler(urllib.request.UnknownHandler())
            self._openers[scheme] = director
        return self._openers[scheme]


def body_of(answer: Answer, most_bytes: int, most_s: float = BODY_S) -> bytes:
    """A whole short body. Raises Interrupted where it ends early or takes too long, BusyError where it is longer."""
    end_s = time.monotonic() + most_s
    with_length = answer.headers.get("Content-Length", "")
    parts, size = [], 0
    while part := answer.read(_READ_BYTES):
        parts.append(part)
        size += len(part)
        if size > most_bytes:
            raise BusyError("the server's answer is too long", why=f"more than {most_bytes} bytes")
        if time.monotonic() > end_s:
            raise Interrupted("the answer does not end")
    if with_length.isdecimal() and size != int(with_length):
        raise Interrupted("the answer ended early")
    return b"".join(parts)


def refusal(answer: Answer, url: str, *, with_token: bool) -> LlamadError | Interrupted | None:
    """What a status means that is no success; None for one that is."""
    status, host = answer.status, host_of(url)
    if status < 300 or status == 416:
        return None
    if status in (401, 403):
        why = (
            "the token does not open it"
            if with_token
            else "it is private, gated, or not there; no token was given"
        )
        fix = "accept its terms on its page and give a token: --token-file FILE"
        return AccessError(f"{host} does not let us have it (status {status})", why=why, fix=fix)
    if status in (404, 410):
        why = shown(path_of(url), 200)
        return ModelMissingError(
            f"{host} does not have it (status {status})", why=why, fix="correct the name"
        )
    if status in _FOR_LATER:
        return Interrupted(f"{host} answers with status {status}", _retry_after_s(answer))
    return BusyError(
        f"{host} answers with status {status}", why=shown(path_of(url), 200), fix="try again later"
    )


def host_of(url: str) -> str:
    """The host alone: further parts of signed addresses are nobody's business."""
    return shown(urlsplit(url).hostname or url, 100)


def path_of(url: str) -> str:
    """Without the query, which may hold a signature."""
    return urlsplit(url).path


def is_this_machine(host: str) -> bool:
    """Whether nothing that is sent there leaves this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _has_proxy(netloc: str) -> bool:
    """Whether a request without encryption would go through somebody else's hands."""
    return "http" in urllib.request.getproxies() and not urllib.request.proxy_bypass(netloc)


def _retry_after_s(answer: Answer) -> float:
    text = answer.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return min(float(text[:6]), _LONGEST_WAIT_S)
    with suppress(ValueError, TypeError, OverflowError):
        now = parsedate_to_datetime(answer.headers.get("Date", ""))
        return min(max(0.0, (parsedate_to_datetime(text) - now).total_seconds()), _LONGEST_WAIT_S)
    return 0.0


def _not_opened(host: str, error: object) -> LlamadError | Interrupted:
    if isinstance(error, ssl.SSLCertVerificationError):
        why = shown(error.verify_message or str(error), 200)
        fix = "check the clock and ca-certificates; a proxy that reads along needs its own certificate there"
        return AccessError(f"the certificate of {host} is not trusted", why=why, fix=fix)
    return Interrupted(f"{host}: {_words(error)}")


def _words(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended early"
    return shown(str(getattr(error, "strerror", None) or error) or type(error).__name__, 200)
