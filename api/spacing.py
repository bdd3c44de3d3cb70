"""Searches begin one after the other, as far apart as this process needs for one (docs/adr/0032-spacing.md).

Those that come together would otherwise stay together: a loop that works on thirty requests by turns ends the first when it ends the
last, so that all of them ask the next service in the same moment, and come back in the same moment. Apart, each is worked on while the
others wait for the store and their vendors. Only those that come together after a lull begin at once: they have nobody to stay apart from.
"""

import asyncio
import math
import time

from rag.errors import Overloaded
from rag.ports import Clock
from rag.threads import current_load

LANE = "loop"
# of the time, what searches that come together may take of this process
SHARE = 0.8
FIRST_SECONDS = 0.002
# What a search costs is known by the CPU that was used since the last one, for whatever: far apart, that says little.
MOST_SECONDS = 0.003
NEW = 1 / 64
MOST_WAITING = 1024
# without the end of a search for so long, a server was idle
LULL_SECONDS = 1.0


class Spacing:
    """Who begins next, in the order they came. Used on the event loop only."""

    def __init__(self, cpu_clock: Clock = time.process_time, clock: Clock = time.monotonic) -> None:
        """`cpu_clock` tells the seconds of CPU that this process has used."""
        self._turn = asyncio.Semaphore(1)
        self._clock = clock
        self._ended_at = -math.inf
        self._cpu_clock = cpu_clock
        self._cpu_at = cpu_clock()
        self._each = FIRST_SECONDS
        self._waiting = 0

    @property
    def seconds(self) -> float:
        """From one beginning to the next."""
        return self._each / SHARE

    def ended(self) -> None:
        """A search that had its turn is over, however it went."""
        self._ended_at = self._clock()

    async def turn(self) -> None:
        """Return when one more may begin: at once, unless another one just has. Raises `Overloaded` when too many wait."""
        if self._clock() - self._ended_at > LULL_SECONDS:
            return
        if self._waiting == MOST_WAITING:
            raise Overloaded(f"{MOST_WAITING} searches wait for their turn", MOST_WAITING * self.seconds)
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        now = self._cpu_clock()
        self._each += (min(now - self._cpu_at, MOST_SECONDS) - self._each) * NEW
        self._cpu_at = now
        asyncio.get_running_loop().call_later(self.seconds, self._turn.release)
        if (load := current_load.get()) is not None:
            load.lane_seconds[LANE] = self.seconds  # to admission the process is a lane of one thread
