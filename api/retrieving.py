"""From a checked question to a page of chunks: datasets and their model, documents by metadata, help of the chat model."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from api.parts import Parts
from db.services import document_service, metadata_service
from db.services.dataset_service import DatasetRecord
from rag.errors import NotFound, Overloaded, ProviderError
from rag.flow import question as helpers
from rag.nlp.search import RetrievalRequest, async_retrieval
from rag.ports import ChatModel, Embedder, Reranker
from rag.types import Retrieval

log = structlog.get_logger("millrace.retrieval")


@dataclass(frozen=True, slots=True)
class Help:
    """What the chat model is to do for the question before it is searched."""

    keywords: bool = False
    languages: tuple[str, ...] = ()


async def retrieve(
    parts: Parts, request: RetrievalRequest, datasets: Sequence[DatasetRecord], helped: Help, reranker: Reranker | None = None
) -> Retrieval:
    """The page that was asked for. What could not help is named in `degraded`. Raises as `async_retrieval`."""
    question, degraded = await _helped(parts, request.question, helped)
    embedder = _embedder(parts, datasets[0].embedding_model)
    if embedder is None:
        degraded.append("embed")

    async def names(document_ids: Sequence[str]) -> Mapping[str, str]:
        return await parts.session.read(document_service.names, request.tenant_id, document_ids)

    found = await async_retrieval(
        replace(
            request, question=question, keep_vector_only=parts.settings.keep_vector_only, rerank_limit=parts.settings.rerank_candidates
        ),
        store=parts.store,
        search_lane=parts.lanes.search,
        embedder=embedder,
        reranker=reranker,
        model_lane=parts.lanes.model,
        document_names=names,
    )
    degraded = [*found.degraded, *degraded]
    parts.metrics.degraded(degraded)
    return replace(found, degraded=tuple(degraded)) if degraded else found


async def matching_documents(parts: Parts, tenant_id: str, dataset_ids: Sequence[str], condition: Mapping[str, Any]) -> tuple[str, ...]:
    """Ids of the datasets' documents whose metadata fulfils the condition."""
    return tuple(await parts.session.read(metadata_service.documents_matching, tenant_id, dataset_ids, condition))


async def metadata_of(parts: Parts, tenant_id: str, found: Retrieval) -> dict[str, dict[str, Any]]:
    """Document id -> metadata, for the documents of the page."""
    document_ids = {ranked.chunk.document_id for ranked in found.chunks}
    dataset_ids = {ranked.chunk.dataset_id for ranked in found.chunks}
    briefs = await parts.session.read(document_service.briefs, tenant_id, sorted(dataset_ids), sorted(document_ids))
    return {brief.id: dict(brief.meta_fields) for brief in briefs}


def _embedder(parts: Parts, name: str) -> Embedder | None:
    try:
        return parts.models.embedder(name)
    except NotFound:  # the model was taken out of the settings after the dataset was made
        return None


async def _helped(parts: Parts, question: str, helped: Help) -> tuple[str, list[str]]:
    """The question with what the chat model adds, and the names of what it could not add."""
    if not question.strip() or not (helped.keywords or helped.languages):
        return question, []
    model = parts.models.chat()
    extra: list[str] = []
    failed: list[str] = []
    if helped.languages:
        await _add("cross_languages", model, lambda chat: helpers.translate(chat, question, helped.languages), extra, failed)
    if helped.keywords:
        await _add("keyword", model, lambda chat: helpers.keywords(chat, question), extra, failed)
    return " ".join((question, *extra)), failed


async def _add(
    name: str, model: ChatModel | None, ask: Callable[[ChatModel], Awaitable[tuple[str, ...]]], extra: list[str], failed: list[str]
) -> None:
    try:
        if model is None:  # the extractive answerer cannot write
            raise ProviderError("no chat model is configured")
        extra += await ask(model)
    except (ProviderError, Overloaded) as error:
        log.warning("question searched without the chat model's help", help=name, error=type(error).__name__)
        failed.append(name)
