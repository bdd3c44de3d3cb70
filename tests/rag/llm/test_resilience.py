"""The guard: turns, deadline, and which failure is tried a second time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from rag.errors import ProviderBadReply, ProviderBusy, ProviderError, ProviderRefused, ProviderUnreachable
from rag.llm.resilience import Guard
from rag.llm.transport import ConnectionLost


class Attempts:
    """Fails with the given errors in turn, then answers."""

    def __init__(self, *errors: ProviderError) -> None:
        self.errors = list(errors)
        self.made = 0

    async def call(self) -> str:
        self.made += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"

    async def stream(self) -> AsyncIterator[str]:
        yield await self.call()


async def streamed(guard: Guard, attempts: Attempts) -> str:
    async with aclosing(guard.stream(attempts.stream)) as items:
        return "".join([item async for item in items])


AGAIN = [ConnectionLost("lost"), ProviderBusy("busy", 0.0)]
NEVER = [
    ProviderBusy("busy"),
    ProviderBusy("busy", 3600.0),
    ProviderRefused("no"),
    ProviderBadReply("what"),
    ProviderUnreachable("gone"),
    ProviderError("failed"),
]


@pytest.mark.parametrize("error", AGAIN, ids=lambda error: type(error).__name__)
async def test_what_reached_nobody_is_tried_once_more(error: ProviderError) -> None:
    guard = Guard("m@P", 1, 10.0)
    for run in (lambda attempts: guard.call(attempts.call), lambda attempts: streamed(guard, attempts)):
        once, twice = Attempts(error), Attempts(error, error)
        assert await run(once) == "answer"
        with pytest.raises(type(error)):
            await run(twice)
        assert (once.made, twice.made) == (2, 2)


@pytest.mark.parametrize("error", NEVER, ids=repr)
async def test_everything_else_fails_at_once(error: ProviderError) -> None:
    guard = Guard("m@P", 1, 10.0)
    for run in (lambda attempts: guard.call(attempts.call), lambda attempts: streamed(guard, attempts)):
        attempts = Attempts(error)
        with pytest.raises(type(error)):
            await run(attempts)
        assert attempts.made == 1


async def test_no_more_calls_than_turns_are_under_way() -> None:
    guard, under_way, most = Guard("m@P", 3, 10.0), 0, 0

    async def attempt() -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(5):
            await asyncio.sleep(0)
        under_way -= 1

    await asyncio.gather(*(guard.call(attempt) for _ in range(20)))
    assert most == 3


async def test_waiting_for_a_turn_ends_at_the_deadline() -> None:
    guard, release = Guard("m@P", 1, 0.05), asyncio.Event()
    holder = asyncio.create_task(guard.call(release.wait))
    await asyncio.sleep(0)
    with pytest.raises(ProviderBusy, match="m@P"):
        await guard.call(release.wait)
    release.set()
    await holder


async def test_a_cancelled_call_gives_its_turn_back() -> None:
    guard = Guard("m@P", 1, 10.0)
    holder = asyncio.create_task(guard.call(asyncio.Event().wait))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(guard.call(asyncio.Event().wait))
    await asyncio.sleep(0)
    waiting.cancel()
    holder.cancel()
    await asyncio.gather(holder, waiting, return_exceptions=True)
    assert await guard.call(Attempts().call) == "answer"
