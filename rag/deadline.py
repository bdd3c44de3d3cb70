"""How much time the work under way has left. One deadline travels with a request through all its stages, on the loop and in lanes."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar

# The part of a stage's time after which whoever waits for somebody else gives up, so that his own error is told and not just a late end.
_SHARE_OF_WAITING = 0.95


class _Allowance:
    """The time until `end` (`time.monotonic`), within an outer allowance."""

    __slots__ = ("end", "outer")

    def __init__(self, seconds: float, outer: "_Allowance | None") -> None:
        self.end = time.monotonic() + seconds
        self.outer = outer


_allowance: ContextVar[_Allowance | None] = ContextVar("allowance", default=None)


def seconds_left() -> float:
    """Seconds until the deadline, negative behind it, infinite without one."""
    allowance, end = _allowance.get(), math.inf
    while allowance is not None:
        end = min(end, allowance.end)
        allowance = allowance.outer
    return end - time.monotonic()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Give the block at most `seconds`, or what is left where that is less. It sets the time, it does not end the block.

    Not around a `yield` of an asynchronous generator: its pieces may run in different contexts.
    """
    token = _allowance.set(_Allowance(seconds, _allowance.get()))
    try:
        yield
    finally:
        _allowance.reset(token)


@asynccontextmanager
async def at_most(seconds: float, share: float = 1.0) -> AsyncIterator[None]:
    """Give the block at most `seconds`, and that share of what is left, and end it with `TimeoutError` when they are over.

    However the block is left, the time is over too for what it began and left behind: a thread nobody waits for sees that by
    `seconds_left`, and stops. Not around a `yield`, as `within`.
    """
    seconds = min(seconds, share * seconds_left())
    allowance = _Allowance(_SHARE_OF_WAITING * seconds, _allowance.get())
    async with asyncio.timeout(None if math.isinf(seconds) else seconds):
        token = _allowance.set(allowance)
        try:
            yield
        finally:
            _allowance.reset(token)
            allowance.end = -math.inf
