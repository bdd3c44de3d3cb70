"""db/services/search_service.py: saved searches and their names."""

import pytest

from db.services import search_service as service
from db.session import Session
from rag.errors import Conflict, NotFound

TENANT, OTHER = "a" * 32, "b" * 32


async def test_a_taken_name_gets_a_number(session: Session) -> None:
    names = [(await session.write(service.create, TENANT, {"name": name})).name for name in ("Laws", "laws", "LAWS")]
    assert names == ["Laws", "laws(1)", "LAWS(2)"]


async def test_another_search_of_the_name_is_a_conflict(session: Session) -> None:
    await session.write(service.create, TENANT, {"name": "one"})
    two = await session.write(service.create, TENANT, {"name": "two"})
    with pytest.raises(Conflict):
        await session.write(service.update, TENANT, two.id, {"name": "ONE"})


async def test_foreign_searches_are_unknown(session: Session) -> None:
    search = await session.write(service.create, TENANT, {"name": "mine", "search_config": {"top_k": 3}})
    with pytest.raises(NotFound):
        await session.read(service.get, OTHER, search.id)
    with pytest.raises(NotFound):
        await session.write(service.update, OTHER, search.id, {"name": "taken"})
    assert not await session.write(service.delete, OTHER, search.id)
    assert await session.read(service.get, TENANT, search.id) == search
    assert await session.write(service.delete, TENANT, search.id)
    assert await session.read(service.listing, TENANT) == (0, [])
