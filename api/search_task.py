"""What saved searches do beyond finding: answer, propose related questions, draw a mind map."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from api.body import WHOLE_LIMIT
from api.chat_input import owned_datasets
from api.chat_task import check_question, counter_of, languages_of, model_for, options_of
from api.errors import ApiError
from api.likeness import comparing
from api.parts import Parts
from api.retrieving import DocumentFilter, Search, retrieve
from db.services import search_service
from rag.errors import NotFound
from rag.flow.ask import async_ask
from rag.flow.chat import ChatEvent
from rag.flow.mindmap import gen_mindmap
from rag.flow.related import related_headings, related_questions
from rag.nlp.search import RetrievalRequest
from rag.types import RankedChunk

SEARCH_DEFAULTS: Mapping[str, Any] = {
    "kb_ids": [],
    "doc_ids": [],
    "similarity_threshold": 0.2,
    "vector_similarity_weight": 0.3,
    "use_kg": False,
    "rerank_id": "",
    "top_k": 1024,
    "summary": False,
    "chat_id": "",
    "llm_setting": {
        "temperature": 0.1,
        "top_p": 0.3,
        "frequency_penalty": 0.7,
        "presence_penalty": 0.4,
        "temperature_enabled": True,
        "top_p_enabled": True,
        "frequency_penalty_enabled": True,
        "presence_penalty_enabled": True,
    },
    "chat_settingcross_languages": [],
    "highlight": False,
    "keyword": False,
    "web_search": False,
    "related_search": False,
    "query_mindmap": False,
}

ANSWER_CHUNKS = 12
EXPLORED_CHUNKS = 12


async def answer_search(
    parts: Parts, tenant: str, config: Mapping[str, Any], question: str, dataset_ids: Sequence[Any]
) -> AsyncIterator[ChatEvent]:
    """The events of answering a question with a saved search. Raises `ApiError` before the first."""
    config = {**SEARCH_DEFAULTS, **config}
    model = model_for(parts, str(config["chat_id"] or ""))
    search = await _search_of(parts, tenant, config, dataset_ids, ANSWER_CHUNKS)
    return async_ask(
        question,
        retrieve=lambda asked: retrieve(parts, search, asked),
        model=model,
        count_tokens=counter_of(parts),
        options=options_of({}, config["llm_setting"] if isinstance(config["llm_setting"], dict) else {}, other_model=False),
        keyword=bool(config["keyword"]),
        cross_languages=languages_of(config["chat_settingcross_languages"]),
        compare=comparing(parts, tenant, search.embedding_model),
        deadline_seconds=parts.settings.chat_timeout_seconds,
        lane=parts.lanes.search,
    )


async def explore(parts: Parts, tenant: str, body: Mapping[str, Any]) -> list[str]:
    """Questions related to `body["question"]`: the model's, or without one the headings that the saved search's datasets offer."""
    question = check_question(body["question"])
    config = await _config(parts, tenant, body.get("search_id"))
    model = model_for(parts, str(config["chat_id"] or ""))
    if model is not None:
        return await related_questions(question, model)
    dataset_ids = config["kb_ids"]
    if not dataset_ids:
        return []
    search = await _search_of(parts, tenant, config, dataset_ids, EXPLORED_CHUNKS)
    return related_headings(question, await _chunks(parts, search, question))


async def mindmap(parts: Parts, tenant: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The tree for `body["question"]` over the datasets of the saved search, or else over `body["kb_ids"]`."""
    question = check_question(body["question"])
    config = await _config(parts, tenant, body.get("search_id"))
    dataset_ids = config["kb_ids"] or body.get("kb_ids")
    if not dataset_ids:
        raise ApiError(101, "No KB selected")
    if not isinstance(dataset_ids, list):
        raise ApiError(101, "`kb_ids` should be a list")
    model = model_for(parts, str(config["chat_id"] or ""))
    search = await _search_of(parts, tenant, config, dataset_ids, EXPLORED_CHUNKS)
    chunks = await _chunks(parts, search, question)
    return (await gen_mindmap(question, chunks, model, counter_of(parts), parts.lanes.search)).as_dict()


async def _chunks(parts: Parts, search: Search, question: str) -> Sequence[RankedChunk]:
    found = await retrieve(parts, search, question)
    parts.metrics.degraded(found.degraded)  # of an answer, api/turn.py counts what it had to do without
    return found.chunks


async def _config(parts: Parts, tenant: str, search_id: Any) -> dict[str, Any]:
    """The saved search's settings over the defaults; those alone without a search. Raises `ApiError` 103."""
    if not search_id:
        return dict(SEARCH_DEFAULTS)
    try:
        record = await parts.session.read(search_service.get, tenant, str(search_id).replace("-", ""))
    except NotFound:
        raise ApiError(103, "Has no permission for this operation.", data=False) from None
    return {**SEARCH_DEFAULTS, **record.search_config}


async def _search_of(parts: Parts, tenant: str, config: Mapping[str, Any], dataset_ids: Sequence[Any], page_size: int) -> Search:
    datasets = await owned_datasets(parts, tenant, dataset_ids)
    document_ids = tuple(str(item).replace("-", "") for item in config["doc_ids"]) if isinstance(config["doc_ids"], list) else ()
    stored = config.get("meta_data_filter")
    return Search(
        request=RetrievalRequest(
            question="",
            tenant_id=tenant,
            dataset_ids=tuple(dataset.id for dataset in datasets),
            page_size=page_size,
            top_k=max(1, min(int(_number(config, "top_k")), WHOLE_LIMIT)),
            similarity_threshold=_number(config, "similarity_threshold"),
            vector_similarity_weight=_number(config, "vector_similarity_weight"),
        ),
        embedding_model=datasets[0].embedding_model,
        data_versions=tuple(dataset.data_version for dataset in datasets),
        rerank_id=str(config["rerank_id"] or ""),
        documents=DocumentFilter(document_ids or None, None, stored if isinstance(stored, dict) else {}),
        model=model_for(parts, str(config["chat_id"] or "")),
    )


def _number(config: Mapping[str, Any], key: str) -> float:
    """A stored setting; its default where what was stored is no number."""
    value = config[key]
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else float(SEARCH_DEFAULTS[key])
