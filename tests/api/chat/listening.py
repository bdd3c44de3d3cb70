"""The application on a real port, served by Hypercorn in the test's own loop."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hypercorn.asyncio import serve
from hypercorn.config import Config
from quart import Quart


@asynccontextmanager
async def listening(app: Quart) -> AsyncIterator[str]:
    """The URL of the running server; it is stopped when the block is left."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        port = listener.getsockname()[1]
        config = Config()
        config.bind = [f"fd://{listener.fileno()}"]
        config.graceful_timeout = 0.5
        config.errorlog = None
        stop = asyncio.Event()
        server = asyncio.create_task(serve(app, config, shutdown_trigger=stop.wait, mode="asgi"))
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            stop.set()
            await server
            listener.detach()  # Hypercorn has closed it
