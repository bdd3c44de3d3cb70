"""/searches: saved searches, and questions to them."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from quart import Response, request

from api.body import check_name, id_list, order_of, page_of, require, tolerant
from api.chat_frames import degraded_of
from api.chat_task import check_question
from api.context import parts, tenant_id
from api.errors import ApiError
from api.reference import reference_of
from api.respond import http_date, success
from api.routes import Routes
from api.schema.chat import ListQuery, SearchBody, SearchCompletionBody, SearchPage, SearchReply
from api.search_task import SEARCH_DEFAULTS, answer_search
from api.sse import native_stream
from api.turn import saving
from db.services import dialog_service, search_service
from db.services.search_service import SearchRecord
from rag.errors import Conflict, NotFound
from rag.flow.chat import Answer, AnswerDelta, ChatEvent

api = Routes("search", kind="J")

CREATE_NAME_BYTES = 255
UPDATE_NAME_BYTES = 128
TEXT_CHARACTERS = 65_535


@api.route("POST", "/searches", body=SearchBody, data=dict[str, str])
async def create_search() -> Response:
    """Save a search."""
    body = await tolerant()
    require(body, "name")
    values = {"name": _name(body["name"], CREATE_NAME_BYTES), **_texts(body), "search_config": {**SEARCH_DEFAULTS, **_config(body)}}
    record = await parts().session.write(search_service.create, tenant_id(), values)
    return success({"search_id": record.id})


@api.route("GET", "/searches", query=ListQuery, data=SearchPage)
async def list_searches() -> Response:
    """List saved searches."""
    server, tenant = parts(), tenant_id()
    page, page_size = page_of(request.args)
    orderby, desc = order_of(request.args)
    owners = id_list("owner_ids")
    if owners and tenant not in owners:
        return success({"search_apps": [], "total": 0})
    keywords = request.args.get("keywords", "")
    total, records = await server.session.read(
        search_service.listing, tenant, keywords=keywords, orderby=orderby, desc=desc, page=page, page_size=page_size
    )
    beside = {"nickname": await server.session.read(dialog_service.owner_name, tenant), "tenant_avatar": None}
    return success({"search_apps": [_item(record) | beside for record in records], "total": total})


@api.route("GET", "/searches/<search_id>", data=SearchReply)
async def get_search(search_id: str) -> Response:
    """Get a saved search."""
    try:
        return success(_reply(await parts().session.read(search_service.get, tenant_id(), search_id.replace("-", ""))))
    except NotFound:
        raise ApiError(103, "Has no permission for this operation.", data=False) from None


@api.route("PUT", "/searches/<search_id>", body=SearchBody, data=SearchReply)
async def update_search(search_id: str) -> Response:
    """Change a saved search; `search_config` is merged."""
    server, tenant = parts(), tenant_id()
    record = await _own(search_id)
    body = await tolerant()
    require(body, "name", "search_config")
    config = {**record.search_config, **_config(body)}
    values = {"name": _name(body["name"], UPDATE_NAME_BYTES), **_texts(body), "search_config": config}
    try:
        return success(_reply(await server.session.write(search_service.update, tenant, record.id, values)))
    except Conflict:
        raise ApiError(102, "Duplicated search name.", 409) from None
    except NotFound:  # deleted meanwhile
        raise ApiError(109, "no authorization", data=False) from None


@api.route("DELETE", "/searches/<search_id>", data=bool)
async def delete_search(search_id: str) -> Response:
    """Delete a saved search."""
    record = await _own(search_id)
    await parts().session.write(search_service.delete, tenant_id(), record.id)
    return success(True)


@api.route(
    "POST",
    "/searches/<search_id>/completions",
    "/searches/<search_id>/completion",
    stream=True,
    body=SearchCompletionBody,
    reply_type="text/event-stream",
)
async def complete_search(search_id: str) -> Response:
    """Answer a question from the search's datasets, as a stream."""
    server, tenant = parts(), tenant_id()
    body = await tolerant()
    require(body, "question")
    question = check_question(body["question"])
    record = await _own(search_id)
    dataset_ids = record.search_config.get("kb_ids") or body.get("kb_ids")
    if not dataset_ids or not isinstance(dataset_ids, list):
        raise ApiError(102, "`kb_ids` is required.")
    events = await answer_search(server, tenant, record.search_config, question, dataset_ids)
    return native_stream(_frames(saving(None, events, server.metrics, streamed=True)), server.drain)


async def _frames(events: AsyncIterator[ChatEvent]) -> AsyncIterator[dict[str, Any]]:
    async with aclosing(events):  # type: ignore[type-var]
        async for event in events:
            if isinstance(event, AnswerDelta):
                yield {"answer": event.text, "reference": {}, "final": False}
            elif isinstance(event, Answer):
                yield {"answer": "", "reference": reference_of(event), "final": True, **degraded_of(event)}


async def _own(search_id: str) -> SearchRecord:
    try:
        return await parts().session.read(search_service.get, tenant_id(), search_id.replace("-", ""))
    except NotFound:
        raise ApiError(109, "no authorization", data=False) from None


def _name(value: Any, limit_bytes: int) -> str:
    if not isinstance(value, str):
        raise ApiError(102, "Search name must be string.")
    name = value.strip()
    if not name:
        raise ApiError(102, "Search name can't be empty.")
    size = len(name.encode())
    if size > limit_bytes:
        raise ApiError(102, f"Search name length is {size} which is large than {limit_bytes}.")
    return check_name(name)


def _config(body: dict[str, Any]) -> dict[str, Any]:
    config = body.get("search_config")
    if config is None and "search_config" not in body:
        return {}
    if not isinstance(config, dict):
        raise ApiError(102, "search_config must be a JSON object")
    return config


def _texts(body: dict[str, Any]) -> dict[str, str]:
    values: dict[str, str] = {}
    for key in ("description", "avatar"):
        text = body.get(key)
        if text is None:
            continue
        if not isinstance(text, str):
            raise ApiError(101, f"`{key}` should be a string")
        if len(text) > TEXT_CHARACTERS:
            raise ApiError(101, f"`{key}` exceeds {TEXT_CHARACTERS} characters")
        values[key] = text
    return values


def _item(record: SearchRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "avatar": record.avatar,
        "tenant_id": record.tenant_id,
        "name": record.name,
        "description": record.description,
        "created_by": record.created_by,
        "status": "1",
        "update_time": record.update_time,
        "create_time": record.create_time,
    }


def _reply(record: SearchRecord) -> dict[str, Any]:
    dates = {"create_date": http_date(record.create_time), "update_date": http_date(record.update_time)}
    return _item(record) | {"search_config": record.search_config} | dates
