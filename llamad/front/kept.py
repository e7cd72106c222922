"""Request bodies that are kept so that the request can be sent again. Pure."""

from __future__ import annotations


class ReplayMemory:
    """Bytes of request bodies that are kept, all requests together."""

    __slots__ = ("held_bytes", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether no more bodies should be kept."""
        return self.held_bytes >= self.limit_bytes


class KeptBody:
    """The body of one request so far. What has not been sent yet is kept in any case (the client is told to
    pause), what has been sent only while there is memory."""

    __slots__ = ("_memory", "is_whole", "pieces", "size_bytes")

    def __init__(self, memory: ReplayMemory) -> None:
        self.pieces: list[bytes] = []
        self.size_bytes = 0
        self.is_whole = True  # every byte that has come is here
        self._memory = memory

    def add(self, piece: bytes) -> None:
        """Keep one more piece."""
        self.pieces.append(piece)
        self.size_bytes += len(piece)
        self._memory.held_bytes += len(piece)

    def add_sent(self, piece: bytes) -> None:
        """Keep a piece that goes out right now, or give up keeping where the memory is full."""
        if self.is_whole:
            if self._memory.is_full:
                self.give_up()
            else:
                self.add(piece)

    def replace(self, whole: bytes) -> None:
        """Keep this instead of all that came."""
        self._memory.held_bytes += len(whole) - self.size_bytes
        self.pieces = [whole]
        self.size_bytes = len(whole)

    def give_up(self) -> None:
        """Free the memory: the request cannot be sent again."""
        self.is_whole = False
        if self.pieces:
            self._memory.held_bytes -= self.size_bytes
            self.pieces = []
            self.size_bytes = 0
