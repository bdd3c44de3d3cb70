"""From a checked question to a page of chunks, for every route: models, documents by id and metadata, help of the chat model."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from api.errors import ApiError
from api.parts import Parts
from db.services import document_service, metadata_service
from rag import stages
from rag.deadline import at_most
from rag.errors import DeadlineExceeded, NotFound, Overloaded, ProviderError, Unavailable, why_failed
from rag.flow import question as helpers
from rag.flow.chat import QUESTION_SECONDS
from rag.flow.metadata_filter import MAX_KEYS, MAX_VALUES, choose_conditions
from rag.llm.rerank_chain import FailoverReranker
from rag.nlp.search import RetrievalRequest, async_retrieval
from rag.nlp.tokenize import ANALYSER_VERSION
from rag.ports import ChatModel, Embedder
from rag.types import RankedChunk, Retrieval

log = structlog.get_logger("millrace.retrieval")

NOTHING_SEARCHED = Retrieval(0, (), ())
HELP_FAILURES = (ProviderError, Overloaded, DeadlineExceeded, TimeoutError)
SHARE_OF_HELP = 0.4  # of the time the request has left, each time that the chat model helps
NOT_CONFIGURED = "the model is not configured"

Missing = dict[str, str]
"""What a search had to do without, in order, and why."""


@dataclass(frozen=True, slots=True)
class Help:
    """What the chat model is to do for the question before it is searched."""

    keywords: bool = False
    languages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DocumentFilter:
    """Which documents take part: those named, those that meet the condition, those that the stored filter lets through.

    None and `{}` are no restriction. `stored` is a chat's `meta_data_filter`: `{"method": "manual" | "auto" | "semi_auto", ...}`.
    """

    document_ids: tuple[str, ...] | None = None
    condition: Mapping[str, Any] | None = None
    stored: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How to search. The question, the documents and the limits of the settings are put into `request`.

    `data_versions` are those of its datasets; without them the result is not remembered.
    `rerank_id` "" is none. `model` helps with the question, and chooses conditions where the stored filter leaves them to it.
    Without `count_by_name` the counts by document carry no names, and a query is saved.
    """

    request: RetrievalRequest
    embedding_model: str
    rerank_id: str = ""
    documents: DocumentFilter = field(default_factory=DocumentFilter)
    help: Help = field(default_factory=Help)
    model: ChatModel | None = None
    count_by_name: bool = True
    data_versions: tuple[int, ...] = ()


async def retrieve(parts: Parts, search: Search, question: str) -> Retrieval:
    """The page that was asked for. What could not be used is named in `degraded`: "embed", "rerank", "filter" ...

    Raises as `async_retrieval`.
    """
    stages.flow("retrieval")
    results = parts.memory.results if parts.memory is not None else None
    depends = _depends_on(parts, search) if results is not None else None
    if results is None or depends is None:
        return await _retrieve(parts, search, question)
    request = replace(search.request, question=question.strip(), document_ids=search.documents.document_ids)
    return await results.remembered(request, search.data_versions, depends, lambda: _retrieve(parts, search, question))


async def _retrieve(parts: Parts, search: Search, question: str) -> Retrieval:
    missing = Missing()
    document_ids = await _document_ids(parts, search, question, missing)
    if document_ids == () or not question.strip():
        return NOTHING_SEARCHED
    question = await _helped(search, question, missing)
    embedder = _embedder(parts, search.embedding_model, missing)
    reranker = _reranker(parts, search.rerank_id, missing)
    request = replace(
        search.request,
        question=question,
        document_ids=document_ids,
        keep_vector_only=parts.settings.keep_vector_only,
        rerank_limit=parts.settings.rerank_candidates,
        embed_seconds=parts.settings.embed_timeout_seconds,
    )

    async def names(ids: Sequence[str]) -> Mapping[str, str]:
        if not search.count_by_name:
            return {}
        return await parts.session.read(document_service.names, request.tenant_id, ids)

    with stages.stage("turn"):
        await parts.spacing.turn()
    try:
        found = await async_retrieval(
            request,
            finder=parts.finder,
            lane=parts.lanes.search,
            embedder=embedder,
            reranker=reranker,
            rerank_lane=parts.lanes.rerank,
            document_names=names,
        )
    finally:
        parts.spacing.ended()
    if reranker is not None and reranker.excuse and "rerank" not in found.degraded:
        missing["rerank"] = reranker.excuse
    return replace(found, degraded=(*found.degraded, *missing), reasons={**missing, **found.reasons}) if missing else found


async def check_documents(parts: Parts, tenant_id: str, dataset_ids: Sequence[str], document_ids: Sequence[str]) -> None:
    """Raises `ApiError` (102/404) for a document that is not in the datasets."""
    if not document_ids:
        return
    found = {brief.id for brief in await parts.session.read(document_service.briefs, tenant_id, dataset_ids, document_ids)}
    for document_id in document_ids:
        if document_id not in found:
            raise ApiError(102, f"The datasets don't own the document {document_id}", 404)


async def metadata_of(parts: Parts, tenant_id: str, chunks: Sequence[RankedChunk]) -> dict[str, dict[str, Any]]:
    """Document id -> metadata, for the chunks' documents."""
    document_ids = sorted({ranked.chunk.document_id for ranked in chunks})
    dataset_ids = sorted({ranked.chunk.dataset_id for ranked in chunks})
    briefs = await parts.session.read(document_service.briefs, tenant_id, dataset_ids, document_ids)
    return {brief.id: dict(brief.meta_fields) for brief in briefs}


def _depends_on(parts: Parts, search: Search) -> dict[str, Any] | None:
    """What a result depends on beside the request and the data; None for one that is not to be remembered.

    What a chat model adds may be something else each time, and whoever asks for an explanation wants to know of this search.
    """
    helped = search.help.keywords or search.help.languages or search.documents.stored.get("method") in ("auto", "semi_auto")
    if helped or search.request.explain or not search.data_versions:
        return None
    try:
        space = parts.models.embedder(search.embedding_model).space
        embedding = parts.models.resolve(search.embedding_model or parts.models.default_embedding, "embedding").facts
        reranker = parts.models.resolve(search.rerank_id, "rerank").facts if search.rerank_id else ()
    except (NotFound, Unavailable):
        return None
    return {
        "space": space,
        "embedding": embedding,
        "reranker": reranker,
        "condition": search.documents.condition,
        "stored": search.documents.stored,
        "count_by_name": search.count_by_name,
        "keep_vector_only": parts.settings.keep_vector_only,
        "rerank_candidates": parts.settings.rerank_candidates,
        "store": type(parts.store).__name__,
        "analyser": ANALYSER_VERSION,
    }


# ---------------------------------------------------------------------------------------------------- documents
async def _document_ids(parts: Parts, search: Search, question: str, missing: Missing) -> tuple[str, ...] | None:
    """The documents to search; None for all."""
    wanted = search.documents
    tenant_id, dataset_ids = search.request.tenant_id, search.request.dataset_ids
    conditions = [wanted.condition] if wanted.condition else []
    method = wanted.stored.get("method")
    if method == "manual" and wanted.stored.get("manual"):
        conditions.append(_manual(wanted.stored))
    ids = wanted.document_ids
    for condition in conditions:
        ids = tuple(await parts.session.read(metadata_service.documents_matching, tenant_id, dataset_ids, condition, ids))
    if method in ("auto", "semi_auto") and search.model is not None:
        try:
            async with at_most(QUESTION_SECONDS, SHARE_OF_HELP):
                chosen = await _chosen(parts, search, search.model, question)
        except HELP_FAILURES as error:
            log.warning("metadata filter left out", error=type(error).__name__)
            missing["filter"] = why_failed(error)
        else:
            if chosen:
                ids = tuple(chosen if ids is None else chosen.intersection(ids))
    return ids


def _manual(stored: Mapping[str, Any]) -> dict[str, Any]:
    items = [item for item in stored["manual"] if isinstance(item, dict)] if isinstance(stored["manual"], list) else []
    conditions = [{"name": item.get("key"), "comparison_operator": item.get("op"), "value": item.get("value")} for item in items]
    return {"logic": stored.get("logic", "and"), "conditions": conditions}


def _keys_to_choose_from(stored: Mapping[str, Any]) -> list[str] | None:
    """Those that a "semi_auto" filter names; None for all."""
    named = stored.get("semi_auto") if stored.get("method") == "semi_auto" else None
    if not isinstance(named, list):
        return None
    keys = [item.get("key") if isinstance(item, dict) else item for item in named]
    return [key for key in keys if isinstance(key, str)]


async def _chosen(parts: Parts, search: Search, model: ChatModel, question: str) -> set[str]:
    """The documents that meet the model's conditions; none where it has no condition."""
    searched = search.request.tenant_id, search.request.dataset_ids
    keys = _keys_to_choose_from(search.documents.stored)
    values = await parts.session.read(metadata_service.examples, *searched, keys, MAX_KEYS, MAX_VALUES)
    condition = await choose_conditions(model, question, values)
    return set(await parts.session.read(metadata_service.documents_matching, *searched, condition)) if condition else set()


# ---------------------------------------------------------------------------------------------------- models
def _embedder(parts: Parts, name: str, missing: Missing) -> Embedder | None:
    try:
        return parts.models.embedder(name)
    except NotFound:  # the model was taken out of the settings after the dataset was made
        missing["embed"] = NOT_CONFIGURED
        return None


def _reranker(parts: Parts, name: str, missing: Missing) -> FailoverReranker | None:
    try:
        return parts.models.reranker(name) if name else None
    except NotFound:  # likewise, or one of the two that a chat may always name
        missing["rerank"] = NOT_CONFIGURED
        return None


async def _helped(search: Search, question: str, missing: Missing) -> str:
    """The question with what the chat model adds."""
    extra: list[str] = []
    languages = search.help.languages
    if languages:
        extra += await _add("cross_languages", search.model, lambda chat: helpers.translate(chat, question, languages), missing)
    if search.help.keywords:
        extra += await _add("keyword", search.model, lambda chat: helpers.keywords(chat, question), missing)
    return " ".join((question, *extra))


async def _add(
    name: str, model: ChatModel | None, ask: Callable[[ChatModel], Awaitable[tuple[str, ...]]], missing: Missing
) -> tuple[str, ...]:
    if model is None:  # the extractive answerer cannot write
        missing[name] = "no chat model is configured"
        return ()
    try:
        async with at_most(QUESTION_SECONDS, SHARE_OF_HELP):
            return await ask(model)
    except HELP_FAILURES as error:
        log.warning("question searched without the chat model's help", help=name, error=type(error).__name__)
        missing[name] = why_failed(error)
        return ()
