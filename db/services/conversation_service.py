"""Sessions of a chat and their messages. A turn, question and answer, is appended in one transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peewee import fn

from db.dialect import among, locked
from db.models import Conversation, Message, name_key, now_ms
from db.records import freeze, page_of
from rag.errors import NotFound

INSERT_ROWS = 100  # rows of 8 columns an INSERT carries, under every database's limit of bound values


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """A message. `reference` is what an answer cites, `created_at` seconds since the epoch, `extra` what the caller added."""

    role: str
    content: str
    turn_id: str = ""
    reference: Mapping[str, Any] | None = None
    created_at: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ConversationRecord:
    """A session with its messages in order."""

    id: str
    tenant_id: str
    dialog_id: str
    name: str
    user_id: str
    messages: tuple[MessageRecord, ...]
    create_time: int
    update_time: int


def create(
    tenant_id: str, dialog_id: str, *, name: str, user_id: str, prologue: str, conversation_id: str | None = None
) -> ConversationRecord:
    """A new session that opens with the prologue; `conversation_id` is a new id the caller has made already."""
    given = {} if conversation_id is None else {"id": conversation_id}
    row = Conversation.create(tenant_id=tenant_id, dialog_id=dialog_id, name=name, user_id=user_id, **given)
    messages = (MessageRecord("assistant", prologue),)
    _insert(row.id, 0, messages)
    return _record(row, messages)


def get(tenant_id: str, conversation_id: str) -> ConversationRecord:
    """The session, of whichever chat of the tenant. Raises `NotFound`."""
    row = Conversation.get_or_none(Conversation.id == conversation_id, Conversation.tenant_id == tenant_id)
    if row is None:
        raise NotFound("no such session")
    return _records([row])[0]


def listing(
    tenant_id: str, dialog_id: str, *, conversation_id: str = "", name: str = "", user_id: str = "", orderby: str = "create_time",
    desc: bool = True, page: int = 1, page_size: int = 30,
) -> list[ConversationRecord]:  # fmt: skip
    """One page of the chat's sessions; ties by id. The name's case does not matter."""
    query = Conversation.select().where(Conversation.tenant_id == tenant_id, Conversation.dialog_id == dialog_id)
    if conversation_id:
        query = query.where(Conversation.id == conversation_id)
    if name:
        query = query.where(among(Conversation.id, _ids_named(dialog_id, name)))
    if user_id:
        query = query.where(Conversation.user_id == user_id)
    column = getattr(Conversation, orderby)
    order = (column.desc(), Conversation.id.desc()) if desc else (column.asc(), Conversation.id.asc())
    return _records(page_of(query.order_by(*order), page, page_size))


def rename(tenant_id: str, conversation_id: str, name: str | None) -> ConversationRecord:
    """The session under its new name; None keeps the old one. Raises `NotFound`."""
    changes = {} if name is None else {"name": name}
    mine = (Conversation.id == conversation_id) & (Conversation.tenant_id == tenant_id)
    Conversation.update(update_time=now_ms(), **changes).where(mine).execute()
    return get(tenant_id, conversation_id)


def delete(tenant_id: str, dialog_id: str, conversation_ids: Sequence[str] | None) -> set[str]:
    """Delete the chat's sessions (None: all) with their messages and return the ids of those that existed."""
    query = Conversation.select(Conversation.id).where(Conversation.tenant_id == tenant_id, Conversation.dialog_id == dialog_id)
    if conversation_ids is not None:
        query = query.where(among(Conversation.id, conversation_ids))
    ids = {row.id for row in locked(query.order_by(Conversation.id))}  # nobody appends a turn from here on
    Message.delete().where(among(Message.conversation_id, ids)).execute()
    Conversation.delete().where(among(Conversation.id, ids)).execute()
    return ids


def append_turn(tenant_id: str, conversation_id: str, messages: Sequence[MessageRecord], *, replace: bool = False) -> bool:
    """Whether the messages were put at the session's end; False when it was deleted meanwhile.

    With `replace` they become the whole session. Turns of parallel calls follow each other, none is torn apart.
    """
    mine = (Conversation.id == conversation_id) & (Conversation.tenant_id == tenant_id)
    if not Conversation.update(update_time=now_ms()).where(mine).execute():
        return False
    of_session = Message.conversation_id == conversation_id
    if replace:
        Message.delete().where(of_session).execute()
    last = Message.select(fn.MAX(Message.position)).where(of_session).scalar()
    _insert(conversation_id, 0 if last is None else last + 1, messages)
    return True


def _ids_named(dialog_id: str, name: str) -> list[str]:
    # in Python: every database folds case in its own way, and sessions keep no folded name as they need not be unique
    rows = Conversation.select(Conversation.id, Conversation.name).where(Conversation.dialog_id == dialog_id)
    return [row.id for row in rows if name_key(row.name) == name_key(name)]


def _insert(conversation_id: str, position: int, messages: Sequence[MessageRecord]) -> None:
    rows = [
        {
            "conversation_id": conversation_id,
            "position": position + offset,
            "turn_id": message.turn_id,
            "role": message.role,
            "content": message.content,
            "reference": message.reference,
            "extra": message.extra,
            "created_at": message.created_at,
        }
        for offset, message in enumerate(messages)
    ]
    for start in range(0, len(rows), INSERT_ROWS):
        Message.insert_many(rows[start : start + INSERT_ROWS]).execute()


def _records(rows: Sequence[Conversation]) -> list[ConversationRecord]:
    messages: dict[str, list[MessageRecord]] = {row.id: [] for row in rows}
    query = Message.select().where(Message.conversation_id.in_(list(messages)))
    for row in query.order_by(Message.conversation_id, Message.position):
        messages[row.conversation_id].append(freeze(MessageRecord, row))
    return [_record(row, messages[row.id]) for row in rows]


def _record(row: Conversation, messages: Sequence[MessageRecord]) -> ConversationRecord:
    return freeze(ConversationRecord, row, messages=tuple(messages))
