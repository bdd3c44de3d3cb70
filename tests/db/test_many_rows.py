"""What is asked of the database stays as much, and is found by an index, with 100,000 rows and 5,000 tenants."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from db.address import address_of
from db.dialect import among
from db.models import Document, Task, now_ms, proxy
from db.services import (
    conversation_service,
    dataset_service,
    dialog_service,
    document_service,
    lease_service,
    metadata_rows,
    metadata_service,
    search_service,
    tenant_service,
)
from db.services.dataset_service import DatasetQuery
from db.services.document_service import DocumentQuery
from db.session import Session
from rag.threads import Lane
from tests.db.conftest import KINDS
from tests.db.many_rows import CHAT, DATASET, FEW_ROWS, FIRST, TENANT, analyse, fill, plan_of

ROWS, TENANTS = 100_000, 5_000
WORKER = "worker"


@pytest.fixture(scope="module", params=KINDS)
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A full database."""
    server = None
    if request.param != "sqlite":
        server = request.getfixturevalue("postgres_server" if request.param == "postgresql" else "mariadb_server")
    folder: Path = tmp_path_factory.mktemp("filled")
    lane = Lane("db", 1, 1)
    session = Session(address_of(server.create_database("filled") if server else "", folder), lane, timeout_seconds=60)
    session.create_tables()
    fill(session, ROWS, other_tenants=TENANTS)
    yield session
    session.close()
    lane.close()
    if server:
        server.drop_database("filled")


def asked(session: Session, service: Callable[..., Any], *arguments: Any, **named: Any) -> list[str]:
    """The plans of all SELECTs that a service sends."""
    return plans_of(session.read_now, service, *arguments, **named)


def plans_of(run: Callable[..., Any], service: Callable[..., Any], *arguments: Any, **named: Any) -> list[str]:
    """The same of one that `run` runs."""
    plans: list[str] = []
    execute = proxy.obj.execute_sql

    def explained(sql: str, parameters: Any = None) -> Any:
        if sql.startswith("SELECT") and "FROM" in sql and "EXTRACT" not in sql:
            proxy.obj.execute_sql = execute
            plans.append(plan_of(sql, tuple(parameters or ())))
            proxy.obj.execute_sql = explained
        return execute(sql, parameters)

    proxy.obj.execute_sql = explained
    try:
        run(service, *arguments, **named)
    finally:
        del proxy.obj.execute_sql
    return plans


def by_index(plan: str) -> bool:
    """Whether no table is read whole and nothing is sorted."""
    bad = {
        "postgresql": ("Seq Scan", "Sort"),
        "sqlite": ("SCAN t", "TEMP B-TREE"),
        "mysql": ("'ALL'", "filesort", "temporary"),
    }
    return not any(word in plan for word in bad[proxy.obj.kind])


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("orderby", ["create_time", "update_time"])
def test_lists_and_their_totals_are_read_by_an_index(filled: Session, orderby: str, descending: bool) -> None:
    for service, arguments in (
        (dataset_service.search, (TENANT, DatasetQuery(orderby=orderby, descending=descending))),
        (document_service.search, (DATASET, DocumentQuery(orderby=orderby, descending=descending))),
    ):
        plans = asked(filled, service, *arguments)
        assert len(plans) == 2
        assert all(by_index(plan) for plan in plans), "\n".join(plans)
        total, page = filled.read_now(service, *arguments)
        assert (total, len(page)) == (ROWS, 30)


@pytest.mark.parametrize("orderby", ["create_time", "update_time"])
def test_a_list_of_sessions_is_read_by_an_index(filled: Session, orderby: str) -> None:
    sessions, messages = asked(filled, conversation_service.listing, TENANT, CHAT, orderby=orderby)
    assert by_index(sessions), sessions
    assert "Seq Scan" not in messages  # the page's messages are put in order
    assert "'ALL'" not in messages
    assert len(filled.read_now(conversation_service.listing, TENANT, CHAT)) == 30


@pytest.mark.parametrize("desc", [True, False])
@pytest.mark.parametrize("orderby", ["create_time", "update_time"])
def test_lists_of_chats_and_saved_searches_and_their_counts_are_read_by_an_index(filled: Session, orderby: str, desc: bool) -> None:
    for listing in (dialog_service.listing, search_service.listing):
        count, page, *_ = asked(filled, listing, TENANT, orderby=orderby, desc=desc)
        assert by_index(count), count
        assert by_index(page), page
        total, rows = filled.read_now(listing, TENANT, orderby=orderby, desc=desc)
        assert (total, len(rows)) == (FEW_ROWS, 30)


def test_a_tenants_keys_are_found_by_an_index(filled: Session) -> None:
    (plan,) = asked(filled, tenant_service.list_keys, TENANT)
    assert not any(word in plan for word in ("Seq Scan", "'ALL'", "SCAN")), plan  # the few keys found are put in order
    assert [key.token for key in filled.read_now(tenant_service.list_keys, TENANT)] == ["token"]


def test_single_rows_are_found_by_an_index(filled: Session) -> None:
    name = filled.read_now(document_service.search, DATASET, DocumentQuery(page_size=1))[1][0]
    session_id = filled.read_now(conversation_service.listing, TENANT, CHAT, page_size=1)[0].id
    for service, arguments in (
        (tenant_service.find_key, ("ragflow-none",)),
        (dataset_service.get, (TENANT, DATASET)),
        (dataset_service.get_many, (TENANT, [DATASET] * 20)),
        (dataset_service.briefs, (TENANT, [DATASET] * 20)),
        (dataset_service.find_name, (TENANT, "d")),
        (document_service.get, (TENANT, name.id)),
        (document_service.find_name, (DATASET, name.name)),
        (document_service.names, (TENANT, [name.id] * 64)),
        (conversation_service.get, (TENANT, session_id)),
    ):
        plans = asked(filled, service, *arguments)
        assert len(plans) <= 2
        for plan in plans:
            assert not any(word in plan for word in ("Seq Scan", "'ALL'", "SCAN document", "SCAN t1")), plan


def test_documents_are_found_by_their_metadata_by_an_index(filled: Session) -> None:
    """Among the metadata of 100,000 datasets that of one; what is asked follows how many values a key has."""

    def fill_metadata() -> list[str]:
        key, *columns = (column.join(proxy.obj.quote) for column in ("key", "id", "document_id", "dataset_id", "value"))
        selected = "id, id, id, '2024', '\"year\"'"
        proxy.obj.execute_sql(f"INSERT INTO document_metadata ({', '.join([*columns, key])}) SELECT {selected} FROM dataset")
        ids = [row_id for (row_id,) in Document.select(Document.id).where(Document.id > FIRST).order_by(Document.id).limit(300).tuples()]
        metadata_rows.put((row_id, DATASET, {"year": number % 3, "no": number}) for number, row_id in enumerate(ids))
        analyse()
        return ids

    ids = filled.write_now(fill_metadata)
    for name, value, plans_sent, found in (("year", 1, 3, ids[1::3]), ("no", 7, 2, ids[7:8])):
        condition = {"conditions": [{"name": name, "comparison_operator": "is", "value": value}]}
        plans = asked(filled, metadata_service.documents_matching, TENANT, [DATASET], condition)
        assert len(plans) == plans_sent  # whose dataset it is, the values, and the documents of those that several have
        for plan in plans:
            assert not any(word in plan for word in ("Seq Scan", "'ALL'", "SCAN")), plan
        assert sorted(filled.read_now(metadata_service.documents_matching, TENANT, [DATASET], condition)) == found
    (plan,) = asked(filled, lambda: list(metadata_rows.values(DATASET)))
    assert not any(word in plan for word in ("Seq Scan", "'ALL'", "SCAN")), plan


def test_an_idle_queue_of_many_tenants_is_looked_at_by_an_index(filled: Session) -> None:
    (plan,) = asked(filled, lease_service.any_due)
    assert by_index(plan), plan


@pytest.mark.parametrize("due", [1, 2_000])
def test_a_task_is_claimed_by_an_index_among_those_of_many_tenants_that_wait(filled: Session, due: int) -> None:
    ids = filled.read_now(lambda: [row_id for (row_id,) in Task.select(Task.id).order_by(Task.id).limit(due).tuples()])

    def make_due(due_at: int) -> None:
        Task.update(due_at=due_at, lease_until=0).where(among(Task.id, ids)).execute()

    filled.write_now(make_due, 1)
    filled.write_now(analyse)  # the better index depends on how many are due
    claimed = []
    for after in ("", "f" * 32):
        plans = plans_of(lambda *given: claimed.append(filled.write_now(*given)), lease_service.claim, WORKER, 60.0, after)
        assert len(plans) <= 3  # what is due behind that tenant, what is due before it, and the task itself
        for plan in plans:
            assert not any(word in plan for word in ("Seq Scan", "'ALL'", "SCAN")), plan
    assert [task is not None for task in claimed] == [True, due > 1]
    filled.write_now(make_due, now_ms() + 10**9)
    filled.write_now(analyse)


def test_far_pages_follow_near_ones(filled: Session) -> None:
    for service, arguments in (
        (lambda page: filled.read_now(dataset_service.search, TENANT, DatasetQuery(page=page))[1], (33, 34)),
        (lambda page: filled.read_now(document_service.search, DATASET, DocumentQuery(page=page))[1], (33, 34, 3333)),
        (lambda page: filled.read_now(conversation_service.listing, TENANT, CHAT, page=page), (33, 34, 3333)),
    ):
        rows = [(row.create_time, row.id) for page in arguments for row in service(page)]
        assert len(set(rows)) == 30 * len(arguments)
        assert rows == sorted(rows, reverse=True)
    assert len(filled.read_now(document_service.search, DATASET, DocumentQuery(page=3334))[1]) == ROWS % 30
    assert filled.read_now(document_service.search, DATASET, DocumentQuery(page=3335))[1] == []
