"""api/pace.py: who is slow may be slow, who only holds on is let go."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from api.errors import ApiError
from api.pace import paced


class Line:
    """A client behind a line: each piece comes after that many seconds of `now`; with `silent` nothing comes after the last."""

    def __init__(self, *pieces: tuple[float, bytes], silent: bool = False) -> None:
        self.now = 0.0
        self._pieces = pieces
        self._silent = silent

    def clock(self) -> float:
        return self.now

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for seconds, piece in self._pieces:
            await asyncio.sleep(0)
            self.now += seconds
            yield piece
        if self._silent:
            await asyncio.Event().wait()


async def received(line: Line, idle_seconds: float = 10.0, rate: int = 100) -> int:
    return sum([len(piece) async for piece in paced(aiter(line), idle_seconds, rate, line.clock)])


async def test_a_body_that_comes_in_time_is_whole() -> None:
    assert await received(Line(*[(1.0, b"x" * 100)] * 50)) == 5_000


async def test_a_body_that_drips_is_given_up() -> None:
    with pytest.raises(ApiError, match="more slowly than 100 bytes a second") as error:
        await received(Line(*[(1.0, b"x")] * 50))
    assert error.value.status == 408


async def test_a_slow_body_is_waited_for_where_no_pace_is_asked() -> None:
    assert await received(Line(*[(1.0, b"x")] * 50), rate=0) == 50


async def test_a_silent_body_is_given_up() -> None:
    with pytest.raises(ApiError, match=r"silent for 0\.01 seconds") as error:
        await received(Line((0.0, b"x" * 1000), silent=True), idle_seconds=0.01)
    assert error.value.status == 408


async def test_the_time_we_take_for_a_piece_is_not_the_clients() -> None:
    line = Line(*[(0.1, b"x" * 100)] * 5)
    count = 0
    async for _ in paced(aiter(line), 1.0, 1_000, line.clock):
        line.now += 1_000
        count += 1
    assert count == 5
