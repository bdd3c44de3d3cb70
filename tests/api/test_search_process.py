"""Searches in a process of their own: the same answers, and answers in any case."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api.search_process import NAME, SearchProcess, arguments
from rag.errors import InvalidArgument, Overloaded
from rag.nlp.find import Found, LaneFinder, Wanted, find
from rag.nlp.tokenize import ANALYSER_VERSION, chunk_terms
from rag.store.embedded import EmbeddedStore
from rag.threads import Lane, Load, current_load
from rag.types import Chunk, ChunkSelector, SearchRequest, Term

TENANT, DATASET = "a" * 32, "b" * 32
FIVE_SECONDS = 5.0


def chunk(number: int) -> Chunk:
    text = f"water turns mill number {number}"
    return Chunk(
        f"{number:016x}", DATASET, f"{number % 3:032x}", f"{number % 3}.txt", text, chunk_terms("", [], text), headings=("h",),
        positions=((1, 2, 3, 4, 5),), extra={"n": [number]}, position=number,
    )  # fmt: skip


def wanted(**changes: Any) -> Wanted:
    vector = np.eye(8, dtype=np.float32)[1]
    search = SearchRequest(TENANT, (DATASET,), terms=(Term("mill"), Term("water", 0.5)), vector=vector, space="s")
    return replace(Wanted(search, 1.0, 0.3, 0.0, True, start=0, size=5), **changes)


@dataclass
class Otherwise:
    """What finds while there is no process: counts how often it did."""

    store: EmbeddedStore
    asked: int = 0

    async def find(self, wanted: Wanted) -> Found:
        self.asked += 1
        return find(self.store, wanted)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - it is in another process
            await asyncio.sleep(0.01)


@pytest.fixture
def store(tmp_path: Path):
    store = EmbeddedStore(tmp_path / "chunks", analyser_version=ANALYSER_VERSION)
    vectors = np.random.default_rng(1).standard_normal((40, 8)).astype(np.float32)
    store.put(TENANT, [chunk(number) for number in range(1, 41)], vectors / np.linalg.norm(vectors, axis=1, keepdims=True), "s")
    yield store
    store.close()


@pytest.fixture
def otherwise(store: EmbeddedStore) -> Otherwise:
    return Otherwise(store)


@pytest.fixture
async def searcher(tmp_path: Path, otherwise: Otherwise) -> AsyncIterator[SearchProcess]:
    searcher = SearchProcess(arguments(tmp_path / "chunks", ANALYSER_VERSION, "warning", "json"), 2, 3, otherwise)
    running = asyncio.create_task(searcher.run())
    await eventually(lambda: searcher.state.threads == 2)
    yield searcher
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


def same(one: Found, other: Found) -> bool:
    arrays = [
        (getattr(getattr(piece[0], part), name), getattr(getattr(piece[1], part), name))
        for piece in ((one.page, other.page), (one.best, other.best)) if piece[0] is not None
        for part, names in (("candidates", ("ids", "document_of", "text_scores", "vector_scores", "text_ranks", "vector_ranks")),
                            ("ranking", ("rows", "similarity", "term", "vector")))
        for name in names
    ]  # fmt: skip
    plain = ("candidates", "total", "counts", "names", "degraded")
    return (
        all(np.array_equal(left, right, equal_nan=left.dtype.kind == "f") and left.dtype == right.dtype for left, right in arrays)
        and all(getattr(one, name) == getattr(other, name) for name in plain)
        and one.page.chunks == other.page.chunks
        and list(one.counts) == list(other.counts)
    )


@pytest.mark.parametrize(
    "changes", [{}, {"start": 5}, {"best": 7, "threshold": 0.6}, {"named": True}, {"size": 1000}, {"threshold": 2.0}], ids=repr
)
async def test_it_finds_what_the_process_itself_finds(searcher: SearchProcess, otherwise: Otherwise, changes: dict) -> None:
    assert same(await searcher.find(wanted(**changes)), find(otherwise.store, wanted(**changes)))
    assert otherwise.asked == 0


async def test_what_was_stored_is_found_at_once(searcher: SearchProcess, store: EmbeddedStore) -> None:
    await searcher.find(wanted())
    for number in range(41, 61):
        store.put(TENANT, [chunk(number)], np.eye(8, dtype=np.float32)[:1], "s")
        assert (await searcher.find(wanted())).total == 41
        store.delete(TENANT, ChunkSelector(chunk_ids=(f"{number:016x}",)))
        assert (await searcher.find(wanted())).total == 40


async def test_many_at_once_are_all_answered_and_more_than_may_wait_are_refused(searcher: SearchProcess) -> None:
    pages = await asyncio.gather(*(searcher.find(wanted(start=place)) for place in range(5)))
    assert [found.page.chunks[0].id for found in pages] == [chunk.id for chunk in (await searcher.find(wanted())).page.chunks]
    outcomes = await asyncio.gather(*(searcher.find(wanted()) for _ in range(8)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Found] * 5 + [Overloaded] * 3  # two threads, three may wait
    assert searcher.state.busy == searcher.state.queued == 0


async def test_errors_arrive_as_themselves(searcher: SearchProcess, otherwise: Otherwise) -> None:
    with pytest.raises(InvalidArgument, match="32 lower-case hex digits"):
        await searcher.find(replace(wanted(), search=SearchRequest("nobody", (DATASET,))))
    with pytest.raises(RuntimeError, match="the search failed: AttributeError"):
        await searcher.find(replace(wanted(), search=None))
    assert (await searcher.find(wanted())).total == 40
    assert otherwise.asked == 0


async def test_the_threads_of_the_server_search_while_there_is_no_process_and_it_comes_back(
    searcher: SearchProcess, otherwise: Otherwise
) -> None:  # fmt: skip
    first = searcher.process_id
    asked = [asyncio.create_task(searcher.find(wanted())) for _ in range(5)]
    await asyncio.sleep(0)
    os.kill(first, signal.SIGKILL)
    assert [found.total for found in await asyncio.gather(*asked)] == [40] * 5
    await eventually(lambda: searcher.state.threads == 0)
    assert (await searcher.find(wanted())).total == 40
    assert otherwise.asked > 0
    await eventually(lambda: searcher.state.threads == 2)
    before = otherwise.asked
    assert (await searcher.find(wanted())).total == 40
    assert (otherwise.asked, searcher.process_id != first) == (before, True)


async def test_callers_that_go_away_leave_no_thread_taken(searcher: SearchProcess) -> None:
    for pause in (0.0, 0.0, 0.001, 0.002):
        asked = [asyncio.create_task(searcher.find(wanted())) for _ in range(5)]
        await asyncio.sleep(pause)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await eventually(lambda: (searcher.state.busy, searcher.state.queued) == (0, 0))
    assert (await searcher.find(wanted())).total == 40


async def test_signals_are_for_the_server_and_the_process_ends_with_it(tmp_path: Path, otherwise: Otherwise) -> None:
    searcher = SearchProcess(arguments(tmp_path / "chunks", ANALYSER_VERSION, "warning", "json"), 1, 1, otherwise)
    running = asyncio.create_task(searcher.run())
    await eventually(lambda: searcher.state.threads == 1)
    process_id = searcher.process_id
    os.kill(process_id, signal.SIGTERM)
    os.kill(process_id, signal.SIGINT)
    assert (await searcher.find(wanted())).total == 40
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)


async def test_a_process_that_cannot_start_costs_no_answer(otherwise: Otherwise) -> None:
    searcher = SearchProcess((), 1, 1, otherwise)  # without arguments it ends at once
    running = asyncio.create_task(searcher.run())
    await eventually(lambda: searcher.process_id is not None)
    assert (await searcher.find(wanted())).total == 40
    await eventually(lambda: searcher.process_id is None)
    assert (await searcher.find(wanted())).total == 40
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_what_a_search_takes_counts_for_its_request(searcher: SearchProcess) -> None:
    load = Load()
    current_load.set(load)
    await searcher.find(wanted())
    assert 0 < load.lane_seconds[NAME] < FIVE_SECONDS


async def test_a_lane_finds_the_same(store: EmbeddedStore) -> None:
    lane = Lane("search", 1, 1)
    assert same(await LaneFinder(store, lane).find(wanted(best=3)), find(store, wanted(best=3)))
    lane.close()


async def test_what_the_process_finds_damaged_the_server_s_own_store_meets_too(
    searcher: SearchProcess, otherwise: Otherwise, tmp_path: Path
) -> None:  # fmt: skip
    for file in (tmp_path / "chunks" / TENANT / "vectors").iterdir():
        file.write_bytes(b"damaged" * 3)
    found = await searcher.find(wanted())
    assert (found.total, otherwise.asked) == (40, 1)
