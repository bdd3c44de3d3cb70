"""async_retrieval over the in-memory store: one stable list, sliced; every failing stage degrades and says so."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rag.errors import DeadlineExceeded, InvalidArgument, Overloaded, ProviderBadReply, ProviderUnreachable, Unavailable
from rag.nlp.find import LaneFinder
from rag.nlp.fuse import BEST_TERM
from rag.nlp.search import RetrievalRequest, async_rerank_by_model, async_retrieval
from rag.nlp.tokenize import chunk_terms
from rag.store.memory import MemoryStore
from rag.threads import Lane
from rag.types import Candidates, Chunk, ChunkSelector, Retrieval, SearchRequest

TENANT, DATASET = "t" * 32, "d" * 32
TEXTS = [
    ("mills.txt", "The water mill grinds wheat into flour."),
    ("mills.txt", "A mill race carries water to the wheel."),
    ("mills.txt", "Millers were paid in flour."),
    ("rivers.txt", "The river floods in spring."),
    ("rivers.txt", "Water flows downhill; a mill pond holds it."),
    ("birds.txt", "Swallows nest under the roof."),
]


class WordEmbedder:
    """Unit vectors of letter counts: enough to rank, and exact."""

    space = "letters"
    dimension = 26
    tokenizer_path = Path("tokenizer.json")

    def __init__(self, trusted: float = 1.0, failure: Exception | None = None) -> None:
        self.trusted, self.failure, self.questions = trusted, failure, []

    async def embed_query(self, text: str) -> np.ndarray:
        self.questions.append(text)
        if self.failure:
            raise self.failure
        return letters(text)

    async def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([letters(text) for text in texts])

    def trust(self, text: str) -> float:
        return self.trusted


class BlockingReranker:
    """Has only `similarity`; scores by a table of texts' beginnings."""

    def __init__(self, scores: dict[str, float], failure: Exception | None = None) -> None:
        self.scores, self.failure, self.threads, self.texts = scores, failure, [], []

    def similarity(self, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int | None]:
        self.threads.append(threading.current_thread().name)
        self.texts.append(list(texts))
        if self.failure:
            raise self.failure
        return np.array([next((s for start, s in self.scores.items() if text.startswith(start)), 0.0) for text in texts]), None


class AwaitableReranker(BlockingReranker):
    async def async_similarity(self, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int | None]:
        await asyncio.sleep(0)
        return self.similarity(query, texts)


class Behind:
    """A store that passes its calls on, to be overridden."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store

    def search(self, request: SearchRequest) -> Candidates:
        return self.store.search(request)

    def get(self, tenant_id: str, chunk_ids: Sequence[str]) -> list[Chunk | None]:
        return self.store.get(tenant_id, chunk_ids)


def letters(text: str) -> np.ndarray:
    vector = np.array([text.lower().count(chr(97 + i)) for i in range(26)], dtype=np.float32) + 0.01
    return vector / np.linalg.norm(vector)


def chunk(number: int, name: str, text: str) -> Chunk:
    return Chunk(
        id=f"{number:016x}", dataset_id=DATASET, document_id=name.ljust(32, "0"), document_name=name, content=text,
        terms=chunk_terms(name, [], text), position=number,
    )  # fmt: skip


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    chunks = [chunk(i + 1, *text) for i, text in enumerate(TEXTS)]
    store.put(TENANT, chunks, np.stack([letters(one.content) for one in chunks]), "letters")
    return store


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane("search", 2, 100)
    yield lane
    lane.close()


@pytest.fixture
def ask(store, lane):
    async def ask(
        question: str = "water mill flour", *, embedder="default", reranker=None, document_names=None, using=None, **parameters
    ) -> Retrieval:
        request = RetrievalRequest(question, TENANT, (DATASET,), **{"similarity_threshold": 0.0, **parameters})
        return await async_retrieval(
            request,
            finder=LaneFinder(using or store, lane),
            lane=lane,
            embedder=WordEmbedder() if embedder == "default" else embedder,
            reranker=reranker,
            rerank_lane=lane,
            document_names=document_names,
        )

    return ask


def ids(retrieval: Retrieval) -> list[int]:
    return [int(entry.chunk.id, 16) for entry in retrieval.chunks]


async def test_the_best_chunk_comes_first_with_its_parts(ask):
    found = await ask()
    first = found.chunks[0]
    assert first.chunk.content == TEXTS[0][1]
    assert first.term_similarity == BEST_TERM
    assert first.similarity == pytest.approx(0.7 * first.term_similarity + 0.3 * first.vector_similarity)
    assert found.degraded == ()


async def test_pages_are_slices_of_one_list_and_the_total_never_changes(ask):
    whole = await ask(page_size=100)
    assert whole.total == len(whole.chunks) == 6
    for size in (1, 2, 4):
        pages = [await ask(page=page, page_size=size) for page in range(1, 8)]
        assert [number for page in pages for number in ids(page)] == ids(whole)
        assert {page.total for page in pages} == {6}
        assert {page.documents for page in pages} == {whole.documents}


async def test_documents_count_the_whole_list_most_first(ask):
    found = await ask(page_size=1)
    assert [(entry.document_name, entry.count) for entry in found.documents] == [("mills.txt", 3), ("rivers.txt", 2), ("birds.txt", 1)]


async def test_document_names_may_come_from_the_caller(ask):
    async def renamed(documents: Sequence[str]) -> dict[str, str]:
        return {document: f"new {document[:5]}" for document in documents}

    assert (await ask(document_names=renamed)).documents[0].document_name == "new mills"


async def test_the_threshold_cuts_the_list_and_its_total(ask):
    found = await ask(similarity_threshold=0.5)
    assert 0 < found.total < 6
    assert all(entry.similarity >= 0.5 for entry in found.chunks)


async def test_an_empty_question_finds_nothing(ask):
    embedder = WordEmbedder()
    assert (await ask("  ", embedder=embedder)).total == 0
    assert embedder.questions == []


async def test_no_document_of_a_filter_means_no_result(ask):
    assert (await ask(document_ids=())).total == 0
    assert (await ask(document_ids=("rivers.txt".ljust(32, "0"),))).total == 2


async def test_without_vector_weight_nothing_is_embedded_and_only_lexical_candidates_enter(ask):
    embedder = WordEmbedder()
    found = await ask("flour", embedder=embedder, vector_similarity_weight=0.0, similarity_threshold=0.99)
    assert embedder.questions == []
    assert sorted(ids(found)) == [1, 3]


async def test_few_vector_candidates_never_hide_lexical_ones(ask):
    assert {1, 2, 3, 4, 5} <= set(ids(await ask("water mill flour river", top_k=1)))


@pytest.mark.parametrize(
    "failure", [ProviderUnreachable("gone"), Overloaded("full"), DeadlineExceeded("late"), TimeoutError(), Unavailable("down")]
)
async def test_a_failing_embedder_leaves_the_text_arm(ask, failure):
    found = await ask(embedder=WordEmbedder(failure=failure))
    assert found.degraded == ("embed",)
    assert ids(found) == ids(await ask(vector_similarity_weight=0.0))
    assert found.chunks[0].similarity == BEST_TERM


class NeverAnswered(WordEmbedder):
    """A remote model of which nothing is known yet."""

    @property
    def space(self) -> str:
        raise Unavailable("the dimension is not known yet")


async def test_an_embedder_that_never_answered_is_asked_for_nothing_but_a_vector(ask):
    found = await ask(embedder=NeverAnswered(failure=ProviderUnreachable("gone")))
    assert found.degraded == ("embed",)
    assert ids(found) == ids(await ask(embedder=NeverAnswered(), vector_similarity_weight=0.0)) != []


async def test_a_programming_error_in_the_embedder_is_not_hidden(ask):
    with pytest.raises(ZeroDivisionError):
        await ask(embedder=WordEmbedder(failure=ZeroDivisionError()))


async def test_an_untrusted_model_leaves_the_text_arms_order(ask):
    by_text = ids(await ask(vector_similarity_weight=0.0))
    found = await ask(embedder=WordEmbedder(trusted=0.0), vector_similarity_weight=0.9)
    assert ids(found)[: len(by_text)] == by_text


async def test_without_an_embedder_the_text_arm_answers(ask):
    found = await ask(embedder=None)
    assert found.degraded == ()
    assert ids(found) == [1, 3, 2, 5]


@pytest.mark.parametrize("kind", [BlockingReranker, AwaitableReranker])
async def test_a_reranker_of_either_kind_reorders_the_list(ask, kind):
    reranker = kind({"Swallows": 1.0, "The river": 0.9})
    found = await ask(reranker=reranker, vector_similarity_weight=0.9, explain=True)
    assert ids(found)[:2] == [6, 4]
    assert found.chunks[0].vector_similarity == 1.0
    assert found.chunks[0].explain["rerank"] == 1.0
    assert reranker.threads[0].startswith("millrace-search") == (kind is BlockingReranker)
    assert found.degraded == ()


async def test_a_reranker_reads_a_bounded_number_of_the_best(ask):
    reranker = BlockingReranker({})
    found = await ask(reranker=reranker, rerank_limit=2, page_size=1)
    assert reranker.texts == [[TEXTS[0][1], TEXTS[2][1]]]
    assert found.total == 2


@pytest.mark.parametrize("failure", [ProviderUnreachable("gone"), Overloaded("full"), TimeoutError()])
async def test_a_failing_reranker_leaves_the_fused_order(ask, failure):
    found = await ask(reranker=BlockingReranker({}, failure))
    assert found.degraded == ("rerank",)
    assert found.reasons == {"rerank": str(failure) or "no answer in time"}
    assert ids(found) == ids(await ask())


@pytest.mark.parametrize("scores", [[0.5], [0.5, float("nan")], [0.5, float("inf")]])
async def test_a_missing_score_is_an_error_not_a_zero(lane, scores):
    class Careless:
        def similarity(self, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int | None]:
            return np.array(scores), None

    with pytest.raises(ProviderBadReply):
        await async_rerank_by_model("q", ["a", "b"], Careless(), lane)


async def test_no_texts_need_no_reranker(lane):
    assert (await async_rerank_by_model("q", [], BlockingReranker({}), lane)).shape == (0,)


async def test_highlights_are_made_only_when_asked_for(ask):
    assert (await ask()).chunks[0].highlight is None
    found = await ask("flour", highlight=True)
    assert found.chunks[0].highlight.count("<em>flour</em>") == 1


async def test_explain_tells_raw_scores_ranks_and_times(ask):
    found = await ask(explain=True, top_k=1)
    explained = found.chunks[0].explain
    assert explained["text_rank"] == 0
    assert explained["bm25"] > 0
    assert -1 <= explained["cosine"] <= 1
    assert any(entry.explain["vector_rank"] is None for entry in found.chunks)
    assert found.timings.keys() == {"analyse", "embed", "search", "fuse", "fetch", "build", "total"}
    assert (await ask()).chunks[0].explain is None


async def test_stages_the_store_lost_are_passed_on(ask, store):
    class HalfStore(Behind):
        def search(self, request: SearchRequest) -> Candidates:
            return replace(self.store.search(request), degraded=("vector",))

    assert (await ask(using=HalfStore(store))).degraded == ("vector",)


async def test_a_chunk_deleted_between_search_and_fetch_is_left_out(ask, store):
    class LosingStore(Behind):
        def search(self, request: SearchRequest) -> Candidates:
            found = self.store.search(request)
            self.store.delete(TENANT, ChunkSelector(chunk_ids=(f"{1:016x}",)))
            return found

    assert 1 not in ids(await ask(using=LosingStore(store)))


async def test_switched_off_chunks_take_no_part(ask, store):
    store.set_available(TENANT, ChunkSelector(chunk_ids=(f"{1:016x}",)), False)
    assert 1 not in ids(await ask())
    assert 1 in ids(await ask(available=None))


async def test_another_tenant_finds_nothing(store, lane):
    request = RetrievalRequest("water mill", "x" * 32, (DATASET,))
    assert (await async_retrieval(request, finder=LaneFinder(store, lane), lane=lane, embedder=WordEmbedder())).total == 0


@pytest.mark.parametrize("name", ["page", "page_size", "top_k"])
async def test_an_impossible_parameter_is_refused(ask, name):
    with pytest.raises(InvalidArgument, match=f"{name} 0 is less than 1"):
        await ask(**{name: 0})
