"""db/services/search_service.py: saved searches and their names."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from db.services import search_service as service
from db.session import Session
from rag.errors import Conflict, NotFound
from rag.threads import Lane

TENANT, OTHER = "a" * 32, "b" * 32


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    lane = Lane("db", threads=2, queue_limit=100)
    session = Session(tmp_path / "test.sqlite3", lane)
    session.create_tables()
    session.close()
    yield session
    lane.close()


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
