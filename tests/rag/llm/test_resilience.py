"""The guard: turns, deadline, and which failure is tried a second time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from rag.deadline import seconds_left, within
from rag.errors import DeadlineExceeded, ProviderBadReply, ProviderBusy, ProviderError, ProviderRefused, ProviderUnreachable
from rag.llm.breaker import CircuitOpen, NoTurn, VendorBreaker
from rag.llm.resilience import Guard, Turns
from rag.llm.transport import ConnectionLost, RequestTimeout


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
    RequestTimeout("slow"),
    ProviderError("failed"),
]


@pytest.mark.parametrize("error", AGAIN, ids=lambda error: type(error).__name__)
async def test_what_reached_nobody_is_tried_once_more(error: ProviderError) -> None:
    for run in (lambda guard, attempts: guard.call(attempts.call), streamed):
        guard, once, twice = Guard("m@P", 1, 10.0), Attempts(error), Attempts(error, error)
        assert await run(guard, once) == "answer"
        with pytest.raises(type(error)):
            await run(guard, twice)
        assert (once.made, twice.made) == (2, 2)


@pytest.mark.parametrize("error", NEVER, ids=repr)
async def test_everything_else_fails_at_once(error: ProviderError) -> None:
    for run in (lambda guard, attempts: guard.call(attempts.call), streamed):
        guard, attempts = Guard("m@P", 1, 10.0), Attempts(error)
        with pytest.raises(type(error)):
            await run(guard, attempts)
        assert attempts.made == 1


REPEATED = [ProviderBusy("busy"), ProviderUnreachable("gone"), RequestTimeout("slow"), ProviderError("failed")]


@pytest.mark.parametrize("error", REPEATED, ids=repr)
async def test_what_may_be_computed_twice_is_tried_again_after_a_failure(error: ProviderError) -> None:
    guard, attempts = Guard("m@P", 1, 10.0, repeats_failures=True), Attempts(error)
    assert await guard.call(attempts.call) == "answer"
    assert attempts.made == 2


@pytest.mark.parametrize("error", [error for error in NEVER if repr(error) not in map(repr, REPEATED)], ids=repr)
async def test_what_a_second_attempt_cannot_help_is_never_repeated(error: ProviderError) -> None:
    guard, attempts = Guard("m@P", 1, 10.0, repeats_failures=True), Attempts(error)
    with pytest.raises(type(error)):
        await guard.call(attempts.call)
    assert attempts.made == 1


async def test_a_call_may_be_given_less_time_than_the_guard_has() -> None:
    guard, attempts = Guard("m@P", 1, 3600.0, repeats_failures=True), Attempts(ProviderBusy("busy", 5.0))
    with pytest.raises(ProviderBusy), within(1.0):
        await guard.call(attempts.call)
    assert attempts.made == 1


async def test_an_endpoint_that_keeps_failing_is_not_asked_any_more() -> None:
    guard = Guard("m@P", 1, 10.0, breaker=VendorBreaker("P", min_calls=3))
    for _ in range(3):
        with pytest.raises(ProviderError):
            await guard.call(Attempts(ProviderError("failed")).call)
    attempts = Attempts()
    for run in (lambda: guard.call(attempts.call), lambda: streamed(guard, attempts)):
        with pytest.raises(CircuitOpen):
            await run()
    assert attempts.made == 0


async def test_an_endpoint_that_waits_in_vain_for_requests_is_asked_again_and_never_left_alone() -> None:
    guard = Guard("m@P", 1, 10.0, breaker=VendorBreaker("P", min_calls=1), repeats_failures=True)
    for _ in range(3):
        attempts = Attempts(RequestTimeout("slow"), RequestTimeout("slow"))
        with pytest.raises(RequestTimeout):
            await guard.call(attempts.call)
        assert attempts.made == 2
    assert guard.breaker.state == "closed"


async def test_streams_that_are_left_early_count_as_answered() -> None:
    guard = Guard("m@P", 1, 10.0, breaker=VendorBreaker("P", min_calls=2))
    for _ in range(9):
        async with aclosing(guard.stream(Attempts().stream)) as items:
            await anext(items)
    with pytest.raises(ProviderError):
        await guard.call(Attempts(ProviderError("failed")).call)
    assert guard.breaker.state == "closed"


@pytest.mark.parametrize("error", AGAIN, ids=lambda error: type(error).__name__)
async def test_a_stream_that_has_begun_is_never_tried_again(error: ProviderError) -> None:
    begun = 0

    async def attempt() -> AsyncIterator[str]:
        nonlocal begun
        begun += 1
        yield "first"
        raise error

    with pytest.raises(type(error)):
        _ = [item async for item in Guard("m@P", 1, 10.0).stream(attempt)]
    assert begun == 1


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


async def test_a_second_attempt_is_not_made_when_others_have_found_the_endpoint_dead() -> None:
    guard = Guard("m@P", 10, 10.0, breaker=VendorBreaker("P", min_calls=5), repeats_failures=True)
    all_sent = asyncio.Barrier(10)
    made = 0

    async def attempt() -> None:
        nonlocal made
        made += 1
        if made <= 10:
            await all_sent.wait()
        raise ProviderUnreachable("gone")

    results = await asyncio.gather(*(guard.call(attempt) for _ in range(10)), return_exceptions=True)
    assert {str(result) for result in results} == {"gone"}
    assert made == 10 + 4


async def test_a_call_ends_with_the_request_it_is_made_for() -> None:
    guard, attempts = Guard("m@P", 1, 60.0, repeats_failures=True), Attempts()
    seen: list[float] = []

    async def attempt() -> None:
        seen.append(seconds_left())
        raise ProviderUnreachable("gone")

    with within(2.0), pytest.raises(ProviderUnreachable):
        await guard.call(attempt)
    first, second = seen
    assert first <= 1.0 < second <= 2.0
    for run in (lambda: guard.call(attempts.call), lambda: streamed(guard, attempts)):
        with within(-1.0), pytest.raises(DeadlineExceeded, match="m@P"):
            await run()
    assert attempts.made == 0


async def test_of_a_hanging_endpoint_that_may_be_asked_again_one_caller_pays_and_the_others_pass() -> None:
    now = 0.0
    breaker = VendorBreaker("P", min_calls=1, rest_seconds=5.0, clock=lambda: now)
    guard, hangs, asked = Guard("m@P", 8, 60.0, breaker=breaker, repeats_failures=True), asyncio.Event(), 0

    async def attempt() -> str:
        nonlocal asked
        asked += 1
        await hangs.wait()
        return "answer"

    with pytest.raises(ProviderUnreachable):
        await guard.call(Attempts(ProviderUnreachable("gone"), ProviderUnreachable("gone")).call)
    now = 5.0
    callers = [asyncio.create_task(guard.call(attempt)) for _ in range(100)]
    done, (probe,) = await asyncio.wait(callers, return_when=asyncio.FIRST_COMPLETED)
    assert (len(done), asked) == (99, 1)
    assert {type(caller.exception()) for caller in done} == {CircuitOpen}

    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    assert breaker.state == "half_open"
    next_probe = asyncio.create_task(guard.call(attempt))
    await asyncio.sleep(0)
    assert asked == 2
    hangs.set()
    assert await next_probe == "answer"
    assert breaker.state == "closed"
    assert await asyncio.gather(*(guard.call(attempt) for _ in range(20))) == ["answer"] * 20


async def test_a_stream_closes_the_breaker_with_its_first_piece() -> None:
    now = 0.0
    guard = Guard("m@P", 8, 60.0, breaker=VendorBreaker("P", min_calls=1, clock=lambda: now))
    with pytest.raises(ProviderUnreachable):
        await guard.call(Attempts(ProviderUnreachable("gone")).call)
    now = 60.0
    async with aclosing(guard.stream(Attempts().stream)) as items:
        await anext(items)
        assert guard.breaker.state == "closed"
        assert await guard.call(Attempts().call) == "answer"


async def test_guards_may_share_their_turns() -> None:
    turns, release = Turns(1), asyncio.Event()
    holder = asyncio.create_task(Guard("a@P", turns, 60.0).call(release.wait))
    await asyncio.sleep(0)
    with pytest.raises(NoTurn, match="b@P"):
        await Guard("b@P", turns, 0.02).call(Attempts().call)
    release.set()
    await holder
    assert await Guard("b@P", turns, 60.0).call(Attempts().call) == "answer"


async def test_no_more_callers_wait_for_a_turn_than_there_are_places() -> None:
    release = asyncio.Event()
    guard = Guard("m@P", Turns(1, waiting=2), 60.0)
    first = [asyncio.create_task(guard.call(release.wait)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(NoTurn, match="too many wait"):
        await guard.call(release.wait)
    first[1].cancel()
    await asyncio.gather(first[1], return_exceptions=True)
    fourth = asyncio.create_task(guard.call(release.wait))
    await asyncio.sleep(0)
    release.set()
    assert await asyncio.gather(first[0], first[2], fourth) == [True] * 3
    assert guard.breaker.state == "closed"
