import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import uvloop

from api.slow_callbacks import CALLBACK, SlowStep, watching

LIMIT = 0.02


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


async def culprit() -> None:
    await asyncio.sleep(0)
    burn(3 * LIMIT)


async def seen_while(work: Callable[[], Awaitable[Any]]) -> list[SlowStep]:
    steps: list[SlowStep] = []
    with watching(asyncio.get_running_loop(), LIMIT, steps.append):
        await work()
    return steps


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_step_that_holds_the_loop_is_named_with_where_it_was(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def work() -> None:
        await asyncio.create_task(culprit())

    with asyncio.Runner(loop_factory=new_loop) as runner:
        (step,) = runner.run(seen_while(work))
    assert step.task == "culprit"
    assert 3 * LIMIT <= step.seconds < 10 * LIMIT
    assert step.frames[-1].endswith(" burn")
    assert any(frame.endswith(" culprit") for frame in step.frames)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_callback_outside_of_tasks_that_holds_the_loop_is_named_too(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def work() -> None:
        asyncio.get_running_loop().call_soon(burn, 10 * LIMIT)
        await asyncio.sleep(11 * LIMIT)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        steps = runner.run(seen_while(work))
    # told twice where the machine stopped the thread for so long that the loop seemed to rest
    assert {step.task for step in steps} == {CALLBACK}
    assert all(step.seconds > LIMIT and step.frames[-1].endswith(" burn") for step in steps)


async def test_many_short_callbacks_with_rests_between_are_nobody_s_fault() -> None:
    def tick(left: int) -> None:
        burn(LIMIT / 10)
        if left:
            asyncio.get_running_loop().call_later(0.02, tick, left - 1)

    async def work() -> None:
        tick(20)
        await asyncio.sleep(0.6)

    assert await seen_while(work) == []


async def test_many_short_steps_of_a_task_are_nobody_s_fault() -> None:
    async def polite() -> None:
        for _ in range(10):
            burn(LIMIT / 5)
            await asyncio.sleep(0)

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(polite())

    assert await seen_while(work) == []


async def test_time_that_a_thread_is_not_running_does_not_count() -> None:
    async def blocked() -> None:
        time.sleep(2 * LIMIT)  # noqa: ASYNC251 - a machine that is busy with something else

    async def work() -> None:
        await asyncio.create_task(blocked())

    assert await seen_while(work) == []


async def test_tasks_end_fail_and_are_cancelled_as_without_the_watch() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("own")

    async def answer() -> int:
        async with asyncio.timeout(5):
            return await asyncio.to_thread(int, "7")

    async def wait() -> None:
        await asyncio.Event().wait()

    async def work() -> None:
        assert await asyncio.create_task(answer()) == 7
        with pytest.raises(ValueError, match="own"):
            await asyncio.create_task(fail())
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        assert waiting.cancelled()

    assert await seen_while(work) == []


async def test_afterwards_tasks_are_made_as_before() -> None:
    await seen_while(lambda: asyncio.sleep(0))
    assert asyncio.get_running_loop().get_task_factory() is None
