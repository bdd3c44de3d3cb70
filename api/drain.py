"""How a stopping server tells its streams: first that it drains, then that their time is up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rag.errors import Unavailable


class Drain:
    """One a server. `started` is set from the stop signal on: `/readyz` answers 503, connections close after their answer."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self._streams: set[asyncio.Timeout] = set()
        self._late = False

    @property
    def draining(self) -> bool:
        """Whether the stop signal has come."""
        return self.started.is_set()

    def start(self) -> None:
        """The server takes no new connections; what runs may finish."""
        self.started.set()

    def expire(self) -> None:
        """The time to finish is over: every open `stream` block is left with `Unavailable`."""
        self._late = True
        for timeout in tuple(self._streams):
            timeout.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[None]:
        """Run a streamed answer inside this block, so that it can still send its last frames when the server must stop.

        Raises `Unavailable` in the task that entered the block when the drain time is over.
        """
        timeout = asyncio.timeout(0 if self._late else None)
        self._streams.add(timeout)
        try:
            async with timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise Unavailable("the server is stopping") from None
        finally:
            self._streams.discard(timeout)
