"""rag/cache/tiered.py: the near cache keeps nothing longer than it was meant to be kept."""

import pytest

from rag.cache.local import LocalCache
from rag.cache.tiered import NEAR_SECONDS, TieredCache


class Time:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_what_comes_from_the_far_cache_ends_with_its_time_there() -> None:
    time = Time()
    far = LocalCache(1 << 20, lambda: 0.0)  # one that never forgets
    writer, reader = (TieredCache(LocalCache(1 << 20, time), far, time) for _ in range(2))
    await writer.put("a", b"1", 5)
    time.now += 4.9
    assert await reader.get("a") == b"1"
    time.now += 0.2
    assert await reader.get("a") is None


async def test_it_is_asked_of_the_far_cache_again_after_a_minute() -> None:
    time = Time()
    far = LocalCache(1 << 20, lambda: 0.0)
    writer, reader = (TieredCache(LocalCache(1 << 20, time), far, time) for _ in range(2))
    await writer.put("a", b"1", 1000)
    assert await reader.get("a") == b"1"
    await writer.put("a", b"2", 1000)
    assert await reader.get("a") == b"1"
    time.now += NEAR_SECONDS + 1
    assert await reader.get("a") == b"2"


@pytest.mark.parametrize("kept", [b"", b"short", b"\x7f\xf8" + bytes(6) + b"not a number"])
async def test_what_nobody_put_there_is_a_miss(kept: bytes) -> None:
    far = LocalCache(1 << 20)
    await far.put("a", kept, 60)
    assert await TieredCache(LocalCache(1 << 20), far).get("a") is None
