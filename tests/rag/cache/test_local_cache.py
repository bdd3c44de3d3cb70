"""rag/cache/local.py: bounded in bytes and time, by a clock of the tests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.cache.local import ENTRY_BYTES, MOST_CALLERS, LocalCache, LocalRateLimit


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_it_never_holds_more_bytes_than_it_may_and_drops_what_was_not_used() -> None:
    cache = LocalCache(10 * (ENTRY_BYTES + 1 + 100))
    for name in "abcdefghij":
        await cache.put(name, bytes(100), 60)
    assert await cache.get("a") == bytes(100)
    await cache.put("k", bytes(100), 60)
    assert await cache.get("b") is None
    assert await cache.get("a") == bytes(100)


async def test_a_value_too_large_is_not_kept_and_takes_the_old_one_with_it() -> None:
    cache = LocalCache(10_000)
    await cache.put("a", b"old", 60)
    await cache.put("a", bytes(5_000), 60)
    assert await cache.get("a") is None
    assert cache.size_bytes == 0


async def test_a_value_is_forgotten_in_time() -> None:
    time = Time()
    cache = LocalCache(10_000, time)
    await cache.put("a", b"1", 5)
    time.now += 4.9
    assert await cache.get("a") == b"1"
    time.now += 0.1
    assert await cache.get("a") is None
    assert cache.size_bytes == 0


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 900), st.booleans()), max_size=60))
async def test_what_it_holds_is_what_was_put_last_and_its_size_is_right(steps: list[tuple[str, int, bool]]) -> None:
    cache, put = LocalCache(4_000), {}
    for key, size, write in steps:
        if write:
            put[key] = bytes(size)
            await cache.put(key, put[key], 60)
        else:
            assert await cache.get(key) in (None, put.get(key))
        assert 0 <= cache.size_bytes <= 4_000
    held = [value for key in "abcdef" if (value := await cache.get(key)) is not None]
    assert cache.size_bytes == sum(len(value) + ENTRY_BYTES + 1 for value in held)


async def test_a_caller_may_ask_in_a_burst_and_then_at_its_rate() -> None:
    time = Time()
    limit = LocalRateLimit(2.0, 3, time)
    assert [await limit.wait_seconds("a") for _ in range(4)] == [0, 0, 0, pytest.approx(0.5)]
    time.now += 0.5
    assert [await limit.wait_seconds("a") for _ in range(2)] == [0, pytest.approx(0.5)]
    time.now += 60
    assert [await limit.wait_seconds("a") for _ in range(4)] == [0, 0, 0, pytest.approx(0.5)]
    assert await limit.wait_seconds("b") == 0


async def test_callers_are_forgotten_beyond_a_number() -> None:
    limit = LocalRateLimit(1.0, 1, Time())
    for number in range(MOST_CALLERS + 5):
        assert await limit.wait_seconds(str(number)) == 0
    assert len(limit._due) == MOST_CALLERS
