"""Failing over from one reranker to the next, inside the deadline."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from rag.deadline import seconds_left, within
from rag.errors import DeadlineExceeded, InvalidArgument, Overloaded, ProviderBadReply, ProviderError, ProviderUnreachable, Unavailable
from rag.llm.rerank_chain import FailoverReranker, RerankFailed
from rag.threads import Lane


class Fake:
    """Answers with its one score, fails with its error, or hangs."""

    def __init__(self, answer: float | BaseException | None) -> None:
        self.answer = answer
        self.asked = 0
        self.seconds = 0.0
        self.begun = asyncio.Event()

    async def async_similarity(self, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int | None]:
        if self.answer is None:
            self.asked, self.seconds = self.asked + 1, seconds_left()
            self.begun.set()
            await asyncio.Event().wait()
        return self.similarity(query, texts)

    def similarity(self, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int | None]:
        self.asked, self.seconds = self.asked + 1, seconds_left()
        if isinstance(self.answer, BaseException):
            raise self.answer
        return np.full(len(texts), self.answer, dtype=np.float32), 1


class Blocking:
    """Knows only `similarity`, and holds its thread until told otherwise."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def similarity(self, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int | None]:
        self.release.wait(10)
        return np.full(len(texts), 0.25, dtype=np.float32), None


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane("model", 1, 4)
    yield lane
    lane.close()


FAILURES = [ProviderError("a"), ProviderBadReply("a"), Overloaded("a"), Unavailable("a"), DeadlineExceeded("a")]


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
async def test_the_next_one_answers(lane: Lane, failure: Exception) -> None:
    first, second, third = Fake(failure), Fake(0.5), Fake(0.75)
    chain = FailoverReranker({"first": first, "second": second, "third": third}, lane, 5.0)
    scores, tokens = await chain.async_similarity("q", ["a", "b"])
    assert (scores.tolist(), tokens) == ([0.5, 0.5], 1)
    assert (first.asked, second.asked, third.asked) == (1, 1, 0)
    scores, _ = await asyncio.to_thread(chain.similarity, "q", ["a", "b"])
    assert scores.tolist() == [0.5, 0.5]


async def test_when_none_answers_the_error_says_of_each_why(lane: Lane) -> None:
    chain = FailoverReranker({"x": Fake(ProviderError("x is busy")), "y": Fake(Overloaded("the model queue is full"))}, lane, 5.0)
    with pytest.raises(RerankFailed, match=r"^x is busy; the model queue is full$"):
        await chain.async_similarity("q", ["a"])
    with pytest.raises(RerankFailed, match=r"^x is busy; the model queue is full$"):
        await asyncio.to_thread(chain.similarity, "q", ["a"])


async def test_what_the_caller_did_wrong_is_told_and_not_tried_elsewhere(lane: Lane) -> None:
    second = Fake(0.5)
    with pytest.raises(InvalidArgument):
        await FailoverReranker({"x": Fake(InvalidArgument("empty")), "y": second}, lane, 5.0).async_similarity("", ["a"])
    assert second.asked == 0


async def test_one_that_hangs_leaves_time_for_the_others(lane: Lane) -> None:
    hanging, answering = Fake(None), Fake(0.5)
    started = time.monotonic()
    with within(0.6):
        scores, _ = await FailoverReranker({"x": hanging, "y": answering}, lane, 60.0).async_similarity("q", ["a"])
        assert seconds_left() > 0.06
    assert scores.tolist() == [0.5]
    assert hanging.seconds <= 0.27
    assert answering.seconds <= 0.27
    assert time.monotonic() - started < 0.6


async def test_all_together_get_no_more_than_reranking_may_take(lane: Lane) -> None:
    started = time.monotonic()
    with pytest.raises(RerankFailed, match=r"model x did not answer within 0\.1 seconds; model y did not answer"):
        await FailoverReranker({"x": Fake(None), "y": Fake(None)}, lane, 0.2).async_similarity("q", ["a"])
    assert time.monotonic() - started < 1.0


async def test_without_time_none_is_asked(lane: Lane) -> None:
    one = Fake(0.5)
    with within(-1.0), pytest.raises(RerankFailed, match="no time was left"):
        await FailoverReranker({"x": one}, lane, 5.0).async_similarity("q", ["a"])
    assert one.asked == 0


async def test_a_class_with_only_similarity_runs_in_the_lane_and_is_not_waited_for_too_long(lane: Lane) -> None:
    blocking = Blocking()
    chain = FailoverReranker({"slow": blocking, "y": Fake(0.5)}, lane, 0.4)
    scores, _ = await chain.async_similarity("q", ["a"])
    assert scores.tolist() == [0.5]
    assert lane.state.busy == 1
    blocking.release.set()
    scores, _ = await FailoverReranker({"slow": blocking}, lane, 5.0).async_similarity("q", ["a"])
    assert scores.tolist() == [0.25]


async def test_cancelling_passes_through_and_nobody_else_is_asked(lane: Lane) -> None:
    hanging, second = Fake(None), Fake(0.5)
    task = asyncio.create_task(FailoverReranker({"x": hanging, "y": second}, lane, 60.0).async_similarity("q", ["a"]))
    await hanging.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert second.asked == 0


async def test_an_error_that_is_no_failure_of_a_model_is_not_hidden(lane: Lane) -> None:
    with pytest.raises(ZeroDivisionError):
        await FailoverReranker({"x": Fake(ZeroDivisionError()), "y": Fake(0.5)}, lane, 5.0).async_similarity("q", ["a"])


async def test_a_timeout_of_the_caller_is_not_taken_for_the_rerankers(lane: Lane) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await FailoverReranker({"x": Fake(None), "y": Fake(0.5)}, lane, 60.0).async_similarity("q", ["a"])


def test_a_failed_chain_is_a_providers_error() -> None:
    assert issubclass(RerankFailed, ProviderError)
    assert not issubclass(RerankFailed, ProviderUnreachable)
