"""rag/threads.py: the lanes stay bounded, carry context, and let a cancelled caller go at once."""

import asyncio
import contextvars
import gc
import os
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest

from rag.errors import Overloaded, Unavailable
from rag.threads import Lane

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id")


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane("test", threads=1, queue_limit=1)
    yield lane
    lane.close()


async def occupy(lane: Lane) -> tuple[asyncio.Task[bool], threading.Event]:
    """A call that holds the lane's thread until the event is set."""
    started, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hold() -> bool:
        loop.call_soon_threadsafe(started.set)
        return release.wait(10)

    task = asyncio.create_task(lane.run(hold))
    await started.wait()
    return task, release


async def test_a_call_runs_on_a_named_thread_with_the_callers_context(lane: Lane) -> None:
    request_id.set("r-1")
    name, seen = await lane.run(lambda: (threading.current_thread().name, request_id.get()))
    assert name.startswith("millrace-test")
    assert seen == "r-1"


async def test_an_error_of_the_call_reaches_the_caller(lane: Lane) -> None:
    with pytest.raises(ZeroDivisionError):
        await lane.run(lambda: 1 // 0)
    assert lane.state.busy == 0


async def test_a_full_lane_refuses_at_once_and_recovers(lane: Lane) -> None:
    holder, release = await occupy(lane)
    waiting = asyncio.create_task(lane.run(lambda: "second"))
    await asyncio.sleep(0)
    assert (lane.state.busy, lane.state.queued) == (1, 1)
    with pytest.raises(Overloaded) as refused:
        await lane.run(lambda: "third")
    assert refused.value.retry_after_seconds > 0
    release.set()
    assert await holder
    assert await waiting == "second"
    assert await lane.run(lambda: "after") == "after"


async def test_cancelling_a_waiting_call_frees_its_place_and_never_runs_it(lane: Lane) -> None:
    holder, release = await occupy(lane)
    ran: list[int] = []
    waiting = asyncio.create_task(lane.run(ran.append, 1))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert lane.state.queued == 0
    release.set()
    await holder
    await lane.run(lambda: None)
    assert ran == []


async def test_calls_that_were_given_up_are_kept_nowhere(lane: Lane) -> None:
    class Held:
        pass

    holder, release = await occupy(lane)
    kept: list[weakref.ref[Held]] = []
    for _ in range(100):
        held = Held()
        kept.append(weakref.ref(held))
        waiting = asyncio.create_task(lane.run(id, held))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        del held, waiting
    gc.collect()
    assert [reference for reference in kept[:-1] if reference() is not None] == []  # the last is in the traceback above
    assert lane._executor._work_queue.qsize() <= 1
    release.set()
    await holder
    assert await lane.run(lambda: "after") == "after"


async def test_calls_come_in_turn() -> None:
    order: list[int] = []
    wide = Lane("wide", threads=1, queue_limit=100)
    holder, release = await occupy(wide)
    waiting = [asyncio.create_task(wide.run(order.append, number)) for number in range(20)]
    await asyncio.sleep(0)
    for task in waiting[5:15]:
        task.cancel()
    await asyncio.wait(waiting[5:15])
    release.set()
    await asyncio.gather(holder, *waiting, return_exceptions=True)
    assert order == [0, 1, 2, 3, 4, 15, 16, 17, 18, 19]
    wide.close()


async def test_closing_ends_the_calls_that_wait(lane: Lane) -> None:
    holder, release = await occupy(lane)
    waiting = asyncio.create_task(lane.run(lambda: None))
    await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(lane.close))
    with pytest.raises(asyncio.CancelledError):
        await waiting
    release.set()
    await asyncio.gather(holder, closing)


async def test_cancelling_a_running_call_returns_at_once(lane: Lane) -> None:
    holder, release = await occupy(lane)
    holder.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holder
    release.set()


async def test_the_wait_for_a_thread_is_reported() -> None:
    waits: list[tuple[str, float]] = []
    lane = Lane("timed", threads=1, queue_limit=1, on_wait=lambda name, seconds: waits.append((name, seconds)))
    await lane.run(lambda: None)
    lane.close()
    assert waits[0][0] == "timed"
    assert waits[0][1] >= 0


async def test_a_closed_lane_says_so() -> None:
    lane = Lane("closed", threads=1, queue_limit=1)
    lane.close()
    with pytest.raises(Unavailable, match="closed"):
        await lane.run(lambda: None)
    assert lane.state.busy == 0


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness of their own on Linux only")
async def test_a_nice_lane_lets_others_go_first() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    lane = Lane("patient", 1, 1, nice=3)
    try:
        assert await lane.run(niceness) == min(19, niceness() + 3)
    finally:
        lane.close()
