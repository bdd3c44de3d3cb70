"""Search in datasets: POST /retrieval (contract, 7)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quart import Response

from api import respond, retrieving
from api.body import integer, number, page_of, tolerant
from api.context import parts, tenant_id
from api.errors import ApiError
from api.retrieving import Help
from api.routes import Routes
from api.schema import retrieval as schema
from db.services import dataset_service, document_service
from db.services.dataset_service import DatasetRecord
from rag.errors import NotFound
from rag.nlp.search import RetrievalRequest
from rag.ports import Reranker
from rag.types import RankedChunk, Retrieval

api = Routes("retrieval")

NO_CHUNK = "No chunk found! Check the chunk status please!"
SWITCH = {True: True, False: False, "true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Asked:
    """Which metadata to show with the chunks; `fields` None means all keys."""

    include: bool
    fields: tuple[str, ...] | None


@api.route("POST", "/retrieval", body=schema.Retrieval, data=schema.Retrieved)
async def retrieve() -> Response:
    """Find the chunks that answer a question."""
    body = await tolerant()
    datasets = await searched_datasets(body.get("dataset_ids"))
    question = body.get("question")
    if question is None:
        raise ApiError(102, "`question` is required.")
    if not isinstance(question, str):
        raise ApiError(101, "`question` should be a string")
    dataset_ids = [dataset.id for dataset in datasets]
    named = await _named_documents(body, dataset_ids)
    request, helped = _request(body, question, dataset_ids)
    reranker = _reranker(body.get("rerank_id"))
    metadata = _asked_metadata(body)
    document_ids = await _documents(body, dataset_ids, named)
    if not question.strip() or document_ids == ():
        return respond.reply({"total": 0, "chunks": [], "doc_aggs": {}})
    try:
        found = await retrieving.retrieve(parts(), replace(request, document_ids=document_ids), datasets, helped, reranker)
    except NotFound as error:
        raise ApiError(102, NO_CHUNK, 404) from error
    metas = await retrieving.metadata_of(parts(), tenant_id(), found) if metadata.include else None
    return respond.reply(_wire(found, metas, metadata, explain=request.explain))


async def searched_datasets(dataset_ids: Any) -> list[DatasetRecord]:
    """The caller's datasets, which share an embedding model. Raises `ApiError` (102)."""
    if not dataset_ids:
        raise ApiError(102, "`dataset_ids` is required.")
    if not isinstance(dataset_ids, list):
        raise ApiError(102, "`dataset_ids` should be a list")
    wanted = {str(dataset_id): str(dataset_id).replace("-", "") for dataset_id in dataset_ids}
    found = await parts().session.read(dataset_service.get_many, tenant_id(), list(wanted.values()))
    for given, plain in wanted.items():
        if plain not in found:
            raise ApiError(102, f"You don't own the dataset {given}.", 404)
    datasets = [found[plain] for plain in dict.fromkeys(wanted.values())]
    models = sorted({dataset.embedding_model for dataset in datasets})
    if len(models) > 1 and "" in models:
        raise ApiError(102, "Cannot search across datasets where some have embedding models and others do not.")
    if len(models) > 1 and len({_meaning(name) for name in models}) > 1:
        raise ApiError(102, f"Datasets use different embedding models: {models}")
    return datasets


def _meaning(model: str) -> str:
    try:
        return parts().models.resolve(model, "embedding").identifier
    except NotFound:
        return model


async def _named_documents(body: Mapping[str, Any], dataset_ids: Sequence[str]) -> tuple[str, ...]:
    given = body.get("document_ids") or []
    if not isinstance(given, list):
        raise ApiError(102, "`documents` should be a list")
    wanted = [str(document_id) for document_id in given]
    found = (
        {brief.id for brief in await parts().session.read(document_service.briefs, tenant_id(), dataset_ids, wanted)} if wanted else set()
    )
    for document_id in wanted:
        if document_id not in found:
            raise ApiError(102, f"The datasets don't own the document {document_id}", 404)
    return tuple(dict.fromkeys(wanted))


def _request(body: Mapping[str, Any], question: str, dataset_ids: Sequence[str]) -> tuple[RetrievalRequest, Help]:
    top_k = integer(body, "top_k", 1024)
    if top_k <= 0:
        raise ApiError(102, "`top_k` must be greater than 0")
    highlight = SWITCH.get(body.get("highlight") or False) if isinstance(body.get("highlight"), (bool, str, type(None))) else None
    if highlight is None:
        raise ApiError(102, "`highlight` should be a boolean")
    page, page_size = page_of({name: integer(body, name, default) for name, default in (("page", 1), ("page_size", 30))})
    languages = body.get("cross_languages") or []
    if not isinstance(languages, list):
        raise ApiError(101, "`cross_languages` should be a list")
    request = RetrievalRequest(
        question=question,
        tenant_id=tenant_id(),
        dataset_ids=tuple(dataset_ids),
        page=page,
        page_size=page_size,
        similarity_threshold=number(body, "similarity_threshold", 0.2),
        vector_similarity_weight=number(body, "vector_similarity_weight", 0.3),
        top_k=top_k,
        highlight=highlight,
        explain=body.get("explain") is True,
    )
    return request, Help(bool(body.get("keyword")), tuple(str(language) for language in languages))


def _reranker(name: Any) -> Reranker | None:
    if not name:
        return None
    try:
        return parts().models.reranker(str(name))
    except NotFound as error:
        raise ApiError(102, f"Model {name} not found for model rerank", 404) from error


async def _documents(body: Mapping[str, Any], dataset_ids: Sequence[str], named: tuple[str, ...]) -> tuple[str, ...] | None:
    """The documents that take part; None for all."""
    condition = body.get("metadata_condition")
    if condition is not None and not isinstance(condition, dict):
        raise ApiError(101, "`metadata_condition` should be an object")
    if named or not condition:
        return named or None
    return await retrieving.matching_documents(parts(), tenant_id(), dataset_ids, condition)


def _asked_metadata(body: Mapping[str, Any]) -> Asked:
    given = body.get("reference_metadata")
    if not isinstance(given, dict):
        given = {"include": body.get("include_metadata"), "fields": body.get("metadata_fields")}
    fields = given.get("fields")
    return Asked(given.get("include") is True, tuple(map(str, fields)) if isinstance(fields, list) else None)


def _wire(found: Retrieval, metas: Mapping[str, Mapping[str, Any]] | None, asked: Asked, *, explain: bool) -> dict[str, Any]:
    names = {entry.document_id: entry.document_name for entry in found.documents}
    chunks = [_chunk(ranked, names) for ranked in found.chunks]
    if metas is not None:
        for chunk in chunks:
            meta = metas.get(chunk["document_id"], {})
            chunk["document_metadata"] = {key: meta[key] for key in asked.fields or meta if key in meta}
    data: dict[str, Any] = {
        "total": found.total,
        "chunks": chunks,
        "doc_aggs": [{"doc_name": entry.document_name, "doc_id": entry.document_id, "count": entry.count} for entry in found.documents],
    }
    if found.degraded:
        data["degraded"] = list(found.degraded)
        data["reasons"] = dict(found.reasons)
    if explain:
        data["timings"] = dict(found.timings)
    return data


def _chunk(ranked: RankedChunk, names: Mapping[str, str]) -> dict[str, Any]:
    chunk = ranked.chunk
    wire = {
        "id": chunk.id,
        "content": chunk.content,
        "content_ltks": chunk.terms.content,
        "document_id": chunk.document_id,
        "document_keyword": names.get(chunk.document_id) or chunk.document_name,
        "dataset_id": chunk.dataset_id,
        "important_keywords": list(chunk.keywords),
        "tag_kwd": list(chunk.tags),
        "image_id": chunk.extra.get("image_id", ""),
        "similarity": ranked.similarity,
        "vector_similarity": ranked.vector_similarity,
        "term_similarity": ranked.term_similarity,
        "positions": [list(position) for position in chunk.positions],
        "doc_type_kwd": chunk.kind,
        "mom_id": "",
        "row_id": None,
    }
    if ranked.highlight is not None:
        wire["highlight"] = ranked.highlight
    if ranked.explain is not None:
        wire["explain"] = dict(ranked.explain)
    return wire
