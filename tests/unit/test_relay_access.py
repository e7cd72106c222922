"""Keys, Host and Origin, and the paths that are not for clients."""

from __future__ import annotations

import pytest

from llamad.errors import ConfigError
from llamad.front.access import HostCheck, is_for_admin
from llamad.front.head import Field, RequestHead, parse_request
from llamad.front.keys import KeySet
from tests.support.front import running
from tests.support.http import scenario


def head(first: bytes = b"GET / HTTP/1.1", *fields: bytes, host: bytes = b"localhost") -> RequestHead:
    return parse_request(b"\r\n".join((first, b"Host: " + host, *fields)) + b"\r\n\r\n")


def fields(**values: bytes) -> list[Field]:
    names = {name: name.replace("_", "-").encode() for name in values}
    return [Field(names[name], names[name], value) for name, value in values.items()]


def test_no_keys_ask_for_none() -> None:
    assert not KeySet()
    assert KeySet().allows([])


def test_each_way_to_send_a_key() -> None:
    keys = KeySet.from_text("# ours\n\nalpha\n  beta  \n")
    assert len(keys) == 2 and keys
    assert keys.allows(fields(authorization=b"Bearer alpha"))
    assert keys.allows(fields(authorization=b"bearer  beta"))
    assert keys.allows(fields(x_api_key=b"beta"))
    assert keys.allows(fields(api_key=b"alpha"))
    assert keys.allows(fields(authorization=b"Bearer wrong", x_api_key=b"alpha"))


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"authorization": b"alpha"},
        {"authorization": b"Basic alpha"},
        {"authorization": b"Bearer alph"},
        {"authorization": b"Bearer alphaa"},
        {"authorization": b"Bearer "},
        {"authorization": b"Bearer # ours"},
        {"authorization": b"Bearer \xe9"},
        {"x_api_key": b""},
        {"cookie": b"alpha"},
    ],
)
def test_wrong_keys(sent: dict[str, bytes]) -> None:
    assert not KeySet.from_text("# ours\nalpha\n").allows(fields(**sent))


def test_keys_are_never_shown() -> None:
    keys = KeySet.from_text("sesame\n")
    assert "sesame" not in repr(keys) + str(keys)
    with pytest.raises(ConfigError) as caught:
        KeySet.from_text("good\nsesame open\n", "/etc/llamad/keys")
    assert "sesame" not in str(caught.value)
    assert str(caught.value).startswith("/etc/llamad/keys:2:1: ")


@pytest.mark.parametrize(
    "host",
    [b"localhost", b"LOCALHOST:80", b"127.0.0.1:8081", b"127.9.9.9", b"[::1]:8081", b"[::1]", b"gpu.lan:1"],
)
def test_hosts_that_pass(host: bytes) -> None:
    check = HostCheck(["gpu.lan"])
    assert check.problem(head(host=host)) is None
    assert check.problem(head(host=host)) is None


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"localhost.evil.example",
        b"0.0.0.0",
        b"192.168.1.5",
        b"",
        b"[::]",
        b"127.0.0.1.nip.io",
    ],
)
def test_hosts_that_do_not(host: bytes) -> None:
    check = HostCheck(["gpu.lan"])
    assert check.problem(head()) is None
    assert "allowed_hosts" in (check.problem(head(host=host)) or "")


@pytest.mark.parametrize(
    ("origin", "passes"),
    [
        (b"http://localhost:3000", True),
        (b"https://127.0.0.1", True),
        (b"http://[::1]:5", True),
        (b"https://GPU.lan", True),
        (b"https://evil.example", False),
        (b"null", False),
        (b"", False),
        (b"file://", False),
        (b"http://localhost:3000/path", False),
        (b"http://localhost@evil.example", False),
        (b"http://evil.example http://localhost", False),
    ],
)
def test_origins(origin: bytes, passes: bool) -> None:
    problem = HostCheck(["gpu.lan"]).problem(head(b"GET / HTTP/1.1", b"Origin: " + origin))
    assert (problem is None) is passes


def test_http_1_0_without_a_host_passes() -> None:
    check = HostCheck()
    assert check.problem(parse_request(b"GET /health HTTP/1.0\r\n\r\n")) is None
    assert check.problem(head(host=b"")) is not None


@pytest.mark.parametrize(
    ("line", "admin"),
    [
        (b"POST /slots/0?action=erase HTTP/1.1", True),
        (b"POST /slots HTTP/1.1", True),
        (b"POST //slots HTTP/1.1", True),
        (b"POST /%73lots/0 HTTP/1.1", True),
        (b"POST /slots%2f0 HTTP/1.1", True),
        (b"PUT /props HTTP/1.1", True),
        (b"DELETE /lora-adapters HTTP/1.1", True),
        (b"POST /props/ HTTP/1.1", True),
        (b"GET /slots HTTP/1.1", False),
        (b"HEAD /props HTTP/1.1", False),
        (b"POST /v1/slots HTTP/1.1", False),
        (b"POST /slotsx HTTP/1.1", False),
        (b"POST / HTTP/1.1", False),
    ],
)
def test_admin_only(line: bytes, admin: bool) -> None:
    assert is_for_admin(head(line)) is admin


@scenario
async def test_what_a_long_head_asked_for_is_not_remembered() -> None:
    async with running() as bench:
        for number in range(3):
            assert (await bench.ask(Authorization=f"Bearer {number}{'x' * 10_000}")).status == 200
        assert not bench.front._shared.let_in
        assert (await bench.ask(Authorization="Bearer x")).status == 200
        assert len(bench.front._shared.let_in) == 1
