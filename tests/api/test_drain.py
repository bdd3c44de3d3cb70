import asyncio

import pytest

from api.drain import Drain
from rag.errors import Unavailable


async def open_stream(drain: Drain) -> asyncio.Task[None]:
    """A stream that has begun and has nothing to send."""
    entered = asyncio.Event()

    async def stream() -> None:
        async with drain.stream():
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(stream())
    await entered.wait()
    return task


async def test_a_stream_that_runs_when_the_time_is_over_is_left_with_an_error_of_ours() -> None:
    drain = Drain()
    stream = await open_stream(drain)
    drain.start()
    assert drain.draining
    assert not stream.done()
    drain.expire()
    with pytest.raises(Unavailable, match="the server is stopping"):
        await stream


async def test_a_stream_that_begins_too_late_gets_no_time() -> None:
    drain = Drain()
    drain.expire()
    with pytest.raises(Unavailable):
        await (await open_stream(drain))


async def test_a_timeout_of_the_streams_own_stays_one() -> None:
    with pytest.raises(TimeoutError):
        async with Drain().stream():
            raise TimeoutError


async def test_a_cancelled_stream_stays_cancelled() -> None:
    stream = await open_stream(Drain())
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stream
