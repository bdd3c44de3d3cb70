"""Copies the tables of one database into another, of whatever kind, row by row as they are stored.

Not by way of the models: these know one database a process. Rows go in the order of their ids, each table from where the target
ends, so that a copy that broke off is gone on with.
"""

# ruff: noqa: S608 - statements are pieced together from names of our own columns; every value is bound

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import peewee
from peewee import BooleanField, DatabaseError, DoubleField, InterfaceError

from db.address import Address
from db.engines import open_engine
from db.faults import fault_of
from db.models import ALL, Keyed, Move
from rag.errors import DatabaseUnavailable, MillraceError

TABLES: tuple[type[Keyed], ...] = ALL
PAGE_ROWS = 500
PAGE_BYTES = 4 << 20  # wide rows come fewer at a time
INSERT_VALUES = 900  # of one statement; SQLite takes 32,766, the others more
INSERT_BYTES = 1 << 20
_DIGEST_BYTES = 16

Values = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """A table: how many rows, and a digest of all of them that does not depend on their order."""

    rows: int
    digest: int


class Tables:
    """The tables of one database, to be read and filled by the thread that made this."""

    def __init__(self, address: Address, timeout_seconds: float) -> None:
        self._engine = open_engine(address, timeout_seconds)
        self._kind = address.kind

    def close(self) -> None:
        """Close the connection."""
        self._engine.close_all()

    def whose(self) -> str:
        """ "ours", "foreign" (another program's, or those of an older version that was never started as this one), "none"."""
        names = set(self._run(self._engine.get_tables))
        return "ours" if Move._meta.table_name in names else "foreign" if names else "none"

    def count(self, model: type[Keyed]) -> int:
        """How many rows the table has."""
        return int(self._run(lambda: self._engine.execute_sql(f"SELECT COUNT(*) FROM {self._name(model)}").fetchone()[0]))

    def last_id(self, model: type[Keyed]) -> str:
        """The highest id, "" without rows."""
        found = self._run(lambda: self._engine.execute_sql(f"SELECT MAX({self._quoted('id')}) FROM {self._name(model)}").fetchone()[0])
        return str(found or "")

    def pages(self, model: type[Keyed], after: str = "") -> Iterator[list[Values]]:
        """The rows by rising id, in the order of `columns_of`, as values that every database has."""
        size = PAGE_ROWS
        columns = ", ".join(self._quoted(field.column_name) for field in columns_of(model))
        where = f"WHERE {self._quoted('id')} > {self._engine.param} ORDER BY {self._quoted('id')} LIMIT"
        while True:
            statement = f"SELECT {columns} FROM {self._name(model)} {where} {size}"
            read = self._run(lambda statement=statement, after=after: self._engine.execute_sql(statement, (after,)).fetchall())
            rows = [_plain(model, row) for row in read]
            if not rows:
                return
            yield rows
            after = rows[-1][0]
            size = max(1, min(PAGE_ROWS, size * PAGE_BYTES // max(1, sum(map(_size, rows)))))

    def insert(self, model: type[Keyed], rows: Sequence[Values]) -> None:
        """Insert the rows, all or none, and durably."""

        def work() -> None:
            with self._engine.atomic("write"):
                for piece in _pieces(rows):
                    one = f"({', '.join([self._engine.param] * len(piece[0]))})"
                    names = ", ".join(self._quoted(field.column_name) for field in columns_of(model))
                    statement = f"INSERT INTO {self._name(model)} ({names}) VALUES {', '.join([one] * len(piece))}"
                    self._engine.execute_sql(statement, [value for row in piece for value in row])

        self._run(work)

    def contents(self, model: type[Keyed], seen: Callable[[int], None] = lambda _: None) -> Contents:
        """What the table holds; `seen` is told of each page's rows."""
        rows = digest = 0
        for page in self.pages(model):
            rows += len(page)
            digest = (digest + sum(map(_row_digest, page))) % (1 << 8 * _DIGEST_BYTES)
            seen(len(page))
        return Contents(rows, digest)

    def clear(self) -> None:
        """Delete every row of every table."""

        def work() -> None:
            with self._engine.atomic("write"):
                for model in TABLES:
                    self._engine.execute_sql(f"DELETE FROM {self._name(model)}")

        self._run(work)

    def _run(self, work: Callable[[], Any]) -> Any:
        try:
            if self._engine.is_closed():
                self._engine.connect()
            return work()
        except (DatabaseError, InterfaceError) as error:
            if not self._engine.is_closed():
                self._engine.close()
            raise DatabaseUnavailable(f"the {self._kind} database cannot answer: {fault_of(self._kind, error).reason}") from error

    def _name(self, model: type[Keyed]) -> str:
        return self._quoted(model._meta.table_name)

    def _quoted(self, name: str) -> str:
        return name.join(self._engine.quote)


def columns_of(model: type[Keyed]) -> list[peewee.Field]:
    """The table's columns, its id first."""
    return list(model._meta.sorted_fields)


def copy(source: Tables, target: Tables, model: type[Keyed], copied: Callable[[int], None]) -> None:
    """Bring what the target lacks behind its highest id; `copied` is told of each page's rows."""
    for page in source.pages(model, target.last_id(model)):
        target.insert(model, page)
        copied(len(page))


def check(source: Contents, target: Contents, model: type[Keyed]) -> None:
    """Raises `MillraceError` where the tables differ."""
    if source.rows != target.rows:
        raise MillraceError(f"table {model._meta.table_name}: {source.rows} rows were copied and {target.rows} are there")
    if source.digest != target.digest:
        raise MillraceError(f"table {model._meta.table_name}: the rows that were copied are not those that are there")


def _plain(model: type[Keyed], row: Sequence[Any]) -> Values:
    return tuple(_value(field, value) for field, value in zip(columns_of(model), row, strict=True))


def _value(field: peewee.Field, value: Any) -> Any:
    """The value as all databases mean it: they differ in what they give for a truth value and a number, and in taking NUL."""
    if value is None:
        return None
    if isinstance(field, BooleanField):
        return bool(value)
    if isinstance(field, DoubleField):
        return float(value)
    return value.replace("\0", "") if isinstance(value, str) and "\0" in value else value


def _size(row: Values) -> int:
    return sum(len(value) if isinstance(value, str) else 8 for value in row)


def _pieces(rows: Sequence[Values]) -> Iterator[list[Values]]:
    piece: list[Values] = []
    size = 0
    for row in rows:
        if piece and ((len(piece) + 1) * len(row) > INSERT_VALUES or size + _size(row) > INSERT_BYTES):
            yield piece
            piece, size = [], 0
        piece.append(row)
        size += _size(row)
    if piece:
        yield piece


def _row_digest(row: Values) -> int:
    return int.from_bytes(blake2b(repr(row).encode(), digest_size=_DIGEST_BYTES).digest(), "big")
