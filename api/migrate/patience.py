"""Waiting for a part that does not answer for a moment: a move of hours should not end because of a restart of seconds."""

import time
from collections.abc import Callable
from typing import TypeVar

from rag.errors import DeadlineExceeded, Overloaded, Unavailable

T = TypeVar("T")

PATIENCE_SECONDS = 120.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 5.0


def patiently(
    call: Callable[[], T], *, seconds: float = PATIENCE_SECONDS, pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:  # fmt: skip
    """What `call` returns, called again for so long while a part cannot answer. Raises its last error."""
    give_up, wait = clock() + seconds, _FIRST_PAUSE_SECONDS
    while True:
        try:
            return call()
        except (Unavailable, Overloaded, DeadlineExceeded):
            if clock() + wait > give_up:
                raise
        pause(wait)
        wait = min(2 * wait, _LONGEST_PAUSE_SECONDS)
