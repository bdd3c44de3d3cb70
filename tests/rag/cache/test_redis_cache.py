"""rag/cache/redis_cache.py against a real Redis that is killed, stopped and emptied under it."""

import asyncio
import time

import pytest

from rag.cache.local import LocalCache, LocalRateLimit
from rag.cache.redis_cache import MOST_BYTES, RedisCache, RedisClient, RedisRateLimit
from rag.cache.tiered import TieredCache
from rag.errors import SettingsError
from tests.services.redis import RedisServer


@pytest.fixture
def cache(client: RedisClient) -> RedisCache:
    return RedisCache(client)


async def until_it_answers(cache: RedisCache) -> None:
    async with asyncio.timeout(20):
        while (await cache.health())["status"] != "green":  # noqa: ASYNC110 - another process starts
            await asyncio.sleep(0.05)


async def test_what_one_process_put_another_one_gets(redis: RedisServer, cache: RedisCache) -> None:
    await cache.put("a", b"\x00\xff", 60)
    other = RedisClient(redis.url, 1.0)
    assert await RedisCache(other).get("a") == b"\x00\xff"
    await other.close()


async def test_a_dead_redis_is_a_miss_and_comes_back_by_itself(redis: RedisServer, cache: RedisCache) -> None:
    await cache.put("a", b"1", 60)
    redis.kill()
    assert await cache.get("a") is None
    await cache.put("a", b"1", 60)
    assert (await cache.health())["status"] == "yellow"
    redis.start()
    await until_it_answers(cache)
    assert await cache.get("a") is None  # it had nothing on disk
    await cache.put("a", b"2", 60)
    assert await cache.get("a") == b"2"


async def test_a_hanging_redis_costs_one_wait_and_not_one_a_call(redis: RedisServer, cache: RedisCache) -> None:
    await cache.put("a", b"1", 60)
    redis.hang()
    started = time.monotonic()
    for _ in range(50):
        assert await cache.get("a") is None
    assert time.monotonic() - started < 0.25 * 4
    redis.go_on()
    await until_it_answers(cache)
    assert await cache.get("a") == b"1"  # the answer to this question, not to an older one


async def test_answers_stay_with_their_questions_when_callers_give_up(redis: RedisServer, cache: RedisCache) -> None:
    for number in range(20):
        await cache.put(f"key {number}", str(number).encode(), 60)

    async def ask(number: int) -> bytes | None:
        try:
            async with asyncio.timeout(0.0005 * (number % 4)):
                return await cache.get(f"key {number}")
        except TimeoutError:
            return None

    for _ in range(20):
        answers = await asyncio.gather(*(ask(number) for number in range(20)))
        assert all(answer in (None, str(number).encode()) for number, answer in enumerate(answers))
    await until_it_answers(cache)
    assert await cache.get("key 7") == b"7"


async def test_an_emptied_redis_only_misses(redis: RedisServer, cache: RedisCache) -> None:
    await cache.put("a", b"1", 60)
    redis.flush()
    assert await cache.get("a") is None
    assert (await cache.health())["status"] == "green"


async def test_a_value_over_its_limit_is_not_sent(cache: RedisCache) -> None:
    await cache.put("a", bytes(MOST_BYTES + 1), 60)
    assert await cache.get("a") is None


async def test_a_wrong_password_is_a_cache_that_misses_and_says_nothing_of_it(redis: RedisServer) -> None:
    client = RedisClient(f"redis://:secret@127.0.0.1:{redis.port}/0", 0.5)
    assert await RedisCache(client).get("a") is None
    health = await client.health()
    assert health["status"] == "yellow"
    assert "secret" not in str(health)
    await client.close()


def test_an_address_that_is_none_is_refused_without_being_shown() -> None:
    with pytest.raises(SettingsError) as refused:
        RedisClient("http://:secret@host", 1.0)
    assert "secret" not in str(refused.value)


async def test_a_near_cache_spares_the_way_and_outlives_the_far_one(redis: RedisServer, cache: RedisCache) -> None:
    await TieredCache(LocalCache(1 << 20), cache).put("a", b"1", 60)
    tiered = TieredCache(LocalCache(1 << 20), cache)
    assert await tiered.get("a") == b"1"
    redis.kill()
    assert await tiered.get("a") == b"1"
    assert await tiered.get("b") is None


# ---------------------------------------------------------------------------------------------------- rate limits
async def test_processes_share_a_callers_rate(redis: RedisServer, client: RedisClient) -> None:
    other = RedisClient(redis.url, 1.0)
    limits = [RedisRateLimit(one, 1.0, 10, LocalRateLimit(1.0, 10)) for one in (client, other)]
    waits = [await limits[turn % 2].wait_seconds("a") for turn in range(20)]
    assert sum(wait == 0.0 for wait in waits) in (10, 11)
    assert all(0 < wait <= 1.0 for wait in waits[11:])
    assert await limits[0].wait_seconds("b") == 0.0
    await other.close()


async def test_without_redis_each_process_keeps_the_rate_by_itself(redis: RedisServer, client: RedisClient) -> None:
    limit = RedisRateLimit(client, 1.0, 3, LocalRateLimit(1.0, 3))
    assert await limit.wait_seconds("a") == 0.0
    redis.kill()
    waits = [await limit.wait_seconds("a") for _ in range(5)]
    assert [wait == 0.0 for wait in waits] == [True, True, True, False, False]
