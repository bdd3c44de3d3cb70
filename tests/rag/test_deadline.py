"""rag/deadline.py: one deadline travels with the work."""

import asyncio
import math
from collections.abc import Iterator

import pytest

from rag.deadline import seconds_left, within
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
