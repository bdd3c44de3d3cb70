"""What the server itself asks of the database: whether it can write, and how much work waits."""

from dataclasses import dataclass

from peewee import fn

from db.dialect import shared_now_ms
from db.models import Task, new_id, proxy


@dataclass(frozen=True, slots=True)
class Backlog:
    """Ingestion tasks: `waiting` for a worker, `leased` by one."""

    waiting: int
    leased: int


def probe_write() -> None:
    """Write and take back a row, so that the commit has something to make durable. Raises what any write raises."""
    probe = new_id()
    Task.create(id=probe, kind="probe", tenant_id=probe, dataset_id=probe, document_id=probe)
    Task.delete_by_id(probe)


def backlog() -> Backlog:
    """How much ingestion work there is, over all tenants."""
    leased = Task.select(fn.COUNT(Task.id)).where(Task.lease_until > shared_now_ms()).scalar()
    every = Task.select(fn.COUNT(Task.id)).scalar()
    return Backlog(waiting=every - leased, leased=leased)


def clock_ms() -> int:
    """Milliseconds since the epoch by the database's clock."""
    return shared_now_ms()


def server_version() -> tuple[str, str]:
    """What the database is (`sqlite`, `postgresql`, `mysql` or `mariadb`) and what it calls its version."""
    kind = proxy.obj.kind
    statement = {"sqlite": "SELECT sqlite_version()", "postgresql": "SHOW server_version", "mysql": "SELECT VERSION()"}[kind]
    text = str(proxy.obj.execute_sql(statement).fetchone()[0])
    return ("mariadb" if "mariadb" in text.lower() else kind), text
