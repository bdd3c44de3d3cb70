"""Sending one file to a bucket: a small one by one request at the end, a larger one in parts while it comes in."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import obstore

from rag.breaker import Unanswered
from rag.deadline import seconds_left
from rag.errors import Unavailable
from rag.store.blob_sum import Sum
from rag.store.blobs_s3_wire import MARK, Bucket

PART_BYTES = 8 << 20
# beside the one that is filled. One, so that asking for more of the file means that no part is under way
PARTS_UNDER_WAY = 1


class S3BlobWriter:
    """Holds a small file until `commit`, streams a larger one. As `rag.ports.BlobWriter`."""

    def __init__(self, bucket: Bucket, key: str, streams: "LoopThread", seconds: float) -> None:
        self._bucket = bucket
        self._key = key
        self._streams = streams
        self._seconds = seconds
        self._waiting = bytearray()
        self._sum = Sum()
        self._stream: _Stream | None = None
        self._ended = False
        self._one_call = threading.Lock()

    def write(self, data: bytes) -> None:
        """As `rag.ports.BlobWriter.write`. Waits where the service is slower than the upload."""
        with self._one_call:
            self._check_open()
            self._sum.add(data)
            self._waiting += data
            if self._stream is None and len(self._waiting) < PART_BYTES:
                return
            if self._stream is None:
                self._bucket.breaker.check()
                self._stream = _Stream(self._bucket, self._key, self._streams)
            self._stream.feed(bytes(self._waiting), self._seconds)
            self._waiting.clear()

    def commit(self) -> int:
        """As `rag.ports.BlobWriter.commit`."""
        with self._one_call:
            self._check_open()
            last = bytes(self._waiting) + MARK + self._sum.digest
            if self._stream is None:
                self._bucket.ask(lambda: obstore.put(self._bucket.store, self._key, last, use_multipart=False))
            else:
                self._stream.finish(last, self._seconds)
            self._ended = True
            return self._sum.size

    def abort(self) -> None:
        """As `rag.ports.BlobWriter.abort`."""
        with self._one_call:
            if not self._ended and self._stream is not None:
                self._stream.give_up(self._seconds)
            self._ended = True
            self._waiting.clear()

    def _check_open(self) -> None:
        if self._ended:
            raise Unavailable("the file was given up")


class _GivenUp(Exception):
    """What an upload's source raises so that the library takes its parts back."""


class _Stream:
    """One upload in parts: pieces are fed from lanes' threads, the request's work is done on the store's loop."""

    def __init__(self, bucket: Bucket, key: str, streams: "LoopThread") -> None:
        self._streams = streams
        self._bucket = bucket
        self._key = key
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._given_up = asyncio.Event()
        self._done = streams.start(self._send())

    def feed(self, piece: bytes, seconds: float) -> None:
        """Hand over a piece. Raises `Unavailable` where the service did not take those before it in time."""
        taken = self._streams.start(self._pieces.put(piece))
        wait((taken, self._done), min(seconds, max(0.0, seconds_left())), FIRST_COMPLETED)
        if taken.done() and not self._done.done():
            return
        taken.cancel()
        self._raise_failure("the blob store takes no more of the file within the time given")

    def finish(self, last: bytes, seconds: float) -> None:
        """Hand over the last piece and wait until the object is complete. Raises `Unavailable`."""
        self.feed(last, seconds)
        ended = self._streams.start(self._pieces.put(None))
        # the parts that are still under way, and the request that joins them
        wait((self._done,), min(seconds * (PARTS_UNDER_WAY + 1), max(0.0, seconds_left())))
        if not self._done.done():
            ended.cancel()
            self._raise_failure("the blob store did not complete the file within the time given")
        self._bucket.ask(self._done.result)

    def give_up(self, seconds: float) -> None:
        """Have the parts removed, as far as the service answers in time."""
        self._streams.call(self._given_up.set)
        wait((self._done,), seconds)

    def _raise_failure(self, slow: str) -> None:
        if self._done.done():
            self._bucket.ask(self._done.result)
        with self._bucket.breaker.watch():
            raise Unanswered(slow)

    async def _send(self) -> None:
        await obstore.put_async(
            self._bucket.store, self._key, self._content(), use_multipart=True, chunk_size=PART_BYTES, max_concurrency=PARTS_UNDER_WAY
        )

    async def _content(self) -> AsyncIterator[bytes]:
        given_up = asyncio.ensure_future(self._given_up.wait())
        try:
            while True:
                piece = asyncio.ensure_future(self._pieces.get())
                await asyncio.wait((piece, given_up), return_when=asyncio.FIRST_COMPLETED)
                if given_up.done():
                    piece.cancel()
                    # the library takes this byte when the part under way has arrived: a part that came after the end would stay for ever
                    yield b"-"
                    raise _GivenUp
                content = piece.result()
                if content is None:
                    return
                yield content
        finally:
            given_up.cancel()


class LoopThread:
    """An event loop on a thread, begun by the first large upload."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._beginning = threading.Lock()

    def start(self, work: Any) -> Future[Any]:
        """Run the coroutine there."""
        return asyncio.run_coroutine_threadsafe(work, self._running())

    def call(self, function: Callable[[], object]) -> None:
        """Call the function there."""
        self._running().call_soon_threadsafe(function)

    def close(self) -> None:
        with self._beginning:
            if self._loop is None or self._thread is None:
                return
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = None

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._beginning:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="millrace-s3", daemon=True)
                self._thread.start()
            return self._loop
