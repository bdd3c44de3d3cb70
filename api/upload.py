"""Uploads: a multipart body read part by part, its files streamed into the blob store, never whole in memory.

A file is written by short calls to the blob lane, a piece each: however many clients are slow, none of them holds a thread.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import xxhash
from quart import request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from api.errors import ApiError
from rag.errors import Overloaded, TooLarge
from rag.ports import BlobStore, BlobWriter
from rag.threads import Lane

WRITTEN_BYTES = 1 << 20  # at once
DECODED_BYTES = 1 << 18  # at once, so that one large message does not hold up the loop
HEADER_BYTES = 1 << 20
FIELD_BYTES = 1 << 20
PARTS = 10_000
KEEP_ALIVE_SECONDS = 15.0
MALFORMED = "the multipart body is malformed"


@dataclass(frozen=True, slots=True)
class Part:
    """The beginning of a part; `filename` is None for a field."""

    name: str
    filename: str | None


class MultipartReader:
    """Reads the request's multipart body in order. Raises `ApiError` for a broken one, and what the body raises."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        boundary = request.mimetype_params.get("boundary", "") if request.mimetype == "multipart/form-data" else ""
        self._decoder = MultipartDecoder(boundary.encode("latin-1", "replace"), HEADER_BYTES, max_parts=PARTS)
        self._is_multipart = bool(boundary)
        self._body = body
        self._unread = b""
        self._in_part = False

    async def next_part(self) -> Part | None:
        """The next part, after what is left of this one; None at the end."""
        if not self._is_multipart:
            return None
        async for _ in self.content():
            pass
        while True:
            event = await self._event()
            if isinstance(event, Epilogue):
                return None
            if isinstance(event, (Field, File)):
                self._in_part = True
                return Part(event.name or "", event.filename if isinstance(event, File) else None)

    async def content(self) -> AsyncIterator[bytes]:
        """What is left of the part that was begun, in pieces."""
        while self._in_part:
            event = cast(Data, await self._event())
            self._in_part = event.more_data
            if event.data:
                yield event.data

    async def text(self) -> str:
        """The part as text. Raises `TooLarge`."""
        value = bytearray()
        async for piece in self.content():
            value += piece
            if len(value) > FIELD_BYTES:
                raise TooLarge(f"a form field exceeds {FIELD_BYTES} bytes")
        return value.decode("utf-8", "replace")

    async def _event(self) -> object:
        try:
            while isinstance(event := self._decoder.next_event(), NeedData):
                self._decoder.receive_data(await self._received())
        except RequestEntityTooLarge:
            raise TooLarge("the multipart body has too many or too long part headers") from None
        except ValueError:
            raise ApiError(101, MALFORMED) from None
        return event

    async def _received(self) -> bytes | None:
        if not self._unread:
            try:
                self._unread = await anext(self._body)
            except StopAsyncIteration:
                return None
        piece, self._unread = self._unread[:DECODED_BYTES], self._unread[DECODED_BYTES:]
        return piece


@dataclass(frozen=True, slots=True)
class Stored:
    """A file that is in the blob store. `digest` is its xxh128 in hex."""

    size: int
    digest: str


class Uploader:
    """Streams files into the blob store. One a server."""

    def __init__(self, blobs: BlobStore, lane: Lane, limit_bytes: int) -> None:
        self._blobs = blobs
        self._lane = lane
        self._limit_bytes = limit_bytes

    async def store(self, key: str, content: AsyncIterator[bytes], keep_alive: Callable[[], Awaitable[None]]) -> Stored:
        """Put the content under the key: all of it, or nothing. `keep_alive` is awaited now and then while it comes in.

        Raises `TooLarge`, `Overloaded` when the blob lane is full, and what the content and the store raise.
        """
        tally = _Tally(self._limit_bytes)
        waiting = bytearray()
        writer = self._blobs.writer(key)
        kept_at = time.monotonic()
        try:
            async for piece in content:
                waiting += tally.add(piece)
                if len(waiting) >= WRITTEN_BYTES:
                    await self._lane.run(writer.write, bytes(waiting))
                    waiting.clear()
                if time.monotonic() - kept_at > KEEP_ALIVE_SECONDS:
                    await keep_alive()
                    kept_at = time.monotonic()
            await self._lane.run(_finish, writer, bytes(waiting))
        except BaseException:
            with suppress(Overloaded):  # then the half file goes with its key, as that of a killed server does
                await asyncio.shield(self._lane.run(writer.abort))
            raise
        return tally.stored()


def _finish(writer: BlobWriter, rest: bytes) -> None:
    """In one crossing to the lane, for most files are small."""
    writer.write(rest)
    writer.commit()


class _Tally:
    """Size and digest of the pieces so far."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._size = 0
        self._digest = xxhash.xxh128()

    def add(self, piece: bytes) -> bytes:
        """The piece, counted. Raises `TooLarge`."""
        self._size += len(piece)
        if self._size > self._limit_bytes:
            raise TooLarge(f"the file exceeds {self._limit_bytes} bytes")
        self._digest.update(piece)
        return piece

    def stored(self) -> Stored:
        """What was counted."""
        return Stored(self._size, self._digest.hexdigest())
