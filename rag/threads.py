"""The one crossing from the event loop to blocking code: named, bounded thread pools called lanes."""

import asyncio
import contextvars
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from rag.errors import Overloaded, Unavailable

P = ParamSpec("P")
T = TypeVar("T")


class Load:
    """What one request takes of this server. It travels with the request's context; whoever admitted the request reads it.

    `lane_seconds` maps a lane's name to the seconds the request had a thread of it, divided by the lane's threads: how long the
    lane as a whole was taken.
    """

    __slots__ = ("lane_seconds",)

    def __init__(self) -> None:
        self.lane_seconds: dict[str, float] = {}

    def leave(self) -> None:
        """From now on the request waits for somebody else and takes nothing. On the event loop."""

    def come_back(self) -> None:
        """It works again. On the event loop; as often as `leave`."""


current_load: ContextVar[Load | None] = ContextVar("load", default=None)


@contextmanager
def away() -> Iterator[None]:
    """Around a wait for somebody else, a vendor or the client: the request takes no place among those that work here meanwhile."""
    load = current_load.get()
    if load is None:
        yield
        return
    load.leave()
    try:
        yield
    finally:
        load.come_back()


LARGE_CHARACTERS = 16_000  # of text: analysing or counting it may take 10 ms


@dataclass(frozen=True, slots=True)
class LaneState:
    """A lane at one moment. `busy` and `threads` count threads, `queued` calls that wait for one."""

    name: str
    threads: int
    busy: int
    queued: int
    queue_limit: int


class Lane:
    """Runs blocking calls on at most `threads` threads with at most `queue_limit` calls waiting.

    A call over the limit is refused at once with `Overloaded`, before any work was done. Cancelling the awaiting task
    returns at once: a queued call is dropped, a running one ends by itself and its result is thrown away. Context
    variables of the caller are visible to the call.
    """

    def __init__(
        self, name: str, threads: int, queue_limit: int, on_wait: Callable[[str, float], None] | None = None, *, nice: int = 0
    ) -> None:  # fmt: skip
        """`on_wait(name, seconds)` is told, on the lane's thread, how long each call waited for one.

        `nice` is added to the threads' niceness where the system has one for each thread (Linux): work that others go before.
        """
        self.name = name
        self._threads = threads
        self._queue_limit = queue_limit
        self._on_wait = on_wait
        self._changing = threading.Lock()
        self._busy = 0
        # Oldest first. A call that is cancelled leaves at once, and with it all that it holds; the executor is only told how often to come.
        self._waiting: dict[Future[Any], Callable[[], Any]] = {}
        self._coming = 0
        self._executor = ThreadPoolExecutor(threads, f"millrace-{name}", initializer=_yield_to_others, initargs=(nice,))

    @property
    def state(self) -> LaneState:
        """How full the lane is now."""
        in_flight = self._busy + len(self._waiting)
        return LaneState(self.name, self._threads, min(in_flight, self._threads), max(0, in_flight - self._threads), self._queue_limit)

    async def run(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return `call(*args, **kwargs)`, computed on a thread of this lane. Raises `Overloaded` when the lane is full."""
        return await asyncio.wrap_future(self.submit(call, *args, **kwargs))

    def submit(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """The same for code that is itself on a thread: a future instead of an awaitable."""
        context, load = contextvars.copy_context(), current_load.get()
        submitted = time.perf_counter()

        def work() -> T:
            started = time.perf_counter()
            if self._on_wait is not None:
                self._on_wait(self.name, started - submitted)
            try:
                return context.run(call, *args, **kwargs)
            finally:
                if load is not None:
                    taken = (time.perf_counter() - started) / self._threads
                    load.lane_seconds[self.name] = load.lane_seconds.get(self.name, 0.0) + taken

        future: Future[T] = Future()
        with self._changing:
            if self._busy + len(self._waiting) >= self._threads + self._queue_limit:
                raise Overloaded(f"the {self.name} queue is full ({self._queue_limit} calls wait)")
            if self._coming <= len(self._waiting):
                try:
                    self._executor.submit(self._work_off_one)
                except RuntimeError:
                    raise Unavailable(f"the {self.name} lane is closed") from None
                self._coming += 1
            self._waiting[future] = work
        future.add_done_callback(self._forget)
        return future

    def close(self) -> None:
        """Wait for running calls to end and drop the waiting ones."""
        self._executor.shutdown(wait=False)
        for future in tuple(self._waiting):
            future.cancel()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _forget(self, future: Future[Any]) -> None:
        if future.cancelled():
            with self._changing:
                self._waiting.pop(future, None)

    def _work_off_one(self) -> None:
        """On a thread: the oldest of the calls that wait, if any still does."""
        with self._changing:
            self._coming -= 1
            future = next(iter(self._waiting), None)
            if future is None:
                return
            work = self._waiting.pop(future)
            self._busy += 1
        result, error = None, None
        if runs := future.set_running_or_notify_cancel():
            try:
                result = work()
            except BaseException as raised:  # noqa: BLE001 - it is the caller's, as an executor's would be
                error = raised
        with self._changing:
            self._busy -= 1
        if runs and error is not None:
            future.set_exception(error)
        elif runs:
            future.set_result(result)


def _yield_to_others(nice: int) -> None:
    if nice:
        with suppress(OSError):  # a system where threads have no niceness of their own
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + nice))


async def aside(lane: Lane | None, characters: int, call: Callable[[], T]) -> T:
    """`call()`, which works on so much text: on the lane where it would hold the event loop, else at once, which is faster."""
    return call() if lane is None or characters <= LARGE_CHARACTERS else await lane.run(call)


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """The work under way beside the block; cancelled, and waited for, when the block is left before it is done."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
