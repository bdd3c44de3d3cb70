"""Guards the calls to one endpoint: how many at once, and which failure is tried a second time."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from rag.errors import ProviderBusy, ProviderError
from rag.llm.transport import ConnectionLost

T = TypeVar("T")

_RECONNECT_SECONDS = (0.05, 0.15)


class Guard:
    """At most `concurrency` calls at once; waiting for a turn counts towards the call's time.

    A call is sent a second time when the first one reached nobody, or when the endpoint itself named a time to come back that is
    within the deadline. Nothing is sent again after the first piece of a streamed answer.
    """

    def __init__(self, model: str, concurrency: int, deadline_seconds: float) -> None:
        """`deadline_seconds` bounds waiting, both attempts and the pause between them; a stream's from the first event is its own."""
        self._model = model
        self._deadline_seconds = deadline_seconds
        self._turns = asyncio.Semaphore(concurrency)

    async def call(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The attempt's result. Raises `ProviderError`."""
        deadline = self._deadline()
        async with self._turn(deadline):
            try:
                return await attempt()
            except ProviderError as error:
                await self._pause(error, deadline)
            return await attempt()

    async def stream(self, attempt: Callable[[], AsyncIterator[T]]) -> AsyncIterator[T]:
        """The attempt's items as they come. Raises `ProviderError`."""
        deadline = self._deadline()
        async with self._turn(deadline):
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
                await self._pause(error, deadline)
            async with aclosing(attempt()) as items:
                async for item in items:
                    yield item

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._deadline_seconds

    @asynccontextmanager
    async def _turn(self, deadline: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout_at(deadline):
                await self._turns.acquire()
        except TimeoutError:
            raise ProviderBusy(f"all calls to model {self._model} are taken for {self._deadline_seconds:g} seconds") from None
        try:
            yield
        finally:
            self._turns.release()

    async def _pause(self, error: ProviderError, deadline: float) -> None:
        """Wait until the call may be sent again, or raise the error when it may not."""
        match error:
            case ConnectionLost():
                seconds = random.uniform(*_RECONNECT_SECONDS)
            case ProviderBusy(retry_after_seconds=float(asked)):
                seconds = asked
            case _:
                raise error
        if asyncio.get_running_loop().time() + seconds >= deadline:
            raise error
        await asyncio.sleep(seconds)
