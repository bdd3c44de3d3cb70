"""api/shared_pressure.py over a real Redis, as several processes use it."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace

import pytest

from api.admission import PROBES, Admission, Ticket
from api.app import create_app
from api.memory import open_memory
from api.shared_pressure import share_pressure
from rag.cache.board import RedisBoard
from rag.cache.redis_cache import RedisClient
from rag.errors import Overloaded
from tests.api.conftest import Server
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


async def test_a_tenant_that_has_its_share_at_one_server_is_refused_at_another(api: Server, redis: RedisServer) -> None:
    redis.flush()
    settings = api.parts.settings.model_copy(update={"redis_url": redis.url, "redis_timeout_seconds": 2.0})
    here, there = (Admission(1.0, clock=lambda: 0.0) for _ in range(2))  # no time passes: pressure stays

    async def statuses() -> tuple[int, int]:
        """What the one tenant is told here, and the other."""
        return (await api.call("GET", "/datasets")).status, (await api.call("GET", "/datasets", key=api.other_key)).status

    async def until_told(wanted: tuple[int, int]) -> None:
        async with asyncio.timeout(20):
            while await statuses() != wanted:  # noqa: ASYNC110 - what another server says comes when it comes
                await asyncio.sleep(0.02)

    async with open_memory(settings, api.parts.metrics) as memory, open_memory(settings, api.parts.metrics) as other_memory:
        api.app = create_app(replace(api.parts, settings=settings, memory=memory, admission=here))
        api.client = api.app.test_client()
        assert await statuses() == (200, 200)  # keys that were used are known
        press(here, "stranger")
        held = press(there, api.tenant)
        assert await statuses() == (200, 200)  # nothing is known here of what happens there
        sharing = [asyncio.create_task(share_pressure(at, to.board)) for at, to in ((here, memory), (there, other_memory))]
        await until_told((429, 200))
        redis.kill()
        await until_told((200, 200))  # each decides by itself
        redis.start()
        await until_told((429, 200))
        for ticket in held:
            ticket.done(answered=False)
        await until_told((200, 200))
        for task in sharing:
            task.cancel()
        await asyncio.wait(sharing)


def press(admission: Admission, caller: str) -> list[Ticket]:
    """Bring so many requests of a caller that the next one would wait too long; those at work."""
    held = [admission.admit(caller) for _ in range(8)]
    for _ in range(PROBES):
        admission.probe(1.0)
    with pytest.raises(Overloaded):
        admission.admit(caller)
    return held
