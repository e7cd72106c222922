"""Where a llama-server answers: a unix socket of ours, or the address of the clients where it owns that. Pure."""

from __future__ import annotations

from pathlib import Path


class TcpEndpoint(str):
    """Stands where the path of a unix socket does; as text `HOST:PORT`. A host of zeros, all addresses, can be
    connected to as it is: Linux takes it for the loopback. `key_file`: the API keys that llama-server asks for, None
    where it asks for none; `key` is one of them, llamad's own.
    """

    __slots__ = ("host", "key", "key_file", "port")

    def __new__(cls, host: str, port: int, key: str = "", key_file: Path | None = None) -> TcpEndpoint:
        made = super().__new__(cls, f"{host}:{port}")
        made.host, made.port, made.key, made.key_file = host, port, key, key_file
        return made

    host: str
    port: int
    key: str
    key_file: Path | None
