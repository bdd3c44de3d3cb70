"""Dify's external knowledge: /dify/retrieval (contract, 14)."""

from collections.abc import Mapping
from typing import Any

from quart import Response, request

from api import respond
from api.body import tolerant
from api.condition import check_condition
from api.context import parts, tenant_id
from api.errors import ApiError
from api.retrieving import DocumentFilter, Search, metadata_of, retrieve
from api.routes import Routes
from api.schema import retrieval as schema
from db.services import dataset_service
from rag.nlp.search import RetrievalRequest

api = Routes("dify", kind="D")

VECTOR_WEIGHT = 0.3
MALFORMED = "invalid or malformed arguments: top_k must be integer and score_threshold must be numeric; "


@api.route("POST", "/dify/retrieval", body=schema.DifyRetrieval, data=schema.DifyRecords)
async def dify_retrieval() -> Response:
    """Find chunks for Dify."""
    body = await tolerant()
    setting = body.get("retrieval_setting") or {}
    if not isinstance(setting, dict):
        raise ApiError(101, MALFORMED)
    return await _answer(body, setting)


@api.route("GET", "/dify/retrieval", query=schema.DifyQuery, data=schema.DifyRecords)
async def dify_retrieval_by_query() -> Response:
    """Find chunks for Dify, asked by a query string."""
    arguments = request.args.to_dict()
    return await _answer(arguments, arguments)


@api.route("GET", "/dify/retrieval/health", kind="J", public=True, data=bool)
async def dify_health() -> Response:
    """Whether the server answers."""
    return respond.success(True)


async def _answer(body: Mapping[str, Any], setting: Mapping[str, Any]) -> Response:
    missing = [name for name in ("knowledge_id", "query") if not body.get(name)]
    if missing:
        raise ApiError(101, f"required arguments are missing: {','.join(missing)}; ")
    top_k, threshold = _limits(setting)
    dataset = await parts().session.read(dataset_service.get, tenant_id(), str(body["knowledge_id"]).replace("-", ""))
    if dataset is None:
        raise ApiError(404, "Knowledgebase not found!")
    condition = body.get("metadata_condition") or {}
    if not isinstance(condition, dict):
        raise ApiError(101, "`metadata_condition` should be an object")
    check_condition(condition)
    question = str(body["query"])
    asked = RetrievalRequest(
        question=question,
        tenant_id=tenant_id(),
        dataset_ids=(dataset.id,),
        page_size=top_k,
        similarity_threshold=threshold,
        vector_similarity_weight=VECTOR_WEIGHT,
        top_k=top_k,
    )
    search = Search(request=asked, embedding_model=dataset.embedding_model, documents=DocumentFilter(condition=condition))
    found = await retrieve(parts(), search, question)
    parts().metrics.degraded(found.degraded)
    metas = await metadata_of(parts(), tenant_id(), found.chunks)
    names = {entry.document_id: entry.document_name for entry in found.documents}
    records = [
        {
            "content": ranked.chunk.content,
            "score": ranked.similarity,
            "title": names.get(ranked.chunk.document_id) or ranked.chunk.document_name,
            "metadata": metas.get(ranked.chunk.document_id, {})
            | {"doc_id": ranked.chunk.document_id, "document_id": ranked.chunk.document_id},
        }
        for ranked in found.chunks
    ]
    return respond.json_response({"records": records})


def _limits(setting: Mapping[str, Any]) -> tuple[int, float]:
    try:
        top_k, threshold = int(setting.get("top_k", 1024)), float(setting.get("score_threshold", 0.0))
    except (TypeError, ValueError):
        raise ApiError(101, MALFORMED) from None
    if not 0 < top_k <= 1024 or not abs(threshold) < float("inf"):
        raise ApiError(101, MALFORMED)
    return top_k, threshold
