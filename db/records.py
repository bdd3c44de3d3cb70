"""Rows to the frozen values that leave a transaction, and names that are still free."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar

from peewee import Model, ModelSelect

from db.models import name_key

T = TypeVar("T")
R = TypeVar("R", bound=Model)

NAMES_AT_ONCE = 64
LAST_PAGE = 1 << 40
NEAR_ROWS = 1000


def only(rows: Iterable[R]) -> R | None:
    """The row of a query by a unique key, or None. Without LIMIT: with it PostgreSQL may prefer to look through the whole table."""
    return next(iter(rows), None)


def page_of(ordered: ModelSelect, page: int, page_size: int) -> list[Any]:
    """The rows of the query's page, counted from 1; far behind the end there is nothing, however far.

    Of a far page the ids come first: an index holds them, so that no row before the page is read.
    """
    model = ordered.model
    paged = ordered.paginate(min(page, LAST_PAGE), page_size)
    if page * page_size <= NEAR_ROWS:
        return list(paged)
    ids = [row_id for (row_id,) in paged.select(model.id).tuples()]
    rows = {row.id: row for row in model.select().where(model.id.in_(ids))} if ids else {}
    return [rows[row_id] for row_id in ids]


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def freeze(kind: type[T], row: Model, **beside: Any) -> T:
    """The dataclass `kind` with the row's columns of the same names, and those given `beside`."""
    return kind(**{name: beside[name] if name in beside else getattr(row, name) for name in _names(kind)})


def free_name(name: str, limit_bytes: int, taken: Callable[[list[str]], set[str]]) -> str:
    """`name`, or the first of `name(1)`, `name(2)` … that is free; the number stands before a suffix like `.txt`.

    `taken` says which of the given name keys exist. A stem is shortened where the number would break the limit.
    """
    candidates = _numbered(name, limit_bytes)
    while True:
        batch = [next(candidates) for _ in range(NAMES_AT_ONCE)]
        keys = taken([name_key(candidate) for candidate in batch])
        for candidate in batch:
            if name_key(candidate) not in keys:
                return candidate


def _numbered(name: str, limit_bytes: int) -> Iterator[str]:
    yield name
    stem, suffix = os.path.splitext(name)
    number = 1
    while True:
        tail = f"({number}){suffix}"
        room = limit_bytes - len(tail.encode())
        yield stem.encode()[: max(0, room)].decode("utf-8", "ignore") + tail
        number += 1
