"""Search in datasets: POST /retrieval (contract, 7)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quart import Response

from api import respond, retrieving
from api.body import integer, number, page_of, tolerant
from api.condition import check_condition
from api.context import parts, tenant_id
from api.errors import ApiError
from api.retrieving import NOTHING_SEARCHED, DocumentFilter, Help, Search
from api.routes import Routes
from api.schema import retrieval as schema
from db.services import dataset_service
from db.services.dataset_service import DatasetBrief
from rag.errors import NotFound
from rag.nlp.search import RetrievalRequest
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
    search = Search(
        request=request,
        embedding_model=datasets[0].embedding_model,
        rerank_id=_rerank_id(body.get("rerank_id")),
        documents=_documents(body, named),
        help=helped,
        model=parts().models.chat(),
        data_versions=tuple(dataset.data_version for dataset in datasets),
    )
    metadata = _asked_metadata(body)
    try:
        found = await retrieving.retrieve(parts(), search, question)
    except NotFound as error:
        raise ApiError(102, NO_CHUNK, 404) from error
    parts().metrics.degraded(found.degraded)
    if found is NOTHING_SEARCHED:
        return respond.reply({"total": 0, "chunks": [], "doc_aggs": {}})
    metas = await retrieving.metadata_of(parts(), tenant_id(), found.chunks) if metadata.include else None
    return respond.reply(_wire(found, metas, metadata, explain=request.explain))


async def searched_datasets(dataset_ids: Any) -> list[DatasetBrief]:
    """The caller's datasets, which share an embedding model. Raises `ApiError` (102)."""
    if not dataset_ids:
        raise ApiError(102, "`dataset_ids` is required.")
    if not isinstance(dataset_ids, list):
        raise ApiError(102, "`dataset_ids` should be a list")
    wanted = {str(dataset_id): str(dataset_id).replace("-", "") for dataset_id in dataset_ids}
    found = await parts().session.read(dataset_service.briefs, tenant_id(), list(wanted.values()))
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
    wanted = tuple(dict.fromkeys(str(document_id) for document_id in given))
    await retrieving.check_documents(parts(), tenant_id(), dataset_ids, wanted)
    return wanted


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
        explain=_switch(body, "explain"),
    )
    return request, Help(bool(body.get("keyword")), tuple(str(language) for language in languages))


def _rerank_id(name: Any) -> str:
    if not name:
        return ""
    try:
        parts().models.resolve(str(name), "rerank")
    except NotFound as error:
        raise ApiError(102, f"Model {name} not found for model rerank", 404) from error
    return str(name)


def _documents(body: Mapping[str, Any], named: tuple[str, ...]) -> DocumentFilter:
    """Those named win over a condition."""
    condition = body.get("metadata_condition")
    if condition is not None and not isinstance(condition, dict):
        raise ApiError(101, "`metadata_condition` should be an object")
    check_condition(condition or {})
    return DocumentFilter(named) if named else DocumentFilter(condition=condition)


def _asked_metadata(body: Mapping[str, Any]) -> Asked:
    given = body.get("reference_metadata")
    if given is None:
        given = {"include": body.get("include_metadata"), "fields": body.get("metadata_fields")}
    if not isinstance(given, dict):
        raise ApiError(101, "`reference_metadata` should be an object")
    fields = given.get("fields")
    if fields is not None and not (isinstance(fields, list) and all(isinstance(field, str) for field in fields)):
        raise ApiError(101, "`fields` should be a list of strings")
    return Asked(_switch(given, "include"), None if fields is None else tuple(fields))


def _switch(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(101, f"`{name}` should be a boolean")
    return bool(value)


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
