"""Receives a request's body from a client that keeps up a least pace: one that sends a byte now and then must not hold a request open."""

import asyncio
import time
from collections.abc import AsyncIterator

from api.errors import ApiError
from rag.ports import Clock


async def paced(
    body: AsyncIterator[bytes], idle_seconds: float, least_bytes_per_second: int, clock: Clock = time.monotonic
) -> AsyncIterator[bytes]:  # fmt: skip
    """The body's pieces. Only the time in which we wait counts, not what is done with a piece.

    No piece may take longer than `idle_seconds`, and all together no longer than that and a second for every
    `least_bytes_per_second` received (0: no such limit). Raises `ApiError` (101/408).
    """
    waited = 0.0
    size = 0
    while True:
        left = idle_seconds
        if least_bytes_per_second:
            left = min(left, idle_seconds + size / least_bytes_per_second - waited)
        began = clock()
        try:
            async with asyncio.timeout(left):
                piece = await anext(body)
        except StopAsyncIteration:
            return
        except TimeoutError:
            if left == idle_seconds:
                raise ApiError(101, f"the request body was silent for {idle_seconds:g} seconds", 408) from None
            raise ApiError(101, f"the request body comes more slowly than {least_bytes_per_second} bytes a second", 408) from None
        waited += clock() - began
        size += len(piece)
        yield piece
