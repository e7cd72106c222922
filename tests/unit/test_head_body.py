"""Bodies: every split of the input gives the same bytes, and broken framing is refused."""

from __future__ import annotations

import pytest

from llamad.front.body import ChunkedBody, LengthBody, UntilCloseBody, chunk, reader
from llamad.front.head import Framing, HeadError

PLAIN = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
EXTENDED = b'5;a="b c"\r\nhello\r\n0006;x;y=z\r\n world\r\n000\r\nX-T: 1\r\nY: 2\r\n\r\n'


def feed_in_pieces(body: ChunkedBody, data: bytes, size: int) -> bytes:
    decoded = b""
    for at in range(0, len(data), size):
        assert not body.done
        decoded += body.feed(data[at : at + size])
    return decoded


@pytest.mark.parametrize("size", range(1, 64))
@pytest.mark.parametrize("text", [PLAIN, EXTENDED])
def test_chunked_in_pieces(text: bytes, size: int) -> None:
    body = ChunkedBody()
    assert feed_in_pieces(body, text, size) == b"hello world"
    assert body.done and body.rest == b"" and body.end()


def test_chunked_gives_back_what_follows() -> None:
    body = ChunkedBody()
    assert body.feed(PLAIN + b"GET / HTTP") == b"hello world"
    assert body.rest == b"GET / HTTP"


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize(
    "text",
    [
        b"\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhelloo\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello\r0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"-1\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b" 5\r\nhello\r\n",
        b"g\r\n",
        b"5 \r\nhello\r\n",
        b"5;\r\nhello\r\n",
        b"5; a\r\nhello\r\n",
        b'5;a="\r\nhello\r\n',
        b"1_0\r\n",
        b"5;\x00\r\nhello\r\n",
        b"5;a\rb\r\nhello\r\n",
        b"5 5\r\nhello\r\n",
        b"ffffffffffffffff\r\n",
        b"5;" + b"x" * 600 + b"\r\nhello\r\n",
        b"0\r\nContent-Length : 5\r\n\r\n",
        b"0\r\n folded\r\n\r\n",
        b"0\r\nA: \x01\r\n\r\n",
        b"0\r\nA: 1\n\r\n",
        b"0\r\n" + b"A: 1\r\n" * 40 + b"\r\n",
        b"0\r\nA: " + b"x" * 9000 + b"\r\n\r\n",
    ],
)
def test_broken_chunks_are_refused(text: bytes, size: int) -> None:
    with pytest.raises(HeadError) as caught:
        feed_in_pieces(ChunkedBody(), text, size)
    assert caught.value.status == 400


def test_an_unfinished_chunked_body_knows_it() -> None:
    body = ChunkedBody()
    body.feed(b"5\r\nhel")
    assert not body.end()


def test_length() -> None:
    body = LengthBody(5)
    assert body.feed(b"he") == b"he"
    assert not body.done and not body.end()
    assert body.feed(b"lloGET") == b"llo"
    assert body.done and body.rest == b"GET"


def test_until_close() -> None:
    body = UntilCloseBody()
    assert body.feed(b"abc") == b"abc"
    assert not body.done
    assert body.end() and body.done


def test_readers() -> None:
    assert reader(Framing.NONE, -1) is None
    assert reader(Framing.LENGTH, 0) is None
    assert isinstance(reader(Framing.LENGTH, 1), LengthBody)
    assert isinstance(reader(Framing.CHUNKED, -1), ChunkedBody)
    assert isinstance(reader(Framing.UNTIL_CLOSE, -1), UntilCloseBody)


def test_chunk() -> None:
    body = ChunkedBody()
    assert body.feed(chunk(b"x" * 300)) == b"x" * 300
