"""/chats/{chat_id}/sessions: the conversations of a chat."""

from typing import Any

from quart import Response, request

from api.apps.chat_app import own_chat
from api.body import check_name, order_of, page_of, tolerant
from api.bulk import BulkDelete, bulk_reply, read_bulk
from api.chat_task import prologue_of
from api.context import parts, tenant_id
from api.errors import ApiError
from api.parts import Parts
from api.respond import http_date, success
from api.routes import Routes
from api.schema.chat import SessionBody, SessionQuery, SessionReply
from db.services import conversation_service
from db.services.conversation_service import ConversationRecord, MessageRecord
from rag.errors import NotFound

api = Routes("session", kind="J")

NAME_CHARACTERS = 255
SESSIONS = "/chats/<chat_id>/sessions"


@api.route("POST", SESSIONS, body=SessionBody, data=SessionReply)
async def create_session(chat_id: str) -> Response:
    """Create a session; its first message is the chat's prologue."""
    server, tenant = parts(), tenant_id()
    chat = await own_chat(server, tenant, chat_id)
    name = _name((await tolerant()).get("name", "New session"))
    record = await server.session.write(conversation_service.create, tenant, chat.id, name=name, user_id=tenant, prologue=prologue_of(chat))
    return success(session_reply(record))


@api.route("GET", SESSIONS, query=SessionQuery, data=list[SessionReply])
async def list_sessions(chat_id: str) -> Response:
    """List a chat's sessions."""
    server, tenant = parts(), tenant_id()
    chat = await own_chat(server, tenant, chat_id)
    page, page_size = page_of(request.args)
    orderby, desc = order_of(request.args)
    records = await server.session.read(
        conversation_service.listing,
        tenant,
        chat.id,
        conversation_id=request.args.get("id", "").replace("-", ""),
        name=request.args.get("name", ""),
        user_id=request.args.get("user_id", ""),
        orderby=orderby,
        desc=desc,
        page=page,
        page_size=page_size,
    )
    return success([session_reply(record) for record in records])


@api.route("GET", f"{SESSIONS}/<session_id>", data=SessionReply)
async def get_session(chat_id: str, session_id: str) -> Response:
    """Get a session."""
    server, tenant = parts(), tenant_id()
    chat = await own_chat(server, tenant, chat_id)
    record = await own_session(server, tenant, chat.id, session_id)
    return success(session_reply(record) | {"avatar": chat.icon})


@api.route("PATCH PUT", f"{SESSIONS}/<session_id>", body=SessionBody, data=SessionReply)
async def rename_session(chat_id: str, session_id: str) -> Response:
    """Rename a session."""
    server, tenant = parts(), tenant_id()
    chat = await own_chat(server, tenant, chat_id)
    record = await own_session(server, tenant, chat.id, session_id, elsewhere="Session not found!")
    body = await tolerant()
    if "message" in body or "messages" in body:
        raise ApiError(102, "`messages` cannot be changed")
    if "reference" in body:
        raise ApiError(102, "`reference` cannot be changed")
    name = None if body.get("name") is None else _name(body["name"])
    return success(session_reply(await server.session.write(conversation_service.rename, tenant, record.id, name)))


@api.route("DELETE", SESSIONS, body=BulkDelete, data=Any)
async def delete_sessions(chat_id: str) -> Response:
    """Delete several sessions, or all."""
    server, tenant = parts(), tenant_id()
    chat = await own_chat(server, tenant, chat_id)
    bulk = read_bulk(await tolerant())
    if bulk is None:
        return success({})
    deleted = await server.session.write(conversation_service.delete, tenant, chat.id, bulk.keys)
    return bulk_reply(bulk, deleted, "sessions", "The chat doesn't own the session {id}", "Duplicate session ids: {id}", True)


async def own_session(
    server: Parts, tenant: str, chat_id: str, session_id: str, elsewhere: str = "Session does not belong to this chat!"
) -> ConversationRecord:
    """The chat's session. Raises `ApiError` 102/404; `elsewhere` is the text for a session of another chat of the tenant."""
    try:
        record = await server.session.read(conversation_service.get, tenant, session_id.replace("-", ""))
    except NotFound:
        raise ApiError(102, "Session not found!", 404) from None
    if record.dialog_id != chat_id:
        raise ApiError(102, elsewhere, 404)
    return record


def session_reply(record: ConversationRecord) -> dict[str, Any]:
    """A session as the wire shows it; `reference` has an entry for each answer that followed a question."""
    return {
        "id": record.id,
        "chat_id": record.dialog_id,
        "name": record.name,
        "messages": [_message(message) for message in record.messages],
        "reference": [message.reference for message in record.messages if message.reference is not None],
        "user_id": record.user_id,
        "create_time": record.create_time,
        "create_date": http_date(record.create_time),
        "update_time": record.update_time,
        "update_date": http_date(record.update_time),
    }


def _message(message: MessageRecord) -> dict[str, Any]:
    shown: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.turn_id:
        shown["id"] = message.turn_id
    if message.created_at is not None:
        shown["created_at"] = message.created_at
    return shown | dict(message.extra)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ApiError(102, "`name` can not be empty")
    return check_name(value.strip()[:NAME_CHARACTERS])
