"""Who is next at the embedder: tenants in turn, and the documents of a tenant in turn."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count


class Turns:
    """Lets `places` callers in at a time.

    Of those who wait the one comes next whose tenant was let in the longest ago, and of a tenant's callers the one who came
    first. A document asks anew for every batch, so that a large one takes a turn among others and not the whole time.
    """

    def __init__(self, places: int = 1) -> None:
        self._free = self._places = places
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._let_in: dict[str, int] = {}
        self._clock = count(1)

    @asynccontextmanager
    async def turn(self, tenant_id: str) -> AsyncIterator[None]:
        """A context that is entered when it is the caller's turn."""
        await self._enter(tenant_id)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, tenant_id: str) -> None:
        if self._free:
            self._free -= 1
            self._let_in[tenant_id] = next(self._clock)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant_id, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was let in just then
                self._leave()
            raise

    def _leave(self) -> None:
        while self._waiting:
            tenant_id = min(self._waiting, key=lambda tenant_id: self._let_in.get(tenant_id, 0))
            turn = self._waiting[tenant_id].popleft()
            if not self._waiting[tenant_id]:
                del self._waiting[tenant_id]
            if not turn.done():
                self._let_in[tenant_id] = next(self._clock)
                turn.set_result(None)
                return
        self._free += 1
        if self._free == self._places:
            self._let_in.clear()
