"""The little that services must say differently to each database."""

from collections.abc import Collection
from typing import Any, TypeVar

from peewee import Expression, Field, ModelSelect, Value, fn

from db.models import now_ms, proxy

Query = TypeVar("Query", bound=ModelSelect)


def alone() -> bool:
    """Whether a write transaction has the database for itself, so that nothing has to be locked."""
    return proxy.obj.kind == "sqlite"


def locked(query: Query, *, skip: bool = False) -> Query:
    """The query, holding its rows until the transaction ends: others that lock or write them wait.

    With `skip` rows that others hold are left out. A write transaction of SQLite is alone and needs no locks.
    """
    if alone():
        return query
    return query.for_update("FOR UPDATE SKIP LOCKED" if skip else "FOR UPDATE")


def among(column: Field, values: Collection[str]) -> Expression:
    """Whether the column is one of the values, however many there are; PostgreSQL takes 65,535 single ones at most."""
    if proxy.obj.kind == "postgresql":
        return column == fn.ANY(Value([column.db_value(value) for value in values], converter=False, unpack=False))
    return column.in_(list(values))


def has_part(column: Field, part: str) -> Expression:
    """Whether the text has this part, letter by letter."""
    find: Any = fn.STRPOS if proxy.obj.kind == "postgresql" else fn.INSTR
    return find(column, column.db_value(part)) > 0


def shared_now_ms() -> int:
    """Milliseconds since the epoch by the one clock that all servers and workers of this database share: its own.

    A lease that one host writes and another reads must not depend on how far apart their clocks are.
    """
    if proxy.obj.kind == "postgresql":
        statement = "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"
    elif proxy.obj.kind == "mysql":
        statement = "SELECT CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED)"
    else:
        return now_ms()
    return int(proxy.obj.execute_sql(statement).fetchone()[0])
