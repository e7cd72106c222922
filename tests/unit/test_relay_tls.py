"""HTTPS: the same relay behind a certificate, which can be another one from the next connection on."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from pathlib import Path

import pytest

from llamad.clock import SystemClock
from llamad.errors import AccessError, ConfigError
from llamad.front.certificate import load_certificate
from llamad.front.keys import KeySet
from llamad.front.settings import Outcome
from llamad.service.checks import check_name
from tests.support.certificates import make_certificate
from tests.support.fake_upstream import Call
from tests.support.front import Bench, running
from tests.support.http import Client, scenario


def behind_tls(bench: Bench, files: tuple[Path, Path]) -> None:
    bench.front.apply(bench.settings, KeySet().with_certificate(load_certificate(*files, None)))


async def opened(bench: Bench, trusted: Path) -> Client:
    context = ssl.create_default_context(cafile=str(trusted))
    assert isinstance(bench.address, tuple)
    return Client(*await asyncio.open_connection(*bench.address, ssl=context, server_hostname="localhost"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@scenario
async def test_requests_and_streams(files: tuple[Path, Path]) -> None:
    async def handler(call: Call) -> None:
        await call.begin_stream()
        for number in range(100):
            await call.event(f"{number}")
        await call.end()

    async with running(handler=handler) as bench:
        behind_tls(bench, files)
        async with await opened(bench, files[0]) as client:
            for _ in range(2):  # on one connection
                answer = await client.ask(body=b"x" * 100_000)
                assert answer.status == 200 and answer.clean and len(answer.events) == 100
        assert len((await bench.upstream.call(0)).body) == 100_000


@scenario
async def test_plain_http_gets_nothing_and_a_unix_socket_stays_plain(files: tuple[Path, Path]) -> None:
    async with running() as bench:
        behind_tls(bench, files)
        async with await bench.client() as plain:
            plain.request()
            assert not (await plain.reader.read()).startswith(b"HTTP")
        async with await opened(bench, files[0]) as client:
            assert (await client.ask()).status == 200
    async with running("unix") as bench:
        behind_tls(bench, files)
        assert (await bench.ask()).status == 200


@scenario
async def test_another_certificate_is_for_the_next_connections(files: tuple[Path, Path], tmp_path: Path) -> None:
    second = make_certificate(tmp_path, "second")
    async with running() as bench:
        behind_tls(bench, files)
        async with await opened(bench, files[0]) as before:
            assert (await before.ask()).status == 200
            behind_tls(bench, second)
            assert (await before.ask()).status == 200
            async with await opened(bench, second[0]) as after:
                assert (await after.ask()).status == 200
            with pytest.raises(ssl.SSLCertVerificationError):
                await opened(bench, files[0])


@scenario
async def test_a_client_that_goes_frees_llama_server(
    files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(call: Call) -> None:
        await call.begin_stream()
        await call.event("1")
        await asyncio.Event().wait()

    async with running(handler=handler) as bench:
        behind_tls(bench, files)
        async with await opened(bench, files[0]) as client:
            client.request()
            call = await bench.upstream.call(0)
            await client.head()
            client.writer.close()
            await bench.until(lambda: [one.outcome for one in bench.observer.records] == [Outcome.CLIENT_GONE])
            await bench.upstream.signal.until(lambda: call.cancelled)
    assert caplog.text == "", "asyncio warns of who wants half of a TLS connection"


@scenario
async def test_an_early_answer_arrives_while_the_body_is_still_sent(files: tuple[Path, Path]) -> None:
    async with running(body_bytes=1000) as bench:
        behind_tls(bench, files)
        async with await opened(bench, files[0]) as client:
            client.request(body=b"x" * 50_000)
            answer = await client.answer()
            assert (answer.status, answer.code) == (413, "body_too_large")


@scenario
async def test_a_slow_client_gets_all_of_the_last_answer(files: tuple[Path, Path]) -> None:
    async def handler(call: Call) -> None:
        await call.reply(b"x" * 100_000)

    async with running(handler=handler) as bench:
        behind_tls(bench, files)
        bench.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # those that it accepts have it too

        def ask() -> ssl.SSLSocket:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(bench.address)
            client = ssl.create_default_context(cafile=str(files[0])).wrap_socket(sock, server_hostname="localhost")
            client.sendall(b"GET /props HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return client

        def take_all(client: ssl.SSLSocket) -> bytes:
            with client:
                return b"".join(iter(lambda: client.recv(65536), b""))

        client = await asyncio.to_thread(ask)
        await bench.until(lambda: len(bench.observer.records) == 1)
        for _ in range(5):  # longer than one is waited for that has everything
            await asyncio.sleep(0.5)
            await bench.pass_s(1.0)
        assert len((await asyncio.to_thread(take_all, client)).partition(b"\r\n\r\n")[2]) == 100_000


@scenario
async def test_who_does_not_finish_the_handshake_does_not_delay_the_end(files: tuple[Path, Path]) -> None:
    async with running(clock=SystemClock()) as bench:
        behind_tls(bench, files)
        async with await bench.client() as silent, await opened(bench, files[0]) as client:
            assert (await client.ask()).status == 200
            began_s = time.monotonic()
            await bench.front.close(1.0)
            assert time.monotonic() - began_s < 4.0
            assert await silent.reader.read() == b""


def test_what_is_no_certificate_is_told(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    _, other = make_certificate(tmp_path, "other")
    _, locked = make_certificate(tmp_path, "locked", password="secret")
    garbage = tmp_path / "garbage"
    garbage.write_text("no PEM")
    with pytest.raises(AccessError, match=r"cannot read .*missing"):
        load_certificate(certificate, tmp_path / "missing", None)
    for wrong, words in ((other, "is not the key of"), (locked, "has a password"), (garbage, "no certificate")):
        with pytest.raises(ConfigError, match=words):
            load_certificate(certificate, wrong, None)
    with pytest.raises(ConfigError, match="no certificate"):
        load_certificate(certificate, None, None)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AccessError, match="pipe: no regular file"):  # and nobody waits for what never comes
        load_certificate(certificate, tmp_path / "pipe", None)
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    assert load_certificate(both, None, None) != load_certificate(certificate, key, None)
    assert load_certificate(certificate, key, None) == load_certificate(certificate, key, None)


def test_a_check_tells_of_a_key_that_is_not_the_certificates(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    _, other = make_certificate(tmp_path, "other")
    etc = tmp_path / "etc"
    etc.mkdir()

    def told(tls_key: str) -> list[str]:
        text = f'model = "{tmp_path}/m.gguf"\ntls_cert = "{certificate}"\ntls_key = "{tls_key}"\n'
        (etc / "m.toml").write_text(text)
        return [error.what for error in check_name("m", etc) if error.what.startswith("tls_cert: ")]

    (found,) = [one for one in told(str(other)) if "is not the key of" in one]
    assert str(other) in found
    assert [one for one in told(str(key)) if "is not the key of" in one] == []


def test_a_check_tells_of_a_pipe_instead_of_keys(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    os.mkfifo(tmp_path / "keys")
    (etc / "m.toml").write_text(f'model = "{tmp_path}/m.gguf"\napi_keys_file = "{tmp_path}/keys"\n')
    (found,) = [error for error in check_name("m", etc) if error.what.startswith("cannot read the keys")]
    assert (found.why, found.fix) == ("no regular file", "put a file there, with one key a line")
