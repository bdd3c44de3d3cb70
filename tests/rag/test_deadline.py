"""rag/deadline.py: one deadline travels with the work."""

import asyncio
import math
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from rag.deadline import at_most, seconds_left, within
from rag.threads import Lane


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane("test", 1, 1)
    yield lane
    lane.close()


def test_without_a_deadline_there_is_all_the_time() -> None:
    assert seconds_left() == math.inf


def test_an_inner_deadline_cannot_be_later_than_an_outer_one() -> None:
    with within(1.0):
        with within(100.0):
            assert seconds_left() <= 1.0
        with within(0.1):
            assert seconds_left() <= 0.1
        assert 0.1 < seconds_left() <= 1.0
    assert seconds_left() == math.inf


def test_behind_the_deadline_the_time_left_is_negative() -> None:
    with within(-1.0):
        assert seconds_left() < 0


async def test_tasks_and_lanes_see_the_deadline_and_others_do_not(lane: Lane) -> None:
    async def left() -> float:
        return seconds_left()

    async def limited() -> tuple[float, float]:
        with within(5.0):
            return await asyncio.create_task(left()), await lane.run(seconds_left)

    assert all(seconds <= 5.0 for seconds in await asyncio.create_task(limited()))
    assert await left() == math.inf


async def test_a_block_is_ended_when_its_time_or_its_share_is_over() -> None:
    for seconds, share, outer in ((0.05, 1.0, 60.0), (60.0, 0.5, 0.1)):
        started = time.monotonic()
        with within(outer):
            given = math.inf
            with suppress(TimeoutError):
                async with at_most(seconds, share):
                    given = seconds_left()
                    await asyncio.Event().wait()
            assert given <= 0.05
            assert seconds_left() > 0
        assert time.monotonic() - started < 5.0


async def test_without_a_deadline_a_block_may_take_forever() -> None:
    async with at_most(math.inf, 0.5):
        await asyncio.sleep(0)
        assert seconds_left() == math.inf


async def test_a_timeout_of_somebody_else_is_not_taken_for_the_blocks() -> None:
    with pytest.raises(TimeoutError, match="theirs"):
        async with at_most(60.0):
            raise TimeoutError("theirs")


async def test_a_thread_that_nobody_waits_for_any_more_sees_that_its_time_is_over(lane: Lane) -> None:
    begun, abandoned, seen = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    def work() -> None:
        with within(100.0):
            seen.append(seconds_left())
            loop.call_soon_threadsafe(begun.set)
            abandoned.wait(10)
            seen.append(seconds_left())

    async def wait_for_it() -> None:
        async with at_most(60.0):
            await lane.run(work)

    task = asyncio.create_task(wait_for_it())
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    abandoned.set()
    await lane.run(lambda: None)
    assert 0 < seen[0] <= 60.0
    assert seen[1] < 0
