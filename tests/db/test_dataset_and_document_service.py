"""db/services/{dataset,document}_service.py: names, counters, and how many queries a list takes."""

import asyncio
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from db.models import Document, Tenant, new_id, proxy
from db.records import free_name
from db.services import dataset_service, document_service, state_service, task_service
from db.services.dataset_service import DatasetBrief, DatasetQuery
from db.services.document_service import DocumentQuery, Upload
from db.services.task_service import Purge
from db.session import Session
from rag.errors import Conflict

TENANT = "1" * 32


def make_dataset(session: Session, name: str = "facts") -> str:
    return session.write_now(dataset_service.create, TENANT, {"name": name, "embedding_model": "m@P"}).id


def upload(session: Session, dataset: str, name: str = "a.txt") -> Upload:
    pledge = Purge(new_id(), TENANT, dataset, new_id(), "key", again=False)
    session.write_now(task_service.pledge, pledge)
    return Upload(pledge, name, "", 5, "doc", "txt", "hash", "naive", None, {})


def queries_of(session: Session, call: Callable[..., Any], *arguments: Any) -> int:
    """How many statements a service sends."""
    statements: list[str] = []
    execute = proxy.obj.execute_sql

    def counted(sql: str, *more: Any, **named: Any) -> Any:
        statements.append(sql)
        return execute(sql, *more, **named)

    proxy.obj.execute_sql = counted
    try:
        session.read_now(call, *arguments)
    finally:
        del proxy.obj.execute_sql
    return len([sql for sql in statements if sql.startswith(("SELECT", "INSERT", "UPDATE", "DELETE"))])


@pytest.mark.parametrize("number", [1, 50])
def test_lists_take_two_queries_however_long(session: Session, number: int) -> None:
    session.write_now(Tenant.create, id=TENANT, name="one")
    ids = [make_dataset(session, f"d{index}") for index in range(number)]
    session.write_now(document_service.add, TENANT, ids[0], [upload(session, ids[0], f"{index}.txt") for index in range(number)])
    assert queries_of(session, dataset_service.search, TENANT, DatasetQuery(page_size=100)) == 2
    assert queries_of(session, document_service.search, ids[0], DocumentQuery(page_size=100)) == 2
    assert queries_of(session, dataset_service.run_counts, ids) == 1
    assert queries_of(session, dataset_service.get_many, TENANT, ids) == 1
    assert queries_of(session, dataset_service.briefs, TENANT, ids) == 1
    assert queries_of(session, document_service.briefs, TENANT, ids) == 1


def test_briefs_are_the_tenants_records_in_brief(session: Session) -> None:
    for tenant in (TENANT, "another"):
        session.write_now(Tenant.create, id=tenant, name=tenant)
    ids = [make_dataset(session, name) for name in ("a", "b")]
    asked = [*ids, ids[0], "f" * 32]
    records = session.read_now(dataset_service.get_many, TENANT, asked)
    briefs = session.read_now(dataset_service.briefs, TENANT, asked)
    assert briefs == {key: DatasetBrief(**{f.name: getattr(row, f.name) for f in fields(DatasetBrief)}) for key, row in records.items()}
    assert sorted(briefs) == sorted(ids)
    assert session.read_now(dataset_service.briefs, TENANT, []) == {}
    assert session.read_now(dataset_service.briefs, "another", asked) == {}


def test_pages_of_equal_times_never_overlap(session: Session) -> None:
    dataset = make_dataset(session)
    session.write_now(document_service.add, TENANT, dataset, [upload(session, dataset, f"{index}.txt") for index in range(10)])
    session.write_now(lambda: Document.update(create_time=1, update_time=1).execute())
    for descending in (True, False):
        pages = [
            session.read_now(document_service.search, dataset, DocumentQuery(page=page, page_size=3, descending=descending))[1]
            for page in (1, 2, 3, 4)
        ]
        ids = [record.id for page in pages for record in page]
        assert ids == sorted(ids, reverse=descending)
        assert len(set(ids)) == 10


@pytest.mark.parametrize(
    ("name", "taken", "free"),
    [
        ("a", set(), "a"),
        ("a", {"a"}, "a(1)"),
        ("A.TXT", {"a.txt", "a(1).txt"}, "A(2).TXT"),
        ("Straße", {"strasse"}, "Straße(1)"),
        (".hidden", {".hidden"}, ".hidden(1)"),
        ("é" * 10, {"é" * 10}, "é" * 8 + "(1)"),
    ],
)
def test_free_names(name: str, taken: set[str], free: str) -> None:
    assert free_name(name, 20, lambda keys: taken & set(keys)) == free


def test_a_free_name_is_found_beyond_many_taken_ones() -> None:
    taken = {"a"} | {f"a({number})" for number in range(1, 500)}
    asked: list[int] = []

    def look_up(keys: list[str]) -> set[str]:
        asked.append(len(keys))
        return taken & set(keys)

    assert free_name("a", 128, look_up) == "a(500)"
    assert len(asked) < 10


def test_a_taken_name_is_a_conflict_for_changes(session: Session) -> None:
    first, second = make_dataset(session, "First"), make_dataset(session, "Second")
    with pytest.raises(Conflict):
        session.write_now(dataset_service.update, TENANT, second, {"name": "FIRST"})
    record = session.write_now(dataset_service.update, TENANT, first, {"name": "FIRST"})
    assert record is not None
    assert record.name == "FIRST"
    session.write_now(document_service.add, TENANT, first, [upload(session, first, "a.txt"), upload(session, first, "b.txt")])
    _, documents = session.read_now(document_service.search, first, DocumentQuery(orderby="name", descending=False))
    with pytest.raises(Conflict):
        session.write_now(document_service.update, documents[1].id, {"name": "A.txt"})


def test_a_gone_dataset_takes_no_documents(session: Session) -> None:
    dataset = make_dataset(session)
    late = upload(session, dataset)
    session.write_now(dataset_service.delete, TENANT, [dataset])
    assert session.write_now(document_service.add, TENANT, dataset, [late]) is None


async def test_parallel_changes_keep_the_counters_right(session: Session) -> None:
    dataset = make_dataset(session)
    uploads = [upload(session, dataset) for _ in range(50)]
    await asyncio.gather(*(session.write(document_service.add, TENANT, dataset, [one]) for one in uploads))
    ids = [one.pledge.document_id for one in uploads]
    await asyncio.gather(*(session.write(state_service.add_counts, document_id, 2, 3) for document_id in ids))
    await asyncio.gather(*(session.write(document_service.delete, TENANT, dataset, [document_id]) for document_id in ids[:20]))
    record = await session.read(dataset_service.get, TENANT, dataset)
    assert record is not None
    assert (record.document_count, record.chunk_count, record.token_num) == (30, 60, 90)
