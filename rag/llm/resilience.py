"""Guards the calls to one endpoint: is it asked at all, how many calls at once, and which failure is tried a second time.

The order: deadline > breaker > limit of calls at once > second attempt > request.
"""

import asyncio
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from rag.errors import ProviderBadReply, ProviderBusy, ProviderError, ProviderRefused
from rag.llm.breaker import Breaker, NoTurn
from rag.llm.transport import ConnectionLost

T = TypeVar("T")

_PAUSE_SECONDS = (0.05, 0.15)


class Guard:
    """At most `concurrency` calls at once; waiting for a turn counts towards the call's time.

    A call is sent a second time when the first one reached nobody, or when the endpoint itself named a time to come back that is
    within the deadline. Nothing is sent again after the first piece of a streamed answer. With `repeats_failures`, for calls that
    may be computed twice at no harm, timeouts and the endpoint's own failures (5xx) are tried a second time too.
    """

    def __init__(
        self, model: str, concurrency: int, deadline_seconds: float, *, breaker: Breaker | None = None, repeats_failures: bool = False
    ) -> None:
        """`deadline_seconds` bounds waiting, both attempts and the pause between them; a stream's from the first event is its own.

        A `breaker` may be shared by the guards of several models of one endpoint; without one, there is one for this guard.
        """
        self.breaker = breaker or Breaker(f"the endpoint of model {model}")
        self._model = model
        self._deadline_seconds = deadline_seconds
        self._repeats_failures = repeats_failures
        self._turns = asyncio.Semaphore(concurrency)

    async def call(self, attempt: Callable[[], Awaitable[T]], seconds: float = math.inf) -> T:
        """The attempt's result, within `seconds` where that is less than the guard's own deadline. Raises `ProviderError`."""
        deadline = self._deadline(seconds)
        self.breaker.check()
        async with self._turn(deadline):
            with self.breaker.watch() as attempt_failed:
                try:
                    return await attempt()
                except ProviderError as error:
                    await self._pause(error, deadline, attempt_failed)
                return await attempt()

    async def stream(self, attempt: Callable[[], AsyncIterator[T]]) -> AsyncIterator[T]:
        """The attempt's items as they come. Raises `ProviderError`."""
        deadline = self._deadline()
        self.breaker.check()
        async with self._turn(deadline):
            with self.breaker.watch() as attempt_failed:
                started = False
                try:
                    async with aclosing(attempt()) as items:
                        async for item in items:
                            started = True
                            yield item
                    return
                except ProviderError as error:
                    if started:
                        raise
                    await self._pause(error, deadline, attempt_failed)
                async with aclosing(attempt()) as items:
                    async for item in items:
                        yield item

    def _deadline(self, seconds: float = math.inf) -> float:
        return asyncio.get_running_loop().time() + min(seconds, self._deadline_seconds)

    @asynccontextmanager
    async def _turn(self, deadline: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout_at(deadline):
                await self._turns.acquire()
        except TimeoutError:
            raise NoTurn(f"all calls to model {self._model} are taken; none was free in time") from None
        try:
            yield
        finally:
            self._turns.release()

    async def _pause(self, error: ProviderError, deadline: float, attempt_failed: Callable[[ProviderError], bool]) -> None:
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
        if asyncio.get_running_loop().time() + seconds >= deadline:
            raise error
        # An endpoint that says when to come back is well; of any other failure the breaker hears before the call is over.
        if not isinstance(error, ProviderBusy) and not attempt_failed(error):
            raise error
        await asyncio.sleep(seconds)
