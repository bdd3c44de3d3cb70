"""Where Quart meets ASGI: request bodies that press back on the client, and paths in one form."""

import asyncio
import re
from collections.abc import Generator
from contextlib import suppress
from typing import Any

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope
from quart import Quart, Request
from quart.asgi import ASGIHTTPConnection
from quart.utils import encode_headers

from rag.threads import away

BUFFERED_BYTES = 1 << 20
LINGER_SECONDS = 5.0  # how long the rest of a request is received after its answer
SLASHES = re.compile(r"//+")


class PressingBody:
    """A request body, read piece by piece with `async for` or whole with `await`.

    At most about `BUFFERED_BYTES` wait unread: then the server stops receiving, and TCP slows the client down. (Quart's own body
    takes in whatever comes, a whole upload if the reader is slow.)
    """

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        """The signature is Quart's; limits are the readers' matter (api/body.py, api/upload.py)."""
        self._data = bytearray()
        self._complete = False
        self._discarding = False
        self._arrived = asyncio.Event()
        self._drained = asyncio.Event()

    def __aiter__(self) -> "PressingBody":
        return self

    async def __anext__(self) -> bytes:
        while not self._data:
            if self._complete:
                raise StopAsyncIteration
            self._arrived.clear()
            with away():  # the client's time, not ours
                await self._arrived.wait()
        data = bytes(self._data)
        self._data.clear()
        self._drained.set()
        return data

    def __await__(self) -> Generator[Any, None, bytes]:
        return self._read().__await__()

    async def _read(self) -> bytes:
        return b"".join([piece async for piece in self])

    def append(self, data: bytes) -> None:
        """Take in what arrived."""
        if not self._discarding:
            self._data += data
        self._arrived.set()

    def set_complete(self) -> None:
        """The body has ended."""
        self._complete = True
        self._arrived.set()

    def set_result(self, data: bytes) -> None:
        """Take in a whole body at once."""
        self.append(data)
        self.set_complete()

    def clear(self) -> None:
        """Drop what is unread."""
        self._data.clear()
        self._drained.set()

    def discard(self) -> None:
        """Drop what is unread and all that is still to come: nobody reads any more."""
        self._discarding = True
        self.clear()

    async def end(self) -> None:
        """Return when the body has ended; only for one that is being discarded."""
        while not self._complete:
            self._arrived.clear()
            await self._arrived.wait()

    async def wait_for_room(self) -> None:
        """Return when more may be received."""
        while len(self._data) >= BUFFERED_BYTES:
            self._drained.clear()
            await self._drained.wait()


class PressingRequest(Request):
    """A request with such a body."""

    body_class = PressingBody  # type: ignore[assignment]
    body: PressingBody  # type: ignore[assignment]


class Connection(ASGIHTTPConnection):
    """One request of a client: `//` in the path counts as `/`, a trailing `/` as none.

    An answer that is ready before its request has wholly arrived (a body over the limit) is sent while the rest is received
    and dropped: the server's queue of messages must not fill up, or the connection would never end, and a client that only
    reads when it has written everything still gets its answer.
    """

    def __init__(self, app: Quart, scope: HTTPScope) -> None:
        path = scope["path"]
        if "//" in path or path.endswith("/"):
            scope = {**scope, "path": SLASHES.sub("/", path).rstrip("/") or "/"}  # type: ignore[assignment]
        super().__init__(app, scope)

    async def handle_request(self, request: Request, send: ASGISendCallable) -> None:
        """Answer the request."""
        try:
            response = await self.app.handle_request(request)
        finally:
            request.body.discard()  # type: ignore[attr-defined]
        await send({"type": "http.response.start", "status": response.status_code, "headers": encode_headers(response.headers)})
        async with response.response as pieces:  # type: ignore[union-attr]
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece.encode() if isinstance(piece, str) else piece, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                await request.body.end()  # type: ignore[attr-defined]
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def handle_messages(self, request: PressingRequest, receive: ASGIReceiveCallable) -> None:  # type: ignore[override]
        """Receive until the client goes away, no faster than the body is read."""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            request.body.append(message.get("body", b""))
            if message.get("more_body", False):
                await request.body.wait_for_room()
            else:
                request.body.set_complete()
