"""db/services/conversation_service.py: sessions, and turns that are appended whole."""

import asyncio

import pytest

from db.models import Message
from db.services import conversation_service as service
from db.services.conversation_service import MessageRecord
from db.session import Session
from rag.errors import NotFound

TENANT, OTHER, CHAT = "a" * 32, "b" * 32, "c" * 32


async def new_conversation(session: Session, name: str = "New session") -> str:
    record = await session.write(service.create, TENANT, CHAT, name=name, user_id=TENANT, prologue="Hi!")
    return record.id


def turn(number: int) -> list[MessageRecord]:
    turn_id = f"{number:032x}"
    return [
        MessageRecord("user", f"question {number}", turn_id, None, 1.0),
        MessageRecord("assistant", f"answer {number}", turn_id, {"chunks": []}, 2.0),
    ]


async def test_a_session_opens_with_the_prologue(session: Session) -> None:
    record = await session.read(service.get, TENANT, await new_conversation(session))
    assert [(message.role, message.content) for message in record.messages] == [("assistant", "Hi!")]


async def test_turns_of_parallel_calls_follow_each_other_untorn(session: Session) -> None:
    conversation = await new_conversation(session)
    await asyncio.gather(*(session.write(service.append_turn, TENANT, conversation, turn(number)) for number in range(40)))
    record = await session.read(service.get, TENANT, conversation)
    said = [message.content.split() for message in record.messages[1:]]
    assert len(said) == 80
    for question, answer in zip(said[::2], said[1::2], strict=True):
        assert (question[0], answer[0]) == ("question", "answer")
        assert question[1] == answer[1]
    positions = await session.read(lambda: [row.position for row in Message.select().order_by(Message.position)])
    assert positions == list(range(81))


async def test_replacing_takes_the_place_of_the_whole_history(session: Session) -> None:
    conversation = await new_conversation(session)
    await session.write(service.append_turn, TENANT, conversation, turn(1))
    assert await session.write(service.append_turn, TENANT, conversation, turn(2), replace=True)
    record = await session.read(service.get, TENANT, conversation)
    assert [message.content for message in record.messages] == ["question 2", "answer 2"]
    assert record.messages[1].reference == {"chunks": []}


async def test_a_turn_for_a_deleted_session_is_not_written(session: Session) -> None:
    conversation = await new_conversation(session)
    assert await session.write(service.delete, TENANT, CHAT, [conversation]) == {conversation}
    assert not await session.write(service.append_turn, TENANT, conversation, turn(1))
    assert await session.read(lambda: Message.select().count()) == 0


async def test_another_tenants_session_is_like_none(session: Session) -> None:
    conversation = await new_conversation(session)
    with pytest.raises(NotFound):
        await session.read(service.get, OTHER, conversation)
    with pytest.raises(NotFound):
        await session.write(service.rename, OTHER, conversation, "mine now")
    assert not await session.write(service.append_turn, OTHER, conversation, turn(1))
    assert await session.write(service.delete, OTHER, CHAT, None) == set()
    assert (await session.read(service.get, TENANT, conversation)).name == "New session"


async def test_a_name_is_found_without_its_case_in_any_script(session: Session) -> None:
    conversation = await new_conversation(session, "ÄRGER Привет")
    found = await session.read(service.listing, TENANT, CHAT, name="ärger ПРИВЕТ")
    assert [record.id for record in found] == [conversation]
    assert await session.read(service.listing, TENANT, CHAT, name="ärger") == []


async def test_pages_do_not_overlap(session: Session) -> None:
    made = {await new_conversation(session) for _ in range(7)}
    pages = [await session.read(service.listing, TENANT, CHAT, page=page, page_size=3) for page in (1, 2, 3, 4)]
    assert [len(page) for page in pages] == [3, 3, 1, 0]
    assert {record.id for page in pages for record in page} == made
