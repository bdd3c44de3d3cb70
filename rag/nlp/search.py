"""Retrieval: a question in, one page of one stable ranked list out.

    embed and analyse the question -> both arms of the chunk store -> fuse -> rerank -> threshold -> page -> fetch -> highlight

The list depends on the question and its parameters only, never on the page, so that pages are slices of it and its length is
the total. A stage that fails is left out and named in `Retrieval.degraded`, as long as something else can still answer.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import structlog

from rag.deadline import at_most
from rag.errors import DeadlineExceeded, InvalidArgument, Overloaded, ProviderBadReply, ProviderError, Unavailable, why_failed
from rag.nlp.find import Entries, Finder, Wanted, counted
from rag.nlp.fuse import Ranking, fuse_reranked
from rag.nlp.highlight import Highlighter
from rag.nlp.query import question_terms
from rag.ports import Embedder, Reranker
from rag.stages import passed, stage
from rag.threads import Lane, aside, beside
from rag.types import Candidates, Chunk, DocumentCount, RankedChunk, Retrieval, SearchRequest, Term

# Decided by `python -m load.eval`: a title helps more the less it outweighs the text.
FIELD_BOOSTS: Mapping[str, float] = {"title": 0.4, "content": 1.0, "keywords": 2.0, "questions": 1.0}
TEXT_CANDIDATES = 1024
# While some chunks share a term with the question, are chunks that share none kept (those that pass the threshold)?
KEEP_VECTOR_ONLY = True

DocumentNames = Callable[[Sequence[str]], Awaitable[Mapping[str, str]]]

# Of the time a request has left: without the question's vector, words still find, if there is time for it.
_SHARE_OF_EMBEDDING = 0.5
_MODEL_FAILURES = (ProviderError, Overloaded, Unavailable, DeadlineExceeded, TimeoutError)
_log = structlog.get_logger("millrace.retrieval")


@dataclass(frozen=True, slots=True)
class RetrievalRequest:
    """What to look for. `document_ids` None means all documents of the datasets, an empty tuple none.

    `page` counts from 1. `similarity_threshold` and `vector_similarity_weight` are those of `rag.nlp.fuse.fuse`. `top_k`
    bounds the vector arm's candidates. `rerank_limit` bounds what a reranker reads, and with a reranker the whole list.
    `embed_seconds`, at most half of what the request has left, may pass until the question is embedded.
    `available` None finds switched off chunks too. `explain` adds each chunk's raw scores and ranks.
    """

    question: str
    tenant_id: str
    dataset_ids: tuple[str, ...]
    document_ids: tuple[str, ...] | None = None
    page: int = 1
    page_size: int = 30
    similarity_threshold: float = 0.2
    vector_similarity_weight: float = 0.3
    top_k: int = 1024
    highlight: bool = False
    explain: bool = False
    available: bool | None = True
    keep_vector_only: bool = KEEP_VECTOR_ONLY
    rerank_limit: int = 64
    embed_seconds: float = 10.0


async def async_retrieval(
    request: RetrievalRequest,
    *,
    finder: Finder,
    lane: Lane,
    embedder: Embedder | None,
    reranker: Reranker | None = None,
    rerank_lane: Lane | None = None,
    document_names: DocumentNames | None = None,
) -> Retrieval:
    """One page of the chunks that answer the question.

    `lane` marks words in long pages; `rerank_lane`, without it `lane`, runs rerankers that are not asynchronous. `document_names`
    tells documents' names by id; without it they are read from a chunk of each.

    Raises `InvalidArgument` for an impossible page or `top_k`, `Unavailable` and `Overloaded` when the store cannot answer.
    A failing embedder leaves the text arm (`degraded` "embed"), a failing reranker the fused order ("rerank").
    """
    _check(request)
    question = request.question.strip()
    if not question or not request.dataset_ids or request.document_ids == ():
        return Retrieval(total=0, chunks=(), documents=())
    watch = _Stopwatch()
    degraded: list[str] = []
    reasons: dict[str, str] = {}

    vector, trust = None, 0.0
    if embedder is None or request.vector_similarity_weight <= 0:
        question_as_terms = _analysed(question, watch)
    else:
        async with beside(_embedded(embedder, question, request.embed_seconds, watch)) as embedding:
            await asyncio.sleep(0)  # it begins
            question_as_terms, trust = _analysed(question, watch), embedder.trust(question)  # while a thread embeds it
            try:
                vector = await embedding
            except _MODEL_FAILURES as exc:
                trust = 0.0
                degraded.append("embed")
                reasons["embed"] = why_failed(exc)
                _log.warning("embedding failed, searching by text only", error=type(exc).__name__, reason=reasons["embed"])

    search = _search_request(request, question_as_terms, vector, embedder.space if embedder is not None and vector is not None else "")
    reranks = reranker is not None and request.vector_similarity_weight > 0
    refusal = _refusal(reranker) if reranker is not None and reranks else None
    reranks = reranks and refusal is None
    best = request.rerank_limit if reranks else 0
    found = await finder.find(_wanted(request, search, trust, best=best, named=document_names is None))
    watch.passed(found.seconds)
    degraded.extend(found.degraded)
    total, counts, entries, start = found.total, found.counts, found.page, 0
    rerank_scores: Sequence[float] = ()
    names: Mapping[str, str] | None = None

    async def names_of(document_ids: Sequence[str]) -> Mapping[str, str]:
        return found.names if document_names is None else await document_names(document_ids)

    if reranks and found.best is not None and found.candidates:
        async with beside(names_of(found.best.candidates.documents)) as naming:  # while the reranker reads
            try:
                with watch.stage("rerank"):
                    reranked, scores = await _rerank(request, found.best, reranker, rerank_lane or lane)
            except _MODEL_FAILURES as exc:
                degraded.append("rerank")
                reasons["rerank"] = why_failed(exc)
                _log.warning("reranking failed, keeping the fused order", error=type(exc).__name__, reason=reasons["rerank"])
            else:
                entries, rerank_scores = replace(found.best, ranking=reranked), scores.tolist()
                total, counts = len(reranked), counted(entries.candidates, reranked)
                start = (request.page - 1) * request.page_size
                names = await naming
    elif refusal is not None and found.candidates:
        degraded.append("rerank")
        reasons["rerank"] = str(refusal)

    if names is None:
        names = await names_of(list(counts))
    documents = tuple([DocumentCount(document, names.get(document, ""), count) for document, count in counts.items()])
    with watch.stage("build"):
        part, ranking = slice(start, start + request.page_size), entries.ranking
        values = (ranking.rows, ranking.similarity, ranking.vector, ranking.term)
        shown = list(zip(*(array[part].tolist() for array in values), strict=True))
        chunks = [entries.chunks[row] for row, *_ in shown]
        highlights = await _highlights(question_as_terms, chunks, lane) if request.highlight else [None] * len(chunks)
        ranked = tuple(
            [
                RankedChunk(
                    chunk, *similarities, highlight, _explain(entries.candidates, row, trust, rerank_scores) if request.explain else None
                )
                for (row, *similarities), chunk, highlight in zip(shown, chunks, highlights, strict=True)
                if chunk is not None  # deleted since it was found
            ]
        )
    return Retrieval(total, ranked, documents, tuple(degraded), watch.timings(), reasons)


def _analysed(question: str, watch: "_Stopwatch") -> tuple[Term, ...]:
    with watch.stage("analyse"):
        return question_terms(question)


async def _embedded(embedder: Embedder, question: str, seconds: float, watch: "_Stopwatch") -> np.ndarray:
    with watch.stage("embed"):
        async with at_most(seconds, _SHARE_OF_EMBEDDING):
            return await embedder.embed_query(question)


async def async_rerank_by_model(question: str, texts: Sequence[str], reranker: Reranker, lane: Lane) -> np.ndarray:
    """The reranker's scores of the texts, float64 `[len(texts)]` in the order given.

    Awaits the class's `async_similarity`; a class that has only `similarity` runs in the lane. Raises `ProviderBadReply`
    when a score is missing or not a finite number, otherwise what the reranker raises.
    """
    if not texts:
        return np.zeros(0)
    if hasattr(reranker, "async_similarity"):
        scores, _tokens = await reranker.async_similarity(question, texts)
    else:
        scores, _tokens = await lane.run(reranker.similarity, question, texts)
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (len(texts),):
        raise ProviderBadReply(f"the reranker gave {scores.size} scores for {len(texts)} texts")
    if not np.isfinite(scores).all():
        raise ProviderBadReply("the reranker gave a score that is not a finite number")
    return scores


async def _highlights(question: Sequence[Term], chunks: Sequence[Chunk | None], lane: Lane) -> list[str]:
    """Each chunk's content with the question's words marked, "" for one that is no more."""
    highlighter = Highlighter(question)
    texts = ["" if chunk is None else chunk.content for chunk in chunks]
    return await aside(lane, sum(map(len, texts)), lambda: list(map(highlighter.mark, texts)))


def _refusal(reranker: Reranker) -> ProviderError | None:
    """Why the reranker would not be asked now, if it can tell: then nothing is read for it."""
    try:
        if (check := getattr(reranker, "check", None)) is not None:
            check()
    except ProviderError as refusal:
        return refusal
    return None


def _check(request: RetrievalRequest) -> None:
    for name in ("page", "page_size", "top_k", "rerank_limit"):
        if getattr(request, name) < 1:
            raise InvalidArgument(f"{name} {getattr(request, name)} is less than 1")


def _search_request(request: RetrievalRequest, terms: tuple[Term, ...], vector: np.ndarray | None, space: str) -> SearchRequest:
    return SearchRequest(
        tenant_id=request.tenant_id,
        dataset_ids=request.dataset_ids,
        document_ids=request.document_ids,
        terms=terms,
        field_boosts=FIELD_BOOSTS,
        vector=vector,
        space=space,
        text_k=TEXT_CANDIDATES,
        vector_k=request.top_k,
        available=request.available,
    )


def _wanted(request: RetrievalRequest, search: SearchRequest, trust: float, *, best: int, named: bool) -> Wanted:
    return Wanted(
        search,
        trust=trust,
        vector_weight=request.vector_similarity_weight,
        threshold=request.similarity_threshold,
        keep_vector_only=request.keep_vector_only,
        start=(request.page - 1) * request.page_size,
        size=request.page_size,
        best=best,
        named=named,
    )


async def _rerank(request: RetrievalRequest, best: Entries, reranker: Reranker, lane: Lane) -> tuple[Ranking, np.ndarray]:
    """The reranked list and each candidate's score. The threshold is for final similarities, so the best were found without it."""
    texts = ["" if chunk is None else chunk.content for chunk in best.chunks]
    scores = await async_rerank_by_model(request.question.strip(), texts, reranker, lane)
    reranked = fuse_reranked(
        best.candidates, best.ranking, scores,
        vector_weight=request.vector_similarity_weight, threshold=request.similarity_threshold,
    )  # fmt: skip
    return reranked, scores


def _explain(candidates: Candidates, row: int, trust: float, rerank_scores: Sequence[float]) -> dict[str, Any]:
    """Raw scores and ranks of one candidate; None where the arm did not bring it or could not score it."""
    text_rank, vector_rank = int(candidates.text_ranks[row]), int(candidates.vector_ranks[row])
    cosine = float(candidates.vector_scores[row])
    return {
        "bm25": float(candidates.text_scores[row]),
        "text_rank": text_rank if text_rank >= 0 else None,
        "cosine": None if np.isnan(cosine) else cosine,
        "vector_rank": vector_rank if vector_rank >= 0 else None,
        "vector_trust": trust,
        "rerank": rerank_scores[row] if rerank_scores else None,
    }


class _Stopwatch:
    """Milliseconds by stage, and in all since it was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            with stage(name):
                yield
        finally:
            self._stages[name] = self._stages.get(name, 0.0) + (time.perf_counter() - started) * 1000.0

    def passed(self, seconds: Mapping[str, float]) -> None:
        """As `rag.stages.passed`."""
        passed(seconds)
        for name, taken in seconds.items():
            self._stages[name] = self._stages.get(name, 0.0) + taken * 1000.0

    def timings(self) -> dict[str, float]:
        return {**self._stages, "total": (time.perf_counter() - self._started) * 1000.0}
