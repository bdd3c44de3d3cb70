"""A simulated vendor beside a server process, and the asking of a server that waits for it."""

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from load.vendor_simulator import VendorSimulator
from tests.e2e.server_process import Caller

WITHIN_SECONDS = 10.0


@contextmanager
def listening(simulator: VendorSimulator) -> Iterator[VendorSimulator]:
    """The simulator, on a thread of its own as long as the block lasts; its plain fields may be read and set meanwhile."""
    up, end = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with simulator.listen():
            up.set()
            await end.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    up.wait()
    try:
        yield simulator
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
        loop.close()


@contextmanager
def asking(server: Caller, path: str, body: Any) -> Iterator[None]:
    """A call of the API is under way inside the block; the client hangs up, without an answer, when it is left."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    try:
        connection.request(
            "POST", f"/api/v1{path}", json.dumps(body), {"Authorization": f"Bearer {server.api_key}", "Content-Type": "application/json"}
        )
        yield
    finally:
        connection.close()


def reranked(body: Mapping[str, Any]) -> Any:
    """Jina's answer: all documents, in their order, each with its text."""
    texts = body["documents"]
    results = [{"index": n, "relevance_score": 1 / (n + 1), "document": {"text": text}} for n, text in enumerate(texts)]
    return {"model": body["model"], "results": results, "usage": {"total_tokens": len(texts)}}


def until(happens: Callable[[], bool], what: str, seconds: float = WITHIN_SECONDS) -> None:
    """Return when it has happened; fails with `what` when it has not in time."""
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
