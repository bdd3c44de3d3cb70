"""One suite over every `Cache`: in this process, in Redis, and one before the other."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from rag.cache.local import LocalCache
from rag.cache.redis_cache import RedisCache, RedisClient
from rag.cache.tiered import TieredCache
from rag.ports import Cache
from tests.services.missing import missing
from tests.services.redis import INSTALL, program, redis_server


@pytest.fixture(scope="module")
def redis_url():
    if program() is None:
        missing(INSTALL)
    with redis_server() as server:
        yield server.url


@pytest.fixture(params=["local", "redis", "tiered"])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[Cache]:
    near = LocalCache(1 << 20)
    if request.param == "local":
        cache: Cache = near
    else:
        far = RedisCache(RedisClient(request.getfixturevalue("redis_url"), 2.0))
        cache = far if request.param == "redis" else TieredCache(near, far)
    yield cache
    await cache.close()


async def test_what_was_put_is_there_byte_for_byte(cache: Cache) -> None:
    for value in (b"", b"text", bytes(range(256)) * 200):
        await cache.put("key", value, 60)
        assert await cache.get("key") == value


async def test_what_was_never_put_is_not(cache: Cache) -> None:
    assert await cache.get("another key") is None


async def test_keys_are_told_apart_whatever_is_in_them(cache: Cache) -> None:
    keys = ["a", "A", "a ", "ä", "a:b", "a\nb", "x" * 300]
    for key in keys:
        await cache.put(key, key.encode(), 60)
    assert [await cache.get(key) for key in keys] == [key.encode() for key in keys]


async def test_a_later_value_takes_the_place_of_an_earlier_one(cache: Cache) -> None:
    await cache.put("key", b"1", 60)
    await cache.put("key", b"2", 60)
    assert await cache.get("key") == b"2"


async def test_a_value_is_forgotten_after_its_time(cache: Cache) -> None:
    await cache.put("short", b"1", 0.01)
    async with asyncio.timeout(10):
        while await cache.get("short") is not None:  # noqa: ASYNC110 - another process forgets it
            await asyncio.sleep(0.01)


async def test_many_callers_at_a_time_get_what_they_asked_for(cache: Cache) -> None:
    await asyncio.gather(*(cache.put(f"key {number}", str(number).encode(), 60) for number in range(200)))
    answers = await asyncio.gather(*(cache.get(f"key {number}") for number in range(200)))
    assert answers == [str(number).encode() for number in range(200)]


async def test_it_tells_its_health_and_closes_twice(cache: Cache) -> None:
    assert (await cache.health())["status"] == "green"
    await cache.close()
    await cache.close()
