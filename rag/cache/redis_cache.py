"""What all processes remember together, in Redis. Redis may be slow, gone or emptied at any time: then things are computed again.

Every call has a short time, and a breaker leaves a Redis alone that did not answer: a dead or hanging one costs one wait, not
one a request.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from rag.breaker import Breaker
from rag.errors import SettingsError, Unavailable
from rag.ports import RateLimit

T = TypeVar("T")

PREFIX = "millrace:"
CONNECTIONS = 64
REST_SECONDS, LONGEST_REST_SECONDS = 1.0, 5.0
MOST_BYTES = 1 << 20

log = structlog.get_logger("millrace.cache")

# The generic cell rate algorithm, on Redis' own clock. Returns the seconds to wait as text, because Redis cuts numbers to integers.
RATE_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local interval, slack = tonumber(ARGV[1]), tonumber(ARGV[2])
local due = math.max(now, tonumber(redis.call('GET', KEYS[1]) or now))
local wait = due - now - slack
if wait > 0.000001 then
    return tostring(wait)
end
due = due + interval
redis.call('SET', KEYS[1], string.format('%.6f', due), 'PX', math.ceil((due - now) * 1000) + 1000)
return '0'
"""


class RedisClient:
    """One Redis: its connections, its time limit, its breaker. Shared by what is kept there."""

    def __init__(self, url: str, timeout_seconds: float) -> None:
        """Does not connect. Raises `SettingsError` for a URL that cannot be read; the message does not hold it."""
        try:
            pool = BlockingConnectionPool.from_url(
                url, max_connections=CONNECTIONS, timeout=timeout_seconds, socket_timeout=timeout_seconds,
                socket_connect_timeout=timeout_seconds, retry=Retry(NoBackoff(), 0),
            )  # fmt: skip
        except (ValueError, TypeError):
            raise SettingsError("redis_url is not the address of a Redis: redis://host:6379/0") from None
        self.redis = Redis(connection_pool=pool)
        self._seconds = timeout_seconds
        # a failure ratio of nothing: the first call that fails is enough
        self.breaker = Breaker(
            "redis", min_calls=1, failure_ratio=0.0, rest_seconds=REST_SECONDS, longest_rest_seconds=LONGEST_REST_SECONDS
        )

    async def call(self, command: Awaitable[T]) -> T:
        """The command's result in time. Raises `Unavailable`."""
        try:
            with self.breaker.watch():
                try:
                    async with asyncio.timeout(self._seconds):
                        return await command
                except (RedisError, OSError, TimeoutError) as error:
                    log.warning("redis does not answer, going on without it", error=type(error).__name__)
                    raise Unavailable("redis does not answer") from error
        finally:
            if asyncio.iscoroutine(command):
                command.close()  # one that the breaker kept from being awaited

    async def health(self) -> dict[str, str]:
        """`{"type": "redis", "status": "green" | "yellow"}`: the server works without it, so it is never red."""
        try:
            await self.call(self.redis.ping())
        except Unavailable as error:
            return {"type": "redis", "status": "yellow", "error": str(error)}
        return {"type": "redis", "status": "green"}

    async def close(self) -> None:
        """Close the connections."""
        await self.redis.aclose(close_connection_pool=True)


class RedisCache:
    """A `Cache` that all processes with the same Redis share."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def get(self, key: str) -> bytes | None:
        """As `Cache.get`."""
        try:
            return await self._client.call(self._client.redis.get(PREFIX + key))
        except Unavailable:
            return None

    async def put(self, key: str, value: bytes, seconds: float) -> None:
        """As `Cache.put`. A value of more than 1 MiB is not kept."""
        if len(value) > MOST_BYTES:
            return
        try:
            await self._client.call(self._client.redis.set(PREFIX + key, value, px=max(1, int(seconds * 1000))))
        except Unavailable:
            return

    async def health(self) -> dict[str, str]:
        """As `Cache.health`."""
        return await self._client.health()

    async def close(self) -> None:
        """As `Cache.close`."""
        await self._client.close()


class RedisRateLimit:
    """A `RateLimit` that all processes with the same Redis keep together; while there is no Redis, each process keeps its own."""

    def __init__(self, client: RedisClient, per_second: float, burst: int, alone: RateLimit) -> None:
        """`alone` decides while Redis does not answer."""
        self._client = client
        self._script = client.redis.register_script(RATE_SCRIPT)
        self._arguments = (1.0 / per_second, (burst - 1) / per_second)
        self._alone = alone

    async def wait_seconds(self, caller: str) -> float:
        """As `RateLimit.wait_seconds`."""
        try:
            return float(await self._client.call(self._script(keys=[f"{PREFIX}rate:{caller}"], args=self._arguments)))
        except Unavailable:
            return await self._alone.wait_seconds(caller)
