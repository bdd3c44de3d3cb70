from collections.abc import AsyncIterator, Iterator

import pytest

from rag.cache.redis_cache import RedisClient
from tests.services.missing import missing
from tests.services.redis import INSTALL, RedisServer, program, redis_server


@pytest.fixture(scope="session")
def running_redis() -> Iterator[RedisServer]:
    if program() is None:
        missing(INSTALL)
    with redis_server() as server:
        yield server


@pytest.fixture
def redis(running_redis: RedisServer) -> Iterator[RedisServer]:
    """An empty Redis; whatever the test does to it, it runs again afterwards."""
    running_redis.flush()
    yield running_redis
    if running_redis.process is None:
        running_redis.start()
    running_redis.go_on()


@pytest.fixture
async def client(redis: RedisServer) -> AsyncIterator[RedisClient]:
    client = RedisClient(redis.url, 0.25)
    yield client
    await client.close()
