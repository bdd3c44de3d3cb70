"""A near cache before a far one."""

import struct
import time

from rag.ports import Cache, Clock

NEAR_SECONDS = 60.0
_END = struct.Struct(">d")


class TieredCache:
    """A `Cache` that asks the near one first and keeps there, for at most a minute, what the far one had.

    Fit for values that belong to their keys for ever: nobody can take a value back from other processes' near caches. What lies in
    the far one begins with the time at which it ends, eight bytes, so that the near one keeps it no longer.
    """

    def __init__(self, near: Cache, far: Cache, clock: Clock = time.time) -> None:
        """`clock` is one that other hosts share, as far as theirs are right."""
        self._near = near
        self._far = far
        self._clock = clock

    async def get(self, key: str) -> bytes | None:
        """As `Cache.get`."""
        value = await self._near.get(key)
        if value is not None:
            return value
        kept = await self._far.get(key)
        if kept is None or len(kept) < _END.size:
            return None
        left = _END.unpack_from(kept)[0] - self._clock()
        if not left > 0:
            return None
        value = kept[_END.size :]
        await self._near.put(key, value, min(left, NEAR_SECONDS))
        return value

    async def put(self, key: str, value: bytes, seconds: float) -> None:
        """As `Cache.put`."""
        await self._near.put(key, value, seconds)
        await self._far.put(key, _END.pack(self._clock() + seconds) + value, seconds)

    async def health(self) -> dict[str, str]:
        """The far one's."""
        return await self._far.health()

    async def close(self) -> None:
        """Close both."""
        await self._near.close()
        await self._far.close()
