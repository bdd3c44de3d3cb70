"""api/parts.py: the work beside the requests."""

import asyncio

from structlog.testing import capture_logs

from api.parts import _running


async def test_background_work_that_fails_is_told_of_and_stops_nothing_else() -> None:
    failed, going_on = asyncio.Event(), asyncio.Event()

    async def fail() -> None:
        failed.set()
        raise ValueError("lost")

    async def go_on() -> None:
        await failed.wait()
        going_on.set()
        await asyncio.Event().wait()

    with capture_logs() as lines:
        async with _running([fail(), go_on()]):
            await going_on.wait()
    assert [(line["event"], str(line["exc_info"])) for line in lines] == [("background work ended", "lost")]
