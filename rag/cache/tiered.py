"""A near cache before a far one."""

from rag.ports import Cache

NEAR_SECONDS = 60.0


class TieredCache:
    """A `Cache` that asks the near one first and keeps there, for a minute, what the far one had.

    Fit for values that belong to their keys for ever: nobody can take a value back from other processes' near caches.
    """

    def __init__(self, near: Cache, far: Cache) -> None:
        self._near = near
        self._far = far

    async def get(self, key: str) -> bytes | None:
        """As `Cache.get`."""
        value = await self._near.get(key)
        if value is None:
            value = await self._far.get(key)
            if value is not None:
                await self._near.put(key, value, NEAR_SECONDS)
        return value

    async def put(self, key: str, value: bytes, seconds: float) -> None:
        """As `Cache.put`."""
        await self._near.put(key, value, seconds)
        await self._far.put(key, value, seconds)

    async def health(self) -> dict[str, str]:
        """The far one's."""
        return await self._far.health()

    async def close(self) -> None:
        """Close both."""
        await self._near.close()
        await self._far.close()
