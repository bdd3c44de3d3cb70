"""db/session.py: one call, one thread, one transaction."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import peewee
import pytest

from db.address import Address
from db.engines import open_engine
from db.migrate import STEPS
from db.models import Dialog, SchemaVersion, SearchApp, Tenant, proxy
from db.services import dataset_service, tenant_service
from db.session import Session
from rag.errors import Unavailable
from rag.threads import Lane


async def test_a_service_that_raises_leaves_nothing(session: Session) -> None:
    def half_done() -> None:
        tenant_service.ensure_tenant("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await session.write(half_done)
    assert await session.read(tenant_service.list_tenants) == []


async def test_a_query_on_the_loop_raises(session: Session) -> None:
    with pytest.raises(peewee.InterfaceError):
        Tenant.select().count()


async def test_a_cancelled_write_is_whole(tmp_path: Path) -> None:
    lane = Lane("db", threads=1, queue_limit=10)  # one thread: what is asked later is answered later
    session = Session(tmp_path / "test.sqlite3", lane)
    await lane.run(session.create_tables)
    writing = asyncio.create_task(session.write(tenant_service.ensure_tenant, "kept"))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert [tenant.name for tenant in await session.read(tenant_service.list_tenants)] == ["kept"]
    lane.close()


async def test_parallel_writers_wait_for_each_other(session: Session) -> None:
    await asyncio.gather(*(session.write(tenant_service.ensure_tenant, f"t{n}") for n in range(50)))
    assert len(await session.read(tenant_service.list_tenants)) == 50


async def test_a_database_that_cannot_answer_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "broken.sqlite3").write_bytes(b"not a database at all" * 100)
    session = Session(tmp_path / "broken.sqlite3", Lane("db", threads=1, queue_limit=1))
    with pytest.raises(Unavailable):
        await session.read(tenant_service.list_tenants)


def test_the_schema_is_migrated_once(session: Session) -> None:
    session.create_tables()
    assert session.read_now(lambda: SchemaVersion.select().count()) == len(STEPS)
    session.close()


def test_a_database_of_the_first_schema_gets_the_version_of_its_datasets_data(session: Session) -> None:
    def as_it_was() -> None:
        proxy.execute_sql("ALTER TABLE dataset DROP COLUMN data_version")
        SchemaVersion.delete().where(SchemaVersion.version == 2).execute()

    session.write_now(as_it_was)
    session.create_tables()
    record = session.write_now(dataset_service.create, "t" * 32, {"name": "facts", "embedding_model": "m"})
    session.write_now(dataset_service.changed, record.id)
    after = session.read_now(dataset_service.get, "t" * 32, record.id)
    assert record.data_version != after.data_version != 0
    session.close()


def test_a_database_without_the_indexes_of_changed_lists_gets_them(session: Session) -> None:
    wanted = {(Dialog, "dialog_tenant_id_deleted_update_time_id"), (SearchApp, "search_app_tenant_id_update_time_id")}

    def there() -> set[tuple[type[peewee.Model], str]]:
        return {(model, index.name) for model in (Dialog, SearchApp) for index in proxy.obj.get_indexes(model._meta.table_name)}

    def as_it_was() -> None:
        for model, name in wanted:
            on = f" ON {model._meta.table_name}" if session.kind == "mysql" else ""
            proxy.execute_sql(f"DROP INDEX {name}{on}")
        SchemaVersion.delete().where(SchemaVersion.version == 6).execute()

    assert wanted <= session.read_now(there)
    session.write_now(as_it_was)
    assert not wanted & session.read_now(there)
    session.create_tables()
    assert wanted <= session.read_now(there)
    session.close()


async def test_a_key_finds_its_tenant_until_it_is_deleted(session: Session) -> None:
    tenant = await session.write(tenant_service.ensure_tenant, "acme")
    key = await session.write(tenant_service.create_key, tenant.id)
    assert key.token.startswith("ragflow-")
    assert (len(key.token), len(key.beta)) == (len("ragflow-") + 43, 32)
    assert (await session.read(tenant_service.find_key, key.token)).tenant_id == tenant.id
    assert await session.write(tenant_service.delete_key, "0" * 32, key.token) is False
    assert await session.write(tenant_service.delete_key, tenant.id, key.token) is True
    assert await session.read(tenant_service.find_key, key.token) is None


def test_of_many_who_begin_a_new_file_at_once_none_fails(tmp_path: Path) -> None:
    """SQLite tells all but one that it is busy, without waiting."""

    def begin(path: Path) -> bool:
        engine = open_engine(Address("sqlite", path=path), 10.0)
        together.wait()
        try:
            return engine.connect()
        finally:
            engine.close_all()

    with ThreadPoolExecutor(8) as pool:
        for number in range(30):
            together = threading.Barrier(8)
            assert all(pool.map(begin, [tmp_path / str(number)] * 8))
