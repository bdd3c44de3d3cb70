"""Where Quart meets ASGI: request bodies that press back on the client, and paths in one form."""

import asyncio
import re
from collections.abc import Generator
from typing import Any

from hypercorn.typing import ASGIReceiveCallable, HTTPScope
from quart import Quart, Request
from quart.asgi import ASGIHTTPConnection

BUFFERED_BYTES = 1 << 20
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
        self._arrived = asyncio.Event()
        self._drained = asyncio.Event()

    def __aiter__(self) -> "PressingBody":
        return self

    async def __anext__(self) -> bytes:
        while not self._data:
            if self._complete:
                raise StopAsyncIteration
            self._arrived.clear()
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
    """One request of a client: `//` in the path counts as `/`, a trailing `/` as none."""

    def __init__(self, app: Quart, scope: HTTPScope) -> None:
        path = scope["path"]
        if "//" in path or path.endswith("/"):
            scope = {**scope, "path": SLASHES.sub("/", path).rstrip("/") or "/"}  # type: ignore[assignment]
        super().__init__(app, scope)

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
