"""How much time the work under way has left. One deadline travels with a request through all its stages, on the loop and in lanes."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_end: ContextVar[float] = ContextVar("deadline", default=math.inf)


def seconds_left() -> float:
    """Seconds until the deadline, negative behind it, infinite without one."""
    return _end.get() - time.monotonic()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Give the block at most `seconds`, or what is left where that is less. It sets the time, it does not end the block.

    Not around a `yield` of an asynchronous generator: its pieces may run in different contexts.
    """
    token = _end.set(min(_end.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _end.reset(token)
