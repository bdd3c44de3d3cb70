"""api/shared_pressure.py over a real Redis, as several processes use it."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from api.admission import Admission
from api.shared_pressure import share_pressure
from rag.cache.board import RedisBoard
from rag.cache.redis_cache import RedisClient
from tests.services.missing import missing
from tests.services.redis import INSTALL, RedisServer, program, redis_server


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    if program() is None:
        missing(INSTALL)
    with redis_server() as server:
        yield server


@pytest.fixture
async def boards(redis: RedisServer) -> AsyncIterator[list[RedisBoard]]:
    redis.flush()
    clients = [RedisClient(redis.url, 2.0) for _ in range(3)]
    yield [RedisBoard(client, f"process {number}") for number, client in enumerate(clients)]
    for client in clients:
        await client.close()


async def test_each_process_reads_what_the_others_said_last(boards: list[RedisBoard]) -> None:
    assert await boards[0].exchange(b"one") == []
    assert await boards[1].exchange(b"two words") == [b"one"]
    await boards[0].exchange(b"three")
    assert sorted(await boards[2].exchange(b"")) == [b"three", b"two words"]


async def test_what_a_dead_process_said_is_taken_away(redis: RedisServer, boards: list[RedisBoard]) -> None:
    redis.command("HSET", "millrace:board", "dead", "1000.5 long ago")
    assert await boards[0].exchange(b"one") == []
    assert redis.command("HEXISTS", "millrace:board", "dead") == b":0"


async def test_without_redis_there_is_nobody_else(redis: RedisServer) -> None:
    client = RedisClient("redis://127.0.0.1:1/0", 0.5)
    assert await RedisBoard(client, "alone").exchange(b"one") == []
    await client.close()


class Board:
    """Says what it is told to, and remembers what it heard."""

    def __init__(self, lines: Sequence[bytes]) -> None:
        self.lines = lines
        self.heard: list[bytes] = []
        self.exchanged = asyncio.Event()

    async def exchange(self, line: bytes) -> Sequence[bytes]:
        self.heard.append(line)
        self.exchanged.set()
        return self.lines


async def test_pressed_processes_are_summed_and_calm_ones_left_out() -> None:
    class Hearing(Admission):
        said: tuple[float, dict[str, int]] | None = None
        done = asyncio.Event()

        def hear(self, limit: float, active: dict[str, int]) -> None:
            self.said = (limit, active)
            self.done.set()

    board = Board([b'[4.5, {"a": 2}]', b'[2.5, {"a": 1, "b": 3}]', b'[0.0, {"c": 9}]', b"{", b"[1]", b"[1, 2]"])
    admission = Hearing(1.0)
    ticket = admission.admit("a")
    sharing = asyncio.create_task(share_pressure(admission, board))
    await admission.done.wait()
    sharing.cancel()
    await asyncio.wait({sharing})
    assert admission.said == (7.0, {"a": 3, "b": 3})
    assert board.heard == [b'[0.0,{"a":1}]']
    ticket.done(answered=False)
