"""How connections read: through one buffer that all of them share."""

from __future__ import annotations

import asyncio

READ_BYTES = 128 * 1024
_BUFFER = memoryview(bytearray(READ_BYTES))


class Reader(asyncio.BufferedProtocol):
    """A protocol whose `data_received` gets what has come as bytes of their own. On the loop one connection reads at a
    time; a buffer for each read, as asyncio makes them, is a quarter of a MiB taken from the heap and given back.
    """

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """For asyncio."""
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """For asyncio."""
        self.data_received(_BUFFER[:nbytes].tobytes())

    def data_received(self, data: bytes) -> None:
        """Bytes have come, at least one."""
        raise NotImplementedError
