"""The circuit breaker: when it opens, whom it lets through, and what it takes no notice of."""

import asyncio
from contextlib import suppress

import pytest

from rag.errors import ProviderBadReply, ProviderBusy, ProviderError, ProviderRefused, ProviderUnreachable
from rag.llm.breaker import CircuitOpen, NoTurn, VendorBreaker
from rag.llm.transport import RequestTimeout


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> VendorBreaker:
    return VendorBreaker("P", window_seconds=10.0, min_calls=4, failure_ratio=0.5, rest_seconds=2.0, longest_rest_seconds=7.0, clock=clock)


def call(breaker: VendorBreaker, error: BaseException | None = None) -> None:
    """One call that ends with the error, or well."""
    if error is None:
        with breaker.watch():
            return
    with suppress(type(error)), breaker.watch():
        raise error


def open_up(breaker: VendorBreaker) -> None:
    for _ in range(4):
        call(breaker, ProviderUnreachable("gone"))
    assert breaker.state == "open"


@pytest.mark.parametrize(
    "error", [ProviderError("500"), ProviderUnreachable("gone"), ProviderBusy("busy"), ProviderBadReply("html")], ids=repr
)
def test_it_opens_when_half_of_the_calls_fail(breaker: VendorBreaker, error: ProviderError) -> None:
    for ends_with in (None, error, None):
        call(breaker, ends_with)
    assert breaker.state == "closed"
    call(breaker, error)
    assert breaker.state == "open"
    with pytest.raises(CircuitOpen, match="P failed too often"):
        call(breaker)
    with pytest.raises(CircuitOpen):
        breaker.check()


def test_few_failures_prove_nothing(breaker: VendorBreaker) -> None:
    for _ in range(3):
        call(breaker, ProviderError("500"))
    assert breaker.state == "closed"


def test_failures_are_forgotten_with_the_window(breaker: VendorBreaker, clock: Clock) -> None:
    for _ in range(3):
        call(breaker, ProviderError("500"))
    clock.now = 10.1
    call(breaker, ProviderError("500"))
    assert breaker.state == "closed"


NO_FAULT = [ProviderRefused("401"), RequestTimeout("408"), NoTurn("full"), asyncio.CancelledError(), ValueError("ours")]


@pytest.mark.parametrize("error", NO_FAULT, ids=repr)
def test_what_is_no_fault_of_the_endpoint_is_not_counted(breaker: VendorBreaker, error: BaseException) -> None:
    for _ in range(20):
        call(breaker, error)
    assert breaker.state == "closed"
    for _ in range(3):
        call(breaker, ProviderError("500"))
    assert breaker.state == "closed"


def test_after_its_rest_one_call_goes_through_and_the_others_do_not(breaker: VendorBreaker, clock: Clock) -> None:
    open_up(breaker)
    clock.now = 2.0
    assert breaker.state == "half_open"
    with breaker.watch():
        for _ in range(3):
            with pytest.raises(CircuitOpen):
                call(breaker)
    assert breaker.state == "closed"
    call(breaker)


def test_each_failed_probe_doubles_the_rest_up_to_the_longest(breaker: VendorBreaker, clock: Clock) -> None:
    open_up(breaker)
    for rest in (2.0, 4.0, 7.0, 7.0):
        clock.now += rest - 0.01
        assert breaker.state == "open"
        clock.now += 0.01
        call(breaker, ProviderError("500"))
    clock.now += 7.0
    call(breaker)
    open_up(breaker)
    clock.now += 2.0
    assert breaker.state == "half_open"


@pytest.mark.parametrize("error", [asyncio.CancelledError(), NoTurn("full"), RequestTimeout("408")], ids=repr)
def test_a_probe_without_a_result_leaves_the_place_to_the_next(breaker: VendorBreaker, clock: Clock, error: BaseException) -> None:
    open_up(breaker)
    clock.now = 2.0
    call(breaker, error)
    assert breaker.state == "half_open"
    call(breaker)
    assert breaker.state == "closed"


def test_a_probe_that_is_refused_shows_that_the_endpoint_lives(breaker: VendorBreaker, clock: Clock) -> None:
    open_up(breaker)
    clock.now = 2.0
    call(breaker, ProviderRefused("401"))
    assert breaker.state == "closed"


def test_calls_from_before_say_nothing_about_now(breaker: VendorBreaker, clock: Clock) -> None:
    late = breaker.watch()
    late.__enter__()
    open_up(breaker)
    late.__exit__(None, None, None)
    assert breaker.state == "open"
    clock.now = 2.0
    call(breaker)
    assert breaker.state == "closed"


def test_an_endpoint_that_names_a_time_is_left_alone_until_then_but_not_forever(breaker: VendorBreaker, clock: Clock) -> None:
    call(breaker, ProviderBusy("busy", 5.0))
    clock.now = 4.9
    assert breaker.state == "open"
    clock.now = 5.0
    call(breaker, ProviderBusy("busy", 3600.0))
    clock.now = 12.0
    assert breaker.state == "half_open"


def test_failed_attempts_count_before_the_call_is_over_and_only_once(breaker: VendorBreaker) -> None:
    errors = [ProviderError("500") for _ in range(4)]
    with suppress(ProviderError), breaker.watch() as watch:
        assert [watch.attempt_failed(error) for error in errors[:3]] == [True, True, True]
        raise errors[2]
    assert breaker.state == "closed"
    with breaker.watch() as watch:
        assert not watch.attempt_failed(errors[3])
    assert breaker.state == "open"


def test_a_probe_makes_one_attempt(breaker: VendorBreaker, clock: Clock) -> None:
    open_up(breaker)
    clock.now = 2.0
    with breaker.watch() as watch:
        assert not watch.attempt_failed(ProviderError("500"))
    assert breaker.state == "open"


def test_a_probe_whose_answer_has_begun_closes_it_before_the_answer_is_complete(breaker: VendorBreaker, clock: Clock) -> None:
    open_up(breaker)
    clock.now = 2.0
    with breaker.watch() as watch:
        watch.answered()
        assert breaker.state == "closed"
        call(breaker)


def test_an_answer_that_has_begun_and_breaks_off_is_a_failure(breaker: VendorBreaker) -> None:
    for _ in range(4):
        with suppress(ProviderError), breaker.watch() as watch:
            watch.answered()
            raise ProviderUnreachable("broke off")
    assert breaker.state == "open"
