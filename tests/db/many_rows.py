"""Fills a database with very many rows within seconds: each statement doubles what is there."""

from collections.abc import Mapping

from peewee import Model

from db.models import (
    ALL,
    ApiKey,
    Conversation,
    Dataset,
    Dialog,
    Document,
    Message,
    SearchApp,
    Task,
    Tenant,
    name_key,
    now_ms,
    proxy,
)
from db.session import Session

NEXT_ID = {  # ids are numbers here: those of a copy follow on those that are there
    "sqlite": "printf('%032d', cast(substr(id, 17) as integer) + {})",
    "postgresql": "lpad(cast(cast(substr(id, 17) as bigint) + {} as text), 32, '0')",
    "mysql": "lpad(cast(substr(id, 17) as unsigned) + {}, 32, '0')",
}
JOINED = {"sqlite": "{} || '{}'", "postgresql": "{} || '{}'", "mysql": "concat({}, '{}')"}
TENANT, DATASET, CHAT = "1" * 32, "0" * 32, "3" * 32
FIRST = "0" * 32
FEW_ROWS = 1_000


def fill(session: Session, rows: int, *, other_tenants: int = 0) -> None:
    """One tenant with so many datasets, documents in one of them, and sessions of a chat with a message each; and other tenants.

    It has fewer chats and saved searches (`FEW_ROWS`), and each other tenant has one of everything that belongs to a tenant.
    """
    session.write_now(_first_rows)
    for model in (Dataset, Document, Conversation):
        session.write_now(_double, model, rows)
    for model in (Dialog, SearchApp):
        session.write_now(_double, model, FEW_ROWS)
    session.write_now(_messages)
    session.write_now(lambda: Tenant.update(dataset_count=rows).where(Tenant.id == TENANT).execute())
    session.write_now(lambda: Dataset.update(document_count=rows).where(Dataset.id == DATASET).execute())
    if other_tenants:
        session.write_now(_other_tenants, other_tenants)
    session.write_now(analyse)


def plan_of(sql: str, parameters: tuple[object, ...]) -> str:
    """What the database says it will do for the statement."""
    if proxy.obj.kind == "postgresql":
        return "\n".join(row[0] for row in proxy.obj.execute_sql(f"EXPLAIN {sql}", parameters))
    if proxy.obj.kind == "mysql":
        return "\n".join(str(row) for row in proxy.obj.execute_sql(f"EXPLAIN {sql}", parameters))
    return "\n".join(row[3] for row in proxy.obj.execute_sql(f"EXPLAIN QUERY PLAN {sql}", parameters))


def _first_rows() -> None:
    tenant = Tenant.create(id=TENANT, name="many")
    Dataset.create(id=DATASET, tenant_id=TENANT, created_by=TENANT, name="d", name_key="d", embedding_model="m@P")
    Document.create(
        id=FIRST, tenant_id=TENANT, dataset_id=DATASET, created_by=TENANT, name="a.txt", name_key="a.txt", location="key",
        type="doc", suffix="txt",
    )  # fmt: skip
    Conversation.create(id=FIRST, tenant_id=TENANT, dialog_id=CHAT, name="s", user_id=tenant.id)
    Dialog.create(id=FIRST, tenant_id=TENANT, name="c", name_key="c")
    SearchApp.create(id=FIRST, tenant_id=TENANT, created_by=TENANT, name="s", name_key="s")
    ApiKey.create(tenant_id=TENANT, token="token", beta="beta")


def _double(model: type[Model], rows: int) -> None:
    """Copies of all rows with ids, names and times of their own, until there are so many."""
    kind, have, columns = proxy.obj.kind, 1, list(model._meta.columns)
    while have < rows:
        changed: Mapping[str, str] = {
            "id": NEXT_ID[kind].format(have),
            "name": JOINED[kind].format("name", "-x" if have == 1 else f"-{have}"),
            "name_key": JOINED[kind].format("name_key", f"-{have}"),
            "create_time": f"create_time + {have}",
            "update_time": f"update_time + {have}",
        }
        listed, selected = ", ".join(columns), ", ".join(changed.get(column, column) for column in columns)
        table = model._meta.table_name
        proxy.obj.execute_sql(f"INSERT INTO {table} ({listed}) SELECT {selected} FROM {table} LIMIT {min(have, rows - have)}")
        have += min(have, rows - have)


def _messages() -> None:
    columns = "id, create_time, update_time, conversation_id, position, turn_id, role, content, extra"
    selected = "id, create_time, update_time, id, 0, '', 'assistant', 'Hi!', '{}'"
    proxy.obj.execute_sql(f"INSERT INTO {Message._meta.table_name} ({columns}) SELECT {selected} FROM {Conversation._meta.table_name}")


def _other_tenants(number: int) -> None:
    rows = [{"name": f"tenant {index}", "dataset_count": 1} for index in range(number)]
    for start in range(0, number, 1000):
        Tenant.insert_many(rows[start : start + 1000]).execute()
    made = [row.id for row in Tenant.select(Tenant.id).where(Tenant.id != TENANT)]
    for start in range(0, number, 1000):
        some = made[start : start + 1000]
        Dataset.insert_many(
            [
                {"tenant_id": tenant, "created_by": tenant, "name": "d", "name_key": name_key("d"), "embedding_model": "m@P"}
                for tenant in some
            ]
        ).execute()
        Task.insert_many(
            [
                {"kind": "purge", "tenant_id": tenant, "dataset_id": tenant, "document_id": tenant, "due_at": now_ms() + 10**9}
                for tenant in some
            ]
        ).execute()
        Dialog.insert_many([{"tenant_id": tenant, "name": "c", "name_key": "c"} for tenant in some]).execute()
        SearchApp.insert_many([{"tenant_id": tenant, "created_by": tenant, "name": "s", "name_key": "s"} for tenant in some]).execute()
        ApiKey.insert_many([{"tenant_id": tenant, "token": f"token {tenant}", "beta": tenant} for tenant in some]).execute()


def analyse() -> None:
    """Have the database count what it plans by."""
    tables = [model._meta.table_name for model in ALL]
    if proxy.obj.kind == "mysql":
        proxy.obj.execute_sql(f"ANALYZE TABLE {', '.join(tables)}")
    else:
        for table in tables:
            proxy.obj.execute_sql(f"ANALYZE {table}")
