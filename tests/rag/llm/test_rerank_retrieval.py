"""A retrieval with rerankers behind it: the vendor's order, the stand-in's, and the fused one when nobody answers in time."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from load.rerank_simulator import Entries, RerankVendors
from load.vendor_simulator import Behaviour, Request, VendorSimulator
from rag.deadline import seconds_left, within
from rag.errors import ProviderUnreachable
from rag.llm.registry import ModelSpec, Registry
from rag.llm.transport import Transport
from rag.nlp.find import LaneFinder
from rag.nlp.search import RetrievalRequest, async_retrieval
from rag.nlp.tokenize import chunk_terms
from rag.store.memory import MemoryStore
from rag.threads import Lane
from rag.types import Chunk, Retrieval

TENANT, DATASET, DOCUMENT = "t" * 32, "d" * 32, "f" * 32
QUESTION = "when does the mill stop"
TEXTS = ["mill mill mill", "the mill turns", "when does the mill stop turning", "does a mill stop", "the river"]


def contrary(entries: Entries) -> Entries:
    """A vendor that likes best what BM25 likes least, so that its order is never mistaken for the fused one."""
    return [{**entry, "relevance_score": 1.0 - entry["relevance_score"]} for entry in entries]


@pytest.fixture
def search_lane() -> Iterator[Lane]:
    lane = Lane("search", 2, 100)
    yield lane
    lane.close()


class CountingStore(MemoryStore):
    """Notes how many chunks were read in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[int] = []

    def get(self, tenant_id: str, chunk_ids: Sequence[str]) -> list[Chunk | None]:
        self.read.append(len(chunk_ids))
        return super().get(tenant_id, chunk_ids)


@pytest.fixture
def store() -> CountingStore:
    store = CountingStore()
    chunks = [
        Chunk(f"{number + 1:016x}", DATASET, DOCUMENT, "a.txt", text, chunk_terms("", [], text), position=number)
        for number, text in enumerate(TEXTS)
    ]
    store.put(TENANT, chunks, None, "")
    return store


@pytest.fixture
def models(vendor: VendorSimulator, transport: Transport, query_lane: Lane, document_lane: Lane, graph_cache: Path) -> Registry:
    vendor.choose = RerankVendors(spoil=contrary)
    specs = [
        ModelSpec(name="m", provider=provider, kind="rerank", base_url=vendor.base_url + base, api_key="sk-secret")
        for provider, base in (("Jina", "/jina/v1"), ("LocalAI", "/localai"))
    ]
    return Registry(specs, {}, transport, query_lane=query_lane, document_lane=document_lane, rerank_lane=query_lane, cache_dir=graph_cache)


Ask = Callable[..., Retrieval]


@pytest.fixture
def ask(store: MemoryStore, search_lane: Lane, models: Registry) -> Ask:
    async def ask(name: str | None = "m@Jina", weight: float = 1.0) -> Retrieval:
        request = RetrievalRequest(QUESTION, TENANT, (DATASET,), similarity_threshold=0.0, vector_similarity_weight=weight)
        reranker = models.reranker(name) if name else None
        return await async_retrieval(request, finder=LaneFinder(store, search_lane), lane=search_lane, embedder=None, reranker=reranker)

    return ask


def order(found: Retrieval) -> list[str]:
    return [entry.chunk.content for entry in found.chunks]


def failing(base: str, behaviour: Behaviour) -> Callable[[Request], Behaviour]:
    """The vendors below `base` fail, the others answer."""
    answer = RerankVendors(spoil=contrary)
    return lambda request: behaviour if request.path.startswith(base) else answer(request)


async def test_the_vendors_scores_decide_as_far_as_the_weight_says(ask: Ask, vendor: VendorSimulator) -> None:
    fused, reranked, mixed = await ask(None), await ask(), await ask(weight=0.5)
    assert order(fused)[0] == TEXTS[2]
    assert order(reranked)[-1] == TEXTS[2]
    assert (reranked.degraded, reranked.reasons) == ((), {})
    assert sorted(vendor.requests[0].body["documents"]) == sorted(order(fused))
    for entry in mixed.chunks:
        assert entry.similarity == pytest.approx(0.5 * entry.term_similarity + 0.5 * entry.vector_similarity)


async def test_the_next_reranker_stands_in_and_nothing_is_degraded(ask: Ask, vendor: VendorSimulator) -> None:
    expected = order(await ask())
    vendor.choose = failing("/jina", Behaviour("reset"))
    found = await ask()
    assert (order(found), found.degraded) == (expected, ())


async def test_when_none_answers_the_fused_order_stays_and_the_reply_says_who_failed_and_why(ask: Ask, vendor: VendorSimulator) -> None:
    vendor.choose = failing("/", Behaviour(status=401))
    found = await ask()
    assert order(found) == order(await ask(None))
    assert found.degraded == ("rerank",)
    assert found.reasons["rerank"] == (
        "the endpoint of model m@Jina refused the key that is configured for it; "
        "the endpoint of model m@LocalAI refused the key that is configured for it"
    )


async def test_nothing_is_read_for_rerankers_that_are_not_asked_now(ask: Ask, vendor: VendorSimulator, store: CountingStore) -> None:
    vendor.choose = failing("/", Behaviour(status=500))
    while (await ask()).reasons["rerank"].count("left alone for a while") < 2:
        pass
    asked = len(vendor.requests)
    store.read.clear()
    found = await ask()
    read, _ = store.read.copy(), store.read.clear()
    plain = await ask(None)
    assert (order(found), found.degraded) == (order(plain), ("rerank",))
    assert found.reasons["rerank"] == (
        "provider Jina failed too often and is left alone for a while; provider LocalAI failed too often and is left alone for a while"
    )
    assert len(vendor.requests) == asked
    assert read == store.read
    vendor.choose = RerankVendors(spoil=contrary)
    assert (await ask("m@LocalAI")).degraded == ("rerank",)


async def test_vendors_that_hang_leave_the_answer_in_time(ask: Ask, vendor: VendorSimulator) -> None:
    vendor.choose = failing("/", Behaviour("hang"))
    with within(1.0):
        found = await ask()
        assert seconds_left() > 0
    assert order(found) == order(await ask(None))
    assert found.degraded == ("rerank",)
    assert "m@Jina did not answer within" in found.reasons["rerank"]
    assert "m@LocalAI did not answer within" in found.reasons["rerank"]


class Waiting:
    """A reranker that answers once the documents' names have been asked for, or fails then."""

    excuse = ""

    def __init__(self, failure: Exception | None = None) -> None:
        self.named = asyncio.Event()
        self._failure = failure

    async def async_similarity(self, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        await self.named.wait()
        if self._failure is not None:
            raise self._failure
        return np.linspace(0.1, 0.9, len(texts)), 1


@pytest.mark.parametrize("failure", [None, ProviderUnreachable("away")])
async def test_names_are_read_while_the_reranker_reads(store: MemoryStore, search_lane: Lane, failure: Exception | None) -> None:
    reranker = Waiting(failure)

    async def names(document_ids: Sequence[str]) -> dict[str, str]:
        reranker.named.set()
        return dict.fromkeys(document_ids, "renamed.txt")

    request = RetrievalRequest(QUESTION, TENANT, (DATASET,), similarity_threshold=0.0, vector_similarity_weight=1.0)
    async with asyncio.timeout(5):
        found = await async_retrieval(
            request, finder=LaneFinder(store, search_lane), lane=search_lane, embedder=None, reranker=reranker, document_names=names
        )
    assert found.degraded == (("rerank",) if failure else ())
    assert [entry.document_name for entry in found.documents] == ["renamed.txt"]
