"""When a process that has ended is started again."""

import time
from collections.abc import Callable

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
# a process that lived for so long did not die of its start
HEALTHY_SECONDS = 60.0


class Restarts:
    """How long to wait before each start: twice as long as before the last one, and little after a life that was long."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pause = FIRST_PAUSE_SECONDS
        self._started = 0.0

    def begin(self) -> None:
        """A life begins."""
        self._started = self._clock()

    def pause_seconds(self) -> float:
        """The life that began last has ended: how long to wait for the next one."""
        healthy = self._clock() - self._started > HEALTHY_SECONDS
        self._pause = FIRST_PAUSE_SECONDS if healthy else min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        return self._pause
