"""A request's body while it comes in: one writer, any number of readers.

Whatever has arrived is kept until the request is answered, so that a transfer can begin before the
photo is in, and begin again towards another server when the first one fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from edgewise.errors import EdgewiseError


class TooLarge(EdgewiseError):
    """A body is over the node's limit; answered with 413."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is over the limit of {limit} bytes")


class Upload:
    """The bytes of one body, in order.

    Parameters
    ----------
    expected:
        Content-Length, None if the client did not say.
    limit:
        Bytes at most; `feed` raises TooLarge beyond.
    """

    def __init__(self, expected: int | None = None, limit: int = 2**31) -> None:
        if expected is not None and expected > limit:
            raise TooLarge(limit)
        self.expected = expected
        self.size = 0
        self.first_at: float | None = None
        """When the first bytes came …"""
        self.first_size = 0
        """… and how many they were: what came later took `last_at − first_at` s."""
        self.last_at: float | None = None
        self.done = False
        self._limit = limit
        self._chunks: list[bytes] = []
        self._error: Exception | None = None
        self._more = asyncio.Event()

    def feed(self, chunk: bytes, now: float) -> None:
        """Take in what arrived at `now`. Raises TooLarge, and so will every reader."""
        if not chunk:
            return
        if self.first_at is None:
            self.first_at, self.first_size = now, len(chunk)
        self.last_at = now
        self.size += len(chunk)
        if self.size > self._limit:
            error = TooLarge(self._limit)
            self.fail(error)
            raise error
        self._chunks.append(chunk)
        self._wake()

    def finish(self, now: float) -> None:
        """No more will come."""
        self.done = True
        self.last_at = now
        self._wake()

    def fail(self, error: Exception) -> None:
        """The body broke off: readers raise `error`."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        self._more.set()
        self._more = asyncio.Event()

    async def chunks(self) -> AsyncIterator[bytes]:
        """From the first byte on, as they come."""
        i = 0
        while True:
            while i < len(self._chunks):
                yield self._chunks[i]
                i += 1
            if self._error is not None:
                raise self._error
            if self.done:
                return
            await self._more.wait()

    async def whole(self) -> bytes:
        """All of it, once it is in."""
        while not self.done:
            if self._error is not None:
                raise self._error
            await self._more.wait()
        return self.so_far()

    def so_far(self) -> bytes:
        """What is in so far."""
        if len(self._chunks) == 1:
            return self._chunks[0]
        return b"".join(self._chunks)  # the chunks stay: a reader may stand among them

    @classmethod
    def of(cls, body: bytes, now: float) -> Upload:
        """One that is in already."""
        upload = cls(len(body))
        upload.feed(body, now)
        upload.finish(now)
        return upload
