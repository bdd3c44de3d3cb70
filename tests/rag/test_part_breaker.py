"""The breaker before a part of ours: what counts as its failure, and that threads may share it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from rag.breaker import Breaker, CircuitOpen, NotWaitedFor, ServiceBreaker, Unanswered
from rag.errors import InvalidArgument, MillraceError, NotFound, Overloaded, Unavailable


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def call(breaker: Breaker, error: MillraceError) -> None:
    with suppress(type(error)), breaker.watch():
        raise error


def test_a_part_that_cannot_answer_is_refused_with_the_time_to_come_back() -> None:
    clock = Clock()
    breaker = Breaker("the store", min_calls=2, rest_seconds=8.0, clock=clock)
    call(breaker, Unavailable("no node answers"))
    call(breaker, Unavailable("no node answers", retry_after_seconds=30.0))
    clock.now = 3.0
    with pytest.raises(CircuitOpen, match="the store failed too often") as refused, breaker.watch():
        pass
    assert isinstance(refused.value, Unavailable)
    assert refused.value.retry_after_seconds == 5.0
    clock.now = 8.0
    with breaker.watch():
        pass
    assert breaker.state == "closed"


@pytest.mark.parametrize("error", [NotFound("x"), InvalidArgument("x"), Overloaded("x")], ids=repr)
def test_other_errors_are_no_failure_of_a_part(error: MillraceError) -> None:
    breaker = Breaker("the store", min_calls=1)
    for _ in range(9):
        call(breaker, error)
    assert breaker.state == "closed"


@pytest.mark.parametrize("error", [NotFound("no such key"), Unavailable("it refuses our credentials")], ids=repr)
def test_a_service_that_refuses_has_answered(error: MillraceError) -> None:
    clock = Clock()
    breaker = ServiceBreaker("the service", min_calls=1, rest_seconds=1.0, clock=clock)
    call(breaker, error)
    assert breaker.state == "closed"
    call(breaker, Unanswered("it does not answer"))
    assert breaker.state == "open"
    clock.now = 2.0
    call(breaker, error)
    assert breaker.state == "closed"


def test_a_call_that_nobody_waited_for_tells_nothing_of_a_service() -> None:
    clock = Clock()
    breaker = ServiceBreaker("the service", min_calls=1, rest_seconds=1.0, clock=clock)
    call(breaker, NotWaitedFor("no answer in a few milliseconds"))
    assert breaker.state == "closed"
    call(breaker, Unanswered("it does not answer"))
    clock.now = 2.0
    call(breaker, NotWaitedFor("no answer in a few milliseconds"))
    assert breaker.state == "half_open"


def test_of_many_threads_that_come_after_the_rest_one_asks() -> None:
    clock, threads = Clock(), 16
    breaker = Breaker("the store", min_calls=1, rest_seconds=1.0, clock=clock)
    for round_number in range(20):
        call(breaker, Unavailable("gone"))
        clock.now += 100.0
        together, all_tried = threading.Barrier(threads), threading.Barrier(threads)

        def ask(together: threading.Barrier = together, all_tried: threading.Barrier = all_tried) -> bool:
            together.wait(10)
            try:
                with breaker.watch():
                    all_tried.wait(10)
                    return True
            except CircuitOpen:
                all_tried.wait(10)
                return False

        with ThreadPoolExecutor(threads) as pool:
            asked = [pool.submit(ask) for _ in range(threads)]
            assert sum(future.result() for future in asked) == 1, round_number
        assert breaker.state == "closed"
