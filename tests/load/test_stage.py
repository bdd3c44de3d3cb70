"""What is staged is the real application: it answers, and reranking holds a thread exactly where it is made to."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from load.callers import drive
from load.processes import cpu_seconds, family, memory_of
from load.sampling import mean_of, share_below
from load.stage import Executor, Play, StagedServer, staged
from load.staged_parts import EXECUTOR_THREADS
from load.streams import read
from load.vendors import RERANKER, vendors

CALLERS = 10


@pytest.fixture(scope="module")
def stage() -> Iterator[Callable[[Executor], StagedServer]]:
    with ExitStack() as stack:
        simulated = stack.enter_context(vendors(rerank_seconds=0.3, chat_seconds=0.0, gap_seconds=0.01, words=5))

        def open_stage(executor: Executor, store_seconds: float | None = 0.02) -> StagedServer:
            return stack.enter_context(staged(Play({"models": simulated.models(), "search_threads": 16}, store_seconds, executor)))

        yield open_stage


def busy_while_reranking(server: StagedServer) -> tuple[float, int]:
    """Threads busy but for the store, on average and at most, while callers search with a reranker."""
    drive(server.url, server.searches(CALLERS, RERANKER), CALLERS)
    server.figures()
    driven = drive(server.url, server.searches(3 * CALLERS, RERANKER), CALLERS)
    assert driven.failed == 0
    seen = server.figures()
    return mean_of(seen.outside), max(seen.busy)


def test_an_awaited_reranker_holds_no_thread_and_chats_stream(stage):
    server = stage("lanes")
    mean, _ = busy_while_reranking(server)
    assert mean < CALLERS / 3
    streamed = read(server.url, server.talks("ranked", 4), 2, 30.0, 0.0)
    assert streamed.failed == ()
    assert len(streamed.ended) == 4
    held = server.figures().held
    assert held.private > 0
    assert held.tasks > 0


def test_the_real_store_is_searched_in_a_process_beside_the_server_whose_cpu_and_memory_count(stage):
    server = stage("lanes", None)
    seen = server.figures()
    while not mean_of(seen.by_lane["searcher"]):
        assert drive(server.url, server.searches(10 * CALLERS), CALLERS).failed == 0
        seen = server.figures()
    assert set(seen.by_lane["search"]) == {0}
    own = memory_of(server.process_id)
    assert len(family(server.process_id)) > 1
    assert seen.held.private > own.private
    assert seen.held.cpu_seconds > cpu_seconds(server.process_id)


def test_a_staged_store_is_found_by_the_search_lane(stage):
    server = stage("lanes")
    assert "searcher" not in server.figures().by_lane
    assert drive(server.url, server.searches(CALLERS), CALLERS).failed == 0
    assert mean_of(server.figures().by_lane["search"]) > 0


@pytest.mark.parametrize("executor", ["rerank", "request"])
def test_a_blocking_reranker_holds_a_thread_all_the_time(stage, executor):
    mean, most = busy_while_reranking(stage(executor))
    assert mean > CALLERS / 2
    assert most <= EXECUTOR_THREADS


def test_the_smallest_number_that_covers_the_samples():
    counts = {0: 90, 5: 9, 35: 1}
    assert [share_below(counts, share) for share in (0.5, 0.95, 1.0)] == [0, 5, 35]
    assert mean_of(counts) == pytest.approx(0.8)
    assert (share_below({}, 0.99), mean_of({})) == (0, 0.0)
