"""A request's body while it comes in: one writer, any number of readers.

All chunks are kept until the request is answered. So a transfer can begin before the photo is in,
and begin again towards another server if the first one fails.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator

from edgewise.errors import EdgewiseError


class BodyRefused(EdgewiseError):
    """A body is not read to its end; answered with the HTTP status `code`."""

    code = 400


class TooLarge(BodyRefused):
    """A body is over the node's limit."""

    code = 413

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is over the limit of {limit} bytes")


class TooSlow(BodyRefused):
    """A body stands still, or takes too long."""

    code = 408


class NoRoom(BodyRefused):
    """The bodies that are still coming in take all the memory that they may."""

    code = 503


class Upload:
    """The bytes of one body, in order.

    Parameters
    ----------
    expected:
        Content-Length; None if the client did not say.
    limit:
        Bytes at most.

    Raises TooLarge, as `feed` does beyond the limit.
    """

    def __init__(self, expected: int | None = None, limit: int = 2**31) -> None:
        if expected is not None and expected > limit:
            raise TooLarge(limit)
        self.expected = expected
        self.size = 0
        self.first_at: float | None = None
        """When the first chunk came …"""
        self.first_size = 0
        """… and its size. The rest took `last_at − first_at` s."""
        self.last_at: float | None = None
        self.done = False
        self._limit = limit
        self._checksum = 0
        self._chunks: list[bytes] = []
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    def feed(self, chunk: bytes, now: float) -> None:
        """Take in a chunk that arrived at `now`. Raises TooLarge, and so will every reader."""
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
        self._checksum = zlib.crc32(chunk, self._checksum)
        self._wake_readers()

    def finish(self, now: float) -> None:
        """The body is complete."""
        self.done = True
        self.last_at = now
        self._wake_readers()

    def fail(self, error: Exception) -> None:
        """The body broke off; readers raise `error`."""
        self._error = error
        self._wake_readers()

    @property
    def fingerprint(self) -> tuple[int, int] | None:
        """Tells the body from another one that was sent by mistake; None until it is in."""
        return (self.size, self._checksum) if self.done else None

    def _wake_readers(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def chunks(self) -> AsyncIterator[bytes]:
        """All chunks from the first one on, as they come."""
        i = 0
        while True:
            while i < len(self._chunks):
                yield self._chunks[i]
                i += 1
            if self._error is not None:
                raise self._error
            if self.done:
                return
            await self._changed.wait()

    async def whole(self) -> bytes:
        """Wait for the complete body."""
        while not self.done:
            if self._error is not None:
                raise self._error
            await self._changed.wait()
        return self.so_far()

    def so_far(self) -> bytes:
        """The part of the body that is in."""
        if len(self._chunks) == 1:
            return self._chunks[0]
        return b"".join(self._chunks)  # the chunks stay: `chunks` may be iterating over them

    @classmethod
    def of(cls, body: bytes, now: float) -> Upload:
        """An upload that is complete already."""
        upload = cls(len(body))
        upload.feed(body, now)
        upload.finish(now)
        return upload
