import asyncio

import pytest

from api.drain import Drain
from rag.errors import Unavailable


async def test_a_stream_that_runs_when_the_time_is_over_is_left_with_an_error_of_ours() -> None:
    drain = Drain()
    entered = asyncio.Event()

    async def stream() -> None:
        async with drain.stream():
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(stream())
    await entered.wait()
    drain.start()
    assert drain.draining
    assert not task.done()
    drain.expire()
    with pytest.raises(Unavailable, match="the server is stopping"):
        await task


async def test_a_stream_that_begins_too_late_gets_no_time() -> None:
    drain = Drain()
    drain.expire()
    with pytest.raises(Unavailable):
        async with drain.stream():
            await asyncio.Event().wait()


async def test_a_timeout_of_the_streams_own_stays_one() -> None:
    with pytest.raises(TimeoutError):
        async with Drain().stream():
            raise TimeoutError


async def test_a_cancelled_stream_stays_cancelled() -> None:
    drain = Drain()
    entered = asyncio.Event()

    async def stream() -> None:
        async with drain.stream():
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(stream())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
