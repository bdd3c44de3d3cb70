"""Finds the chunks for a chat's or a saved search's question: its documents chosen by id and metadata, then `async_retrieval`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from api.parts import Parts
from db.services import document_service, metadata_service
from rag.errors import NotFound, ProviderError
from rag.flow.metadata_filter import choose_conditions
from rag.nlp.search import RetrievalRequest, async_retrieval
from rag.ports import ChatModel, Embedder, Reranker
from rag.types import Retrieval

log = structlog.get_logger("millrace.chat")


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
    """How a chat searches. `model` chooses metadata conditions where the stored filter leaves them to it."""

    tenant_id: str
    dataset_ids: tuple[str, ...]
    embedding_model: str
    page_size: int
    page: int = 1
    top_k: int = 1024
    similarity_threshold: float = 0.2
    vector_similarity_weight: float = 0.3
    rerank_id: str = ""
    documents: DocumentFilter = field(default_factory=DocumentFilter)
    model: ChatModel | None = None


async def retrieve(parts: Parts, search: Search, question: str) -> Retrieval:
    """The best chunks for the question. `degraded` names what could not be used: "embed", "rerank", "filter" ...

    The counts by document carry no names. Raises as `async_retrieval`.
    """
    document_ids, degraded = await _document_ids(parts, search, question)
    embedder = _embedder(parts, search.embedding_model)
    if embedder is None:
        degraded.append("embed")
    reranker = _reranker(parts, search.rerank_id)
    if search.rerank_id and reranker is None:
        degraded.append("rerank")
    request = RetrievalRequest(
        question=question,
        tenant_id=search.tenant_id,
        dataset_ids=search.dataset_ids,
        document_ids=document_ids,
        page=search.page,
        page_size=search.page_size,
        similarity_threshold=search.similarity_threshold,
        vector_similarity_weight=search.vector_similarity_weight,
        top_k=search.top_k,
        keep_vector_only=parts.settings.keep_vector_only,
        rerank_limit=parts.settings.rerank_candidates,
    )
    found = await async_retrieval(
        request,
        store=parts.store,
        search_lane=parts.lanes.search,
        embedder=embedder,
        reranker=reranker,
        model_lane=parts.lanes.model,
        document_names=_no_names,
    )
    return replace(found, degraded=(*found.degraded, *degraded)) if degraded else found


async def metadata_of(parts: Parts, tenant_id: str, dataset_ids: Sequence[str], document_ids: Sequence[str]) -> dict[str, Any]:
    """The documents' metadata by document id."""
    briefs = await parts.session.read(document_service.briefs, tenant_id, dataset_ids, sorted(set(document_ids)))
    return {brief.id: brief.meta_fields for brief in briefs}


async def _document_ids(parts: Parts, search: Search, question: str) -> tuple[tuple[str, ...] | None, list[str]]:
    """The documents to search, None for all, and the names of what failed."""
    wanted = search.documents
    conditions = [wanted.condition] if wanted.condition else []
    degraded: list[str] = []
    method = wanted.stored.get("method")
    if method == "manual" and wanted.stored.get("manual"):
        conditions.append(_manual(wanted.stored))
    elif method in ("auto", "semi_auto") and search.model is not None:
        try:
            if chosen := await _chosen(parts, search, question):
                conditions.append(chosen)
        except (ProviderError, TimeoutError) as error:
            log.warning("metadata filter left out", error=type(error).__name__)
            degraded.append("filter")
    ids = wanted.document_ids
    for condition in conditions:
        matching = await parts.session.read(metadata_service.documents_matching, search.tenant_id, search.dataset_ids, condition, ids)
        ids = tuple(matching)
    return ids, degraded


def _manual(stored: Mapping[str, Any]) -> dict[str, Any]:
    items = [item for item in stored["manual"] if isinstance(item, dict)] if isinstance(stored["manual"], list) else []
    conditions = [{"name": item.get("key"), "comparison_operator": item.get("op"), "value": item.get("value")} for item in items]
    return {"logic": stored.get("logic", "and"), "conditions": conditions}


async def _chosen(parts: Parts, search: Search, question: str) -> dict[str, Any] | None:
    """The model's conditions; None where it has none or no document meets them."""
    if search.model is None:
        return None
    briefs = await parts.session.read(document_service.briefs, search.tenant_id, search.dataset_ids)
    summary = metadata_service.summarise([brief.meta_fields for brief in briefs])
    allowed = search.documents.stored.get("semi_auto") if search.documents.stored.get("method") == "semi_auto" else None
    names = {item.get("key") if isinstance(item, dict) else item for item in allowed} if isinstance(allowed, list) else summary.keys()
    values = {key: [value for value, _ in entry["values"]] for key, entry in summary.items() if key in names}
    chosen = await choose_conditions(search.model, question, values)
    if chosen and any(metadata_service.fulfils(brief.meta_fields, chosen) for brief in briefs):
        return chosen
    return None


def _embedder(parts: Parts, name: str) -> Embedder | None:
    try:
        return parts.models.embedder(name)
    except NotFound:  # the model was taken out of the settings after the dataset was made
        return None


def _reranker(parts: Parts, name: str) -> Reranker | None:
    try:
        return parts.models.reranker(name) if name else None
    except NotFound:  # likewise, or one of the two that a chat may always name
        return None


async def _no_names(document_ids: Sequence[str]) -> dict[str, str]:
    return {}
