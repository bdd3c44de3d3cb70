"""What this process remembers: a cache bounded in bytes, and how fast callers may ask."""

import time
from collections import OrderedDict

from rag.ports import Clock

# of an entry beside its key and value: the tuple, two objects' heads, its place in the dictionary
ENTRY_BYTES = 300
MOST_CALLERS = 10_000


class LocalCache:
    """A `Cache` in this process; the entry that was not used for the longest time goes first."""

    def __init__(self, max_bytes: int, clock: Clock = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self.size_bytes = 0

    async def get(self, key: str) -> bytes | None:
        """As `Cache.get`."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[1] <= self._clock():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry[0]

    async def put(self, key: str, value: bytes, seconds: float) -> None:
        """As `Cache.put`. A value that is larger than a quarter of the cache is not kept."""
        self._drop(key)
        size = _size(key, value)
        if size > self._max_bytes // 4:
            return
        self._entries[key] = (value, self._clock() + seconds)
        self.size_bytes += size
        while self.size_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    async def health(self) -> dict[str, str]:
        """As `Cache.health`."""
        return {"type": "local", "status": "green"}

    async def close(self) -> None:
        """As `Cache.close`."""
        self._entries.clear()
        self.size_bytes = 0

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size_bytes -= _size(key, entry[0])


class LocalRateLimit:
    """A `RateLimit` of this process alone, by the generic cell rate algorithm (ITU-T I.371): one number a caller."""

    def __init__(self, per_second: float, burst: int, clock: Clock = time.monotonic) -> None:
        self._interval = 1.0 / per_second
        self._slack = (burst - 1) * self._interval
        self._clock = clock
        self._due: OrderedDict[str, float] = OrderedDict()

    async def wait_seconds(self, caller: str) -> float:
        """As `RateLimit.wait_seconds`."""
        now = self._clock()
        due = max(now, self._due.get(caller, now))
        wait = due - now - self._slack
        if wait > 1e-9:
            return wait
        self._due[caller] = due + self._interval
        self._due.move_to_end(caller)
        while len(self._due) > MOST_CALLERS:
            self._due.popitem(last=False)
        return 0.0


def _size(key: str, value: bytes) -> int:
    return len(key) + len(value) + ENTRY_BYTES
