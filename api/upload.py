"""Uploads: a multipart body read part by part, its files streamed into the blob store, never whole in memory.

A small file is handed over when it is complete. A large one flows through a bounded pipe into `BlobStore.put`, which waits on
a thread of the blob lane; so that slow clients cannot take all of those threads, only some of them may be used that way.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO, cast

import xxhash
from quart import request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from api.errors import ApiError
from rag.errors import DeadlineExceeded, TooLarge
from rag.ports import BlobStore
from rag.threads import Lane

SMALL_BYTES = 1 << 20
PIPE_BYTES = 4 << 20
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
    """Reads the request's multipart body in order. Raises `ApiError` for a broken one, `DeadlineExceeded` for one that stalls."""

    def __init__(self, idle_seconds: float) -> None:
        boundary = request.mimetype_params.get("boundary", "") if request.mimetype == "multipart/form-data" else ""
        self._decoder = MultipartDecoder(boundary.encode("latin-1", "replace"), HEADER_BYTES, max_parts=PARTS)
        self._is_multipart = bool(boundary)
        self._idle_seconds = idle_seconds
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
                async with asyncio.timeout(self._idle_seconds):
                    self._unread = await anext(request.body)
            except StopAsyncIteration:
                return None
            except TimeoutError:
                raise DeadlineExceeded(f"the upload was silent for {self._idle_seconds:g} seconds") from None
        piece, self._unread = self._unread[:DECODED_BYTES], self._unread[DECODED_BYTES:]
        return piece


class Pipe:
    """Carries bytes from the event loop to one reader on a thread, holding at most about `PIPE_BYTES`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._changed = threading.Condition()
        self._data = bytearray()
        self._closed = False
        self._broken = False
        self._abandoned = False

    async def write(self, data: bytes) -> None:
        """Pass data on; waits while the pipe is full. Raises `BrokenPipeError` when nobody reads any more."""
        if self._abandoned:
            raise BrokenPipeError
        with self._changed:
            self._data += data
            self._changed.notify()
        while self._is_full() and not self._abandoned:
            await self._room.wait()

    def abandon(self) -> None:
        """Nobody reads any more; a waiting writer goes on. On the event loop."""
        self._abandoned = True
        self._room.set()

    def close(self, *, broken: bool = False) -> None:
        """End the stream; a `broken` one makes the reader fail, so that nothing half is stored."""
        with self._changed:
            self._closed, self._broken = True, broken
            self._changed.notify()

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, b"" at the end. Raises `BrokenPipeError` when the writer broke off. On the reader's thread."""
        with self._changed:
            self._changed.wait_for(lambda: self._data or self._closed)
            if self._broken:
                raise BrokenPipeError("the upload broke off")
            data = bytes(self._data) if size < 0 else bytes(self._data[:size])
            del self._data[: len(data)]
            if len(self._data) < PIPE_BYTES:
                self._loop.call_soon_threadsafe(self._room.set)
            return data

    def _is_full(self) -> bool:
        with self._changed:
            full = len(self._data) >= PIPE_BYTES
            if full:
                self._room.clear()
            return full


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
        self._streams = asyncio.Semaphore(max(1, lane.state.threads - 1))

    async def store(self, key: str, content: AsyncIterator[bytes], keep_alive: Callable[[], Awaitable[None]]) -> Stored:
        """Put the content under the key: all of it, or nothing. `keep_alive` is awaited now and then while it comes in.

        Raises `TooLarge`, and what the content and the store raise.
        """
        tally = _Tally(self._limit_bytes)
        head = bytearray()
        async for piece in content:
            head += tally.add(piece)
            if len(head) >= SMALL_BYTES:
                break
        else:
            await self._lane.run(self._blobs.put, key, BytesIO(head))
            return tally.stored()
        await keep_alive()
        async with self._streams, self._pipe_to(key) as pipe:
            await pipe.write(bytes(head))
            asked_at = time.monotonic()
            async for piece in content:
                await pipe.write(tally.add(piece))
                if time.monotonic() - asked_at > KEEP_ALIVE_SECONDS:
                    await keep_alive()
                    asked_at = time.monotonic()
        return tally.stored()

    @asynccontextmanager
    async def _pipe_to(self, key: str) -> AsyncIterator[Pipe]:
        """A pipe that the blob store reads; left without an error when the blob is stored."""
        pipe = Pipe()
        put = asyncio.ensure_future(self._lane.run(self._blobs.put, key, cast(BinaryIO, pipe)))
        put.add_done_callback(lambda _: pipe.abandon())
        try:
            yield pipe
        except BaseException as error:
            pipe.close(broken=True)
            await asyncio.wait([put])
            if isinstance(error, BrokenPipeError):
                put.result()  # the store's own error tells more
            put.exception()
            raise
        pipe.close()
        await put


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
