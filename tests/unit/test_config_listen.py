"""Addresses: what they mean, which collide, which reach the network."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamad.config.listen import Listen, next_port, parse_listen


@pytest.mark.parametrize(
    ("text", "listen", "local"),
    [
        ("127.0.0.1:8081", Listen("tcp", "127.0.0.1", 8081), True),
        ("127.8.9.1:1", Listen("tcp", "127.8.9.1", 1), True),
        ("localhost:8081", Listen("tcp", "127.0.0.1", 8081), True),
        ("[::1]:8081", Listen("tcp", "::1", 8081), True),
        ("[0:0:0:0:0:0:0:1]:65535", Listen("tcp", "::1", 65535), True),
        ("0.0.0.0:80", Listen("tcp", "0.0.0.0", 80), False),
        ("[::]:80", Listen("tcp", "::", 80), False),
        ("192.168.1.5:8081", Listen("tcp", "192.168.1.5", 8081), False),
        ("[fe80::1%eth0]:8081", Listen("tcp", "fe80::1%eth0", 8081), False),
        ("unix:phi4.sock", Listen("unix", path="phi4.sock"), True),
    ],
)
def test_addresses(text: str, listen: Listen, local: bool) -> None:
    assert parse_listen(text) == listen
    assert listen.is_local is local
    assert parse_listen(str(listen)) == listen


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("8081", 'write "127.0.0.1:8081"'),
        (":8081", 'write "127.0.0.1:8081", or "0.0.0.0:8081" for all'),
        ("*:8081", '"0.0.0.0:8081" for all'),
        ("127.0.0.1", "not an address"),
        ("127.0.0.1:", "not a port"),
        ("127.0.0.1:0", "not a port"),
        ("127.0.0.1:65536", "not a port"),
        ("127.0.0.1:٣", "not a port"),
        ("127.0.0.1:0000081234", "not a port"),
        ("[fe80::1%eth0\n    server x]:80", "no interface"),
        ("127.0.0.1:" + "9" * 5000, "not a port"),
        ("example.org:80", "not an IP address"),
        ("127.0.0.256:80", "not an IP address"),
        ("::1:8081", "not an address"),
        ("[127.0.0.1]:80", 'write "127.0.0.1:80"'),
        ("http://127.0.0.1:80", "not an address"),
        ("unix:/run/x.sock", 'write "unix:x.sock"'),
        ("unix:x", "not a socket name"),
        ("unix:.sock", "not a socket name"),
        ("unix:" + "x" * 61 + ".sock", "not a socket name"),
        ("", "not an address"),
    ],
)
def test_what_is_no_address(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="; write") as caught:
        parse_listen(text)
    assert words in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        listen = parse_listen(text)
    except ValueError:
        return
    assert parse_listen(str(listen)) == listen


@pytest.mark.parametrize(
    ("one", "other", "collide"),
    [
        ("127.0.0.1:1", "127.0.0.1:1", True),
        ("127.0.0.1:1", "127.0.0.1:2", False),
        ("127.0.0.1:1", "127.0.0.2:1", False),
        ("0.0.0.0:1", "127.0.0.2:1", True),
        ("[::]:1", "[::1]:1", True),
        ("[::]:1", "127.0.0.1:1", False),
        ("unix:a.sock", "unix:a.sock", True),
        ("unix:a.sock", "unix:b.sock", False),
        ("unix:a.sock", "127.0.0.1:1", False),
    ],
)
def test_collisions(one: str, other: str, collide: bool) -> None:
    assert parse_listen(one).collides(parse_listen(other)) is collide
    assert parse_listen(other).collides(parse_listen(one)) is collide


def test_the_next_port_is_the_lowest_that_is_free() -> None:
    used = [parse_listen(text) for text in ("127.0.0.1:8081", "0.0.0.0:8082", "[::1]:8083", "unix:a.sock")]
    assert next_port([]) == 8081
    assert next_port(used) == 8083
    assert next_port(used, first=9000) == 9000
    with pytest.raises(ValueError, match="no free port"):
        next_port([Listen("tcp", "0.0.0.0", 65535)], first=65535)
