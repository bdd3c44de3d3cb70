"""GET /metrics and /healthz of `millrace worker`, which answers nothing else: as much HTTP as Prometheus and a health check need."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from api.figures import figures
from api.listening import reason_of
from api.metrics import CONTENT_TYPE
from api.parts import Parts
from rag.errors import SettingsError

REQUEST_SECONDS = 5.0
JSON = "application/json"


@asynccontextmanager
async def answering(parts: Parts) -> AsyncIterator[None]:
    """Answer at the port that the settings name, if they name one. Raises `SettingsError` when it cannot be had."""
    host, port = parts.settings.host, parts.settings.worker_metrics_port
    if not port:
        yield
        return

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await _answer(parts, head.split(b"\r\n", 1)[0]))
                await writer.drain()
        writer.close()

    try:
        server = await asyncio.start_server(serve, host, port)
    except OSError as error:
        raise SettingsError(f"cannot listen on {host}:{port}: {reason_of(error)} (MILLRACE_HOST, MILLRACE_WORKER_METRICS_PORT)") from None
    try:
        yield
    finally:
        server.close()


async def _answer(parts: Parts, request: bytes) -> bytes:
    """The whole answer to a request line."""
    method, _, rest = request.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if method != b"GET" or path not in (b"/metrics", b"/healthz"):
        return _response("404 Not Found", JSON, b'{"status":"not found"}')
    if path == b"/metrics":
        return _response("200 OK", CONTENT_TYPE, await figures(parts))
    if parts.worker is None or not parts.worker.alive:
        return _response("503 Service Unavailable", JSON, b'{"status":"nok"}')
    return _response("200 OK", JSON, b'{"status":"ok"}')


def _response(status: str, content_type: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
