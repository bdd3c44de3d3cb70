"""What the server remembers and limits across requests, in this process or together with others in a Redis."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from api.metrics import Metrics
from api.results import Results
from rag.cache.local import LocalCache, LocalRateLimit
from rag.cache.tiered import TieredCache
from rag.ports import Board, Cache, RateLimit
from rag.settings import Settings


@dataclass(frozen=True, slots=True)
class Memory:
    """`results` is None where no results are remembered, `rate_limit` where callers have none, `board` where there is no
    other process to talk to."""

    cache: Cache
    results: Results | None = None
    rate_limit: RateLimit | None = None
    board: Board | None = None


@asynccontextmanager
async def open_memory(settings: Settings, metrics: Metrics) -> AsyncIterator[Memory]:
    """As the settings say. Connects to nothing yet. Raises `SettingsError`."""
    cache: Cache = LocalCache(settings.cache_bytes)
    rate, burst = settings.rate_limit_per_second, settings.rate_limit_burst
    limit: RateLimit | None = LocalRateLimit(rate, burst) if rate else None
    board: Board | None = None
    if settings.redis_url:
        # imported where it is switched on: 30 MB, and OpenTelemetry with it
        from rag.cache.board import RedisBoard
        from rag.cache.redis_cache import RedisCache, RedisClient, RedisRateLimit

        client = RedisClient(settings.redis_url, settings.redis_timeout_seconds)
        metrics.watch_breakers(lambda: [("redis", "cache", client.breaker.state)])
        cache = TieredCache(cache, RedisCache(client))
        board = RedisBoard(client, uuid.uuid4().hex)
        limit = RedisRateLimit(client, rate, burst, limit) if limit is not None else None
    keeps = bool(settings.redis_url) if settings.cache_results is None else settings.cache_results
    results = Results(cache, settings.cache_seconds, on_asked=metrics.cache_asked) if keeps else None
    try:
        yield Memory(cache, results, limit, board)
    finally:
        await cache.close()
