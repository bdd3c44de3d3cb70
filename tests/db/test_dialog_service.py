"""db/services/dialog_service.py: chats, their names, their datasets."""

from typing import Any

import pytest

from db.models import Dataset, name_key
from db.services import dialog_service as service
from db.session import Session
from rag.errors import Conflict, NotFound

TENANT, OTHER = "a" * 32, "b" * 32


def new_dataset(name: str, tenant: str = TENANT) -> str:
    return Dataset.create(tenant_id=tenant, created_by=tenant, name=name, name_key=name_key(name), embedding_model="m@P").id


async def create(session: Session, name: str, **values: Any) -> service.DialogRecord:
    return await session.write(service.create, TENANT, {"name": name, **values})


async def test_names_are_unique_without_case_until_deleted(session: Session) -> None:
    first = await create(session, "Straße")
    with pytest.raises(Conflict):
        await create(session, "STRASSE")
    await session.write(service.delete, TENANT, [first.id])
    again = await create(session, "STRASSE")
    await session.write(service.delete, TENANT, [again.id])
    await create(session, "strasse")


async def test_a_chat_keeps_its_own_name_when_changed(session: Session) -> None:
    chat = await create(session, "one")
    await create(session, "two")
    assert (await session.write(service.update, TENANT, chat.id, {"name": "ONE"})).name == "ONE"
    with pytest.raises(Conflict):
        await session.write(service.update, TENANT, chat.id, {"name": "Two"})


async def test_only_datasets_that_exist_and_belong_to_the_tenant_are_shown(session: Session) -> None:
    mine = await session.write(new_dataset, "mine")
    foreign = await session.write(new_dataset, "foreign", OTHER)
    chat = await create(session, "chat", dataset_ids=["0" * 32, foreign, mine])
    assert [(dataset.id, dataset.name, dataset.embedding_model) for dataset in chat.datasets] == [(mine, "mine", "m@P")]


async def test_deleted_and_foreign_chats_are_unknown(session: Session) -> None:
    chat = await create(session, "chat")
    with pytest.raises(NotFound):
        await session.read(service.get, OTHER, chat.id)
    assert await session.write(service.delete, OTHER, [chat.id]) == set()
    assert await session.write(service.delete, TENANT, None) == {chat.id}
    with pytest.raises(NotFound):
        await session.read(service.get, TENANT, chat.id)
    with pytest.raises(NotFound):
        await session.write(service.update, TENANT, chat.id, {"name": "back"})
    assert await session.read(service.find, TENANT, "chat") is None


async def test_a_chat_is_found_by_id_before_name(session: Session) -> None:
    first = await create(session, "first")
    named_like_it = await create(session, first.id)
    assert (await session.read(service.find, TENANT, first.id)).id == first.id
    assert (await session.read(service.find, TENANT, "FIRST")).id == first.id
    assert (await session.read(service.get, TENANT, named_like_it.id)).name == first.id


async def test_a_list_is_filtered_and_paged(session: Session) -> None:
    for number in range(5):
        await create(session, f"Chat Über {number}")
    await create(session, "other")
    total, page = await session.read(service.listing, TENANT, keywords="über", orderby="name", desc=False, page=2, page_size=2)
    assert total == 5
    assert [record.name for record in page] == ["Chat Über 2", "Chat Über 3"]
    assert await session.read(service.listing, TENANT, name="OTHER", keywords="ignored") == (
        1,
        [await session.read(service.find, TENANT, "other")],
    )
    assert await session.read(service.listing, OTHER) == (0, [])
