"""Questions to a chat: completions, and what helps to ask on: related questions, a mind map."""

import time
from dataclasses import replace
from typing import Any

from quart import Response

from api.apps.chat_app import own_chat
from api.apps.session_app import own_session
from api.body import require, tolerant
from api.chat_frames import Ids, frames, whole
from api.chat_task import Ask, for_model, model_for, options_of, prologue_of, read_messages, task_of, variables_of
from api.context import parts, tenant_id
from api.errors import ApiError
from api.parts import Parts
from api.respond import success
from api.retrieving import check_documents
from api.routes import Routes
from api.schema.chat import CompletionBody, CompletionReply, MindmapBody, RecommendationBody
from api.search_task import explore, mindmap
from api.sse import native_stream
from api.turn import Turn, saving
from db.models import new_id
from db.services import conversation_service
from db.services.conversation_service import ConversationRecord, MessageRecord
from db.services.dialog_service import DialogRecord
from rag.flow.chat import async_chat

api = Routes("conversation", kind="J")

TURN_ID_CHARACTERS = 36
SESSION_NAME = "New session"


@api.route("POST", "/chat/completions", stream=True, body=CompletionBody, data=CompletionReply)
async def complete() -> Response:
    """Ask a chat, or the model alone; streamed unless `stream` is false."""
    return await _complete(await tolerant())


@api.route("POST", "/chats/<chat_id>/completions", stream=True, body=CompletionBody, data=CompletionReply)
async def complete_in_chat(chat_id: str) -> Response:
    """Ask a chat, as `/chat/completions` with its `chat_id`."""
    return await _complete(await tolerant() | {"chat_id": chat_id})


@api.route("POST", "/chat/recommendation", "/chat/recommandation", "/sessions/related_questions", body=RecommendationBody, data=list[str])
async def recommend() -> Response:
    """Questions related to this one."""
    body = await tolerant()
    require(body, "question")
    return success(await explore(parts(), tenant_id(), body))


@api.route("POST", "/chat/mindmap", body=MindmapBody, data=dict[str, Any])
async def draw_mindmap() -> Response:
    """What the datasets say about a question, as a tree."""
    body = await tolerant()
    require(body, "question", "kb_ids")
    return success(await mindmap(parts(), tenant_id(), body))


async def _complete(body: dict[str, Any]) -> Response:
    server, tenant = parts(), tenant_id()
    posted = read_messages(body)
    keep_all = _flag(body, "pass_all_history_messages", "pass_all_history", default=False)
    store = _flag(body, "store_history_messages", "store_history", default=True)
    if not store and not keep_all:
        raise ApiError(102, "`pass_all_history_messages` must be true when `store_history_messages` is false.")
    chat, session = await _place(server, tenant, body)
    posted = [*posted[:-1], _stamped(posted[-1])]
    history = posted if keep_all or chat is None else [*(session.messages if session else ()), posted[-1]]
    document_ids = _document_ids(body.get("doc_ids"))
    if document_ids and chat is not None and chat.datasets:
        await check_documents(server, tenant, [dataset.id for dataset in chat.datasets], document_ids)
    task = task_of(server, tenant, chat, _ask(server, body, chat, history, document_ids or None))
    session_id, turn = session.id if session else "", None
    if store and chat is not None:
        if session is None:
            session_id = new_id()
            task = replace(task, alongside=lambda: _open_session(server, tenant, chat, session_id))
        turn = Turn(server.session, tenant, session_id, posted[-1].turn_id, posted if keep_all else posted[-1:], replace=keep_all)
    ids = Ids(posted[-1].turn_id, session_id, chat.id if chat else "")
    streamed = body.get("stream", True) is not False
    events = saving(turn, async_chat(task), server.metrics, streamed=streamed)
    if not streamed:
        return success(await whole(events, ids))
    shown = frames(events, ids, with_final=task.retrieve is not None, legacy=bool(body.get("legacy")))
    return native_stream(shown, server.drain)


async def _place(server: Parts, tenant: str, body: dict[str, Any]) -> tuple[DialogRecord | None, ConversationRecord | None]:
    """The chat and the session the request names."""
    chat_id = str(body.get("chat_id") or "")
    session_id = str(body.get("session_id") or body.get("conversation_id") or "")
    if not chat_id:
        if session_id:
            raise ApiError(102, "`chat_id` is required when `session_id` is provided.")
        return None, None
    chat = await own_chat(server, tenant, chat_id)
    return chat, await own_session(server, tenant, chat.id, session_id) if session_id else None


def _ask(
    server: Parts, body: dict[str, Any], chat: DialogRecord | None, history: list[MessageRecord], document_ids: tuple[str, ...] | None
) -> Ask:
    named = str(body.get("llm_id") or "")
    setting = {} if chat is None else chat.llm_setting
    return Ask(
        messages=for_model(history),
        model=model_for(server, named or (chat.llm_id if chat else "")),
        options=options_of(body, setting, other_model=bool(named)),
        variables=variables_of(chat, body),
        cite=body.get("quote", True) is not False,
        document_ids=document_ids,
    )


def _document_ids(value: Any) -> tuple[str, ...]:
    ids = value.split(",") if isinstance(value, str) else [] if value is None else value
    if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids):
        raise ApiError(101, "`doc_ids` should be a string of ids separated by commas, or a list of them")
    return tuple(dict.fromkeys(item.strip().replace("-", "") for item in ids if item.strip()))


def _stamped(message: MessageRecord) -> MessageRecord:
    """The question with an id, that of the turn, and a time."""
    turn_id = message.turn_id if 0 < len(message.turn_id) <= TURN_ID_CHARACTERS else new_id()
    return replace(message, turn_id=turn_id, created_at=message.created_at or time.time())


async def _open_session(server: Parts, tenant: str, chat: DialogRecord, session_id: str) -> None:
    await server.session.write(
        conversation_service.create,
        tenant,
        chat.id,
        name=SESSION_NAME,
        user_id=tenant,
        prologue=prologue_of(chat),
        conversation_id=session_id,
    )


def _flag(body: dict[str, Any], name: str, other: str, *, default: bool) -> bool:
    return bool(body.get(name, body.get(other, default)))
