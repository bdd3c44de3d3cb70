"""/chats: chat assistants."""

from typing import Any

from quart import Response, request

from api.body import id_list, order_of, page_of, tolerant
from api.bulk import BulkDelete, bulk_reply, read_bulk
from api.chat_input import read_chat
from api.context import parts, tenant_id
from api.errors import ApiError
from api.parts import Parts
from api.respond import http_date, success
from api.routes import Routes
from api.schema.chat import ChatBody, ChatPage, ChatReply, ListQuery
from db.services import dialog_service
from db.services.dialog_service import DialogRecord
from rag.errors import Conflict, NotFound

api = Routes("chat", kind="J")

LIST_LEAVES_OUT = ("create_date", "update_date", "tenant_llm_id", "tenant_rerank_id", "meta_data_filter")


@api.route("POST", "/chats", body=ChatBody, data=ChatReply)
async def create_chat() -> Response:
    """Create a chat."""
    server, tenant = parts(), tenant_id()
    values = await read_chat(server, tenant, await tolerant(), None, "create")
    try:
        record = await server.session.write(dialog_service.create, tenant, values)
    except Conflict:
        raise ApiError(102, "duplicated chat name in creating chat", 409) from None
    return success(chat_reply(server, record))


@api.route("GET", "/chats", query=ListQuery, data=ChatPage)
async def list_chats() -> Response:
    """List chats."""
    server, tenant = parts(), tenant_id()
    page, page_size = page_of(request.args)
    orderby, desc = order_of(request.args)
    owners = id_list("owner_ids")
    if owners and tenant not in owners:
        return success({"chats": [], "total": 0})
    total, records = await server.session.read(
        dialog_service.listing,
        tenant,
        dialog_id=request.args.get("id", "").replace("-", ""),
        name=request.args.get("name", ""),
        keywords=request.args.get("keywords", ""),
        orderby=orderby,
        desc=desc,
        page=page,
        page_size=page_size,
    )
    nickname = await server.session.read(dialog_service.owner_name, tenant)
    chats = [_list_item(chat_reply(server, record), nickname) for record in records]
    return success({"chats": chats, "total": total})


@api.route("GET", "/chats/<chat_id>", data=ChatReply)
async def get_chat(chat_id: str) -> Response:
    """Get a chat."""
    server = parts()
    return success(chat_reply(server, await own_chat(server, tenant_id(), chat_id)))


@api.route("PUT", "/chats/<chat_id>", body=ChatBody, data=ChatReply)
async def replace_chat(chat_id: str) -> Response:
    """Change a chat; the fields given are replaced as a whole."""
    return await _update(chat_id, "replace")


@api.route("PATCH", "/chats/<chat_id>", body=ChatBody, data=ChatReply)
async def patch_chat(chat_id: str) -> Response:
    """Change a chat; `llm_setting` and `prompt_config` are merged."""
    return await _update(chat_id, "merge")


@api.route("DELETE", "/chats/<chat_id>", data=bool)
async def delete_chat(chat_id: str) -> Response:
    """Delete a chat."""
    server, tenant = parts(), tenant_id()
    record = await own_chat(server, tenant, chat_id)
    await server.session.write(dialog_service.delete, tenant, [record.id])
    return success(True)


@api.route("DELETE", "/chats", body=BulkDelete, data=Any)
async def delete_chats() -> Response:
    """Delete several chats, or all."""
    server, tenant = parts(), tenant_id()
    body = await tolerant()
    if (chat_id := body.get("chat_id")) and not body.get("ids"):
        return await delete_chat(str(chat_id))
    bulk = read_bulk(body)
    if bulk is None:
        return success({})
    deleted = await server.session.write(dialog_service.delete, tenant, bulk.keys)
    if bulk.keys is None:
        return success({"success_count": len(deleted)} if deleted else {})
    return bulk_reply(bulk, deleted, "chats", "Chat({id}) not found.", "Duplicate chat ids: {id}", {"success_count": len(deleted)})


async def own_chat(server: Parts, tenant: str, chat_id: str) -> DialogRecord:
    """The tenant's chat. Raises `ApiError` 109, for an unknown one as for somebody else's."""
    try:
        return await server.session.read(dialog_service.get, tenant, chat_id.replace("-", ""))
    except NotFound:
        raise ApiError(109, "no authorization", data=False) from None


def chat_reply(server: Parts, record: DialogRecord) -> dict[str, Any]:
    """A chat as the wire shows it. A chat that names no model shows the id of the default one."""
    llm_id = record.llm_id or _model_id(server, server.models.default_chat)
    return {
        "id": record.id,
        "tenant_id": record.tenant_id,
        "name": record.name,
        "description": record.description,
        "icon": record.icon,
        "language": record.language,
        "llm_id": llm_id,
        "tenant_llm_id": _model_id(server, llm_id),
        "llm_setting": record.llm_setting,
        "prompt_type": record.prompt_type,
        "prompt_config": record.prompt_config,
        "meta_data_filter": record.meta_data_filter,
        "similarity_threshold": record.similarity_threshold,
        "vector_similarity_weight": record.vector_similarity_weight,
        "top_n": record.top_n,
        "top_k": record.top_k,
        "do_refer": record.do_refer,
        "rerank_id": record.rerank_id,
        "tenant_rerank_id": _rerank_id(server, record.rerank_id),
        "dataset_ids": [dataset.id for dataset in record.datasets],
        "kb_names": [dataset.name for dataset in record.datasets],
        "status": "1",
        "create_time": record.create_time,
        "create_date": http_date(record.create_time),
        "update_time": record.update_time,
        "update_date": http_date(record.update_time),
    }


async def _update(chat_id: str, mode: Any) -> Response:
    server, tenant = parts(), tenant_id()
    record = await own_chat(server, tenant, chat_id)
    values = await read_chat(server, tenant, await tolerant(), record, mode)
    try:
        record = await server.session.write(dialog_service.update, tenant, record.id, values)
    except Conflict:
        raise ApiError(102, "duplicated chat name", 409) from None
    except NotFound:  # deleted meanwhile
        raise ApiError(109, "no authorization", data=False) from None
    return success(chat_reply(server, record))


def _list_item(reply: dict[str, Any], nickname: str) -> dict[str, Any]:
    item = {key: value for key, value in reply.items() if key not in LIST_LEAVES_OUT}
    return item | {"nickname": nickname, "tenant_avatar": None}


def _model_id(server: Parts, name: str) -> str | None:
    """The 32 hex digits of a chat model; None when it is configured no more."""
    try:
        return server.models.resolve(name, "chat").id
    except NotFound:
        return None


def _rerank_id(server: Parts, name: str) -> str | None:
    try:
        return server.models.resolve(name, "rerank").id if name else None
    except NotFound:
        return None
