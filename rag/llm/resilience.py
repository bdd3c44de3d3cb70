"""Guards the calls to one endpoint: is it asked at all, how many calls at once, and which failure is tried a second time.

The order: deadline > breaker > limit of calls at once > second attempt > request.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from rag.breaker import Breaker, Watch
from rag.deadline import seconds_left, within
from rag.errors import DeadlineExceeded, ProviderBadReply, ProviderBusy, ProviderError, ProviderRefused
from rag.llm.breaker import NoTurn, VendorBreaker
from rag.llm.observed import Calls
from rag.llm.transport import ConnectionLost
from rag.threads import away

T = TypeVar("T")

_PAUSE_SECONDS = (0.05, 0.15)
_MOST_WAITING = 1024


class Turns:
    """How many calls may be under way at once; up to `waiting` more wait for one of them to end, in the order they came."""

    def __init__(self, calls: int, waiting: int = _MOST_WAITING) -> None:
        self._free = asyncio.Semaphore(calls)
        self._places = waiting

    @asynccontextmanager
    async def one(self, model: str, end: float) -> AsyncIterator[None]:
        """Hold a turn inside the block. Raises `NoTurn` when none is free before `end` (`time.monotonic`), or too many wait."""
        with away():
            if self._free.locked():
                await self._wait(model, end)
            else:
                await self._free.acquire()
            try:
                yield
            finally:
                self._free.release()

    async def _wait(self, model: str, end: float) -> None:
        if not self._places:
            raise NoTurn(f"all calls to model {model} are taken, and too many wait for one")
        self._places -= 1
        try:
            async with asyncio.timeout(end - time.monotonic()):
                await self._free.acquire()
        except TimeoutError:
            raise NoTurn(f"all calls to model {model} are taken; none was free in time") from None
        finally:
            self._places += 1


class Guard:
    """One model's way to its endpoint. Waiting for a turn counts towards the call's time.

    A call is sent a second time when the first one reached nobody, or when the endpoint itself named a time to come back that is
    within the deadline. Nothing is sent again after the first piece of a streamed answer. With `repeats_failures`, for calls that
    may be computed twice at no harm, timeouts (ours, and 408) and the endpoint's own failures (5xx) are tried a second time too; the
    first attempt then gets half of the time.
    """

    def __init__(
        self, model: str, turns: Turns | int, deadline_seconds: float, *, breaker: Breaker | None = None,
        repeats_failures: bool = False, calls: Calls | None = None,
    ) -> None:  # fmt: skip
        """`deadline_seconds`, or what the request has left, bounds waiting, both attempts and the pause between them; a stream's
        from the first event is its own.

        `turns` and `breaker` may be shared by the guards of several models. A number of `turns` is for this guard alone, and
        without a `breaker` it has one of its own. `calls` is told of every attempt.
        """
        self.breaker = breaker or VendorBreaker(f"the endpoint of model {model}")
        self._model = model
        self._deadline_seconds = deadline_seconds
        self._repeats_failures = repeats_failures
        self._calls = calls or Calls(model)
        self._turns = turns if isinstance(turns, Turns) else Turns(turns)

    async def call(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The attempt's result. Raises `ProviderError`, and `DeadlineExceeded` when no time was left to ask."""
        end = self._end()
        self.breaker.check()
        async with self._turns.one(self._model, end):
            with self.breaker.watch() as watch:
                try:
                    with within((end - time.monotonic()) * (0.5 if self._repeats_failures else 1.0)), self._calls.attempt():
                        return await attempt()
                except ProviderError as error:
                    await self._pause(error, end, watch)
                with within(end - time.monotonic()), self._calls.attempt():
                    return await attempt()

    async def stream(self, attempt: Callable[[], AsyncIterator[T]]) -> AsyncIterator[T]:
        """The attempt's items as they come. Raises as `call`."""
        end = self._end()
        self.breaker.check()
        async with self._turns.one(self._model, end):
            with self.breaker.watch() as watch:
                started = False
                for last in (False, True):
                    try:
                        with self._calls.attempt() as call:
                            async with aclosing(attempt()) as items:
                                async for item in items:
                                    if not started:
                                        started = True
                                        watch.answered()
                                        call.answered()
                                    yield item
                        return
                    except ProviderError as error:
                        if started or last:
                            raise
                        await self._pause(error, end, watch)

    def _end(self) -> float:
        seconds = min(self._deadline_seconds, seconds_left())
        if seconds <= 0:
            raise DeadlineExceeded(f"no time was left to ask model {self._model}")
        return time.monotonic() + seconds

    async def _pause(self, error: ProviderError, end: float, watch: Watch) -> None:
        """Wait until the call may be sent again, or raise the error when it may not."""
        match error:
            case ConnectionLost():
                seconds = random.uniform(*_PAUSE_SECONDS)
            case ProviderBusy(retry_after_seconds=float(asked)):
                seconds = asked
            case ProviderRefused() | ProviderBadReply():
                raise error
            case _ if self._repeats_failures:
                seconds = random.uniform(*_PAUSE_SECONDS)
            case _:
                raise error
        if time.monotonic() + seconds >= end:
            raise error
        # An endpoint that says when to come back is well; of any other failure the breaker hears before the call is over.
        if not isinstance(error, ProviderBusy) and not watch.attempt_failed(error):
            raise error
        self._calls.retried()
        await asyncio.sleep(seconds)
