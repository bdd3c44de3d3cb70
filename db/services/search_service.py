"""Saved searches ("searches" on the wire): rows of `SearchApp`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peewee import IntegrityError

from db.dialect import has_part
from db.models import SearchApp, name_key, now_ms
from db.records import free_name, freeze, page_of
from rag.errors import Conflict, NotFound

COLUMNS = ("name", "description", "avatar", "search_config")
"""What a caller may set; `create` and `update` take these names only."""

NAME_BYTES = 255


@dataclass(frozen=True, slots=True)
class SearchRecord:
    """A saved search; times in milliseconds since the epoch."""

    id: str
    tenant_id: str
    created_by: str
    name: str
    description: str
    avatar: str | None
    search_config: Mapping[str, Any]
    create_time: int
    update_time: int


def create(tenant_id: str, values: Mapping[str, Any]) -> SearchRecord:
    """A new search; a taken name becomes `name(1)`, `name(2)` ..."""
    while True:
        name = free_name(values["name"], NAME_BYTES, lambda keys: _taken(tenant_id, keys))
        columns = {**_columns(values), "name": name, "name_key": name_key(name)}
        try:
            with SearchApp._meta.database.atomic():
                row = SearchApp.create(tenant_id=tenant_id, created_by=tenant_id, **columns)
        except IntegrityError:  # another server took the name in between
            continue
        return freeze(SearchRecord, row)


def get(tenant_id: str, search_id: str) -> SearchRecord:
    """The search. Raises `NotFound`."""
    row = SearchApp.get_or_none(SearchApp.id == search_id, SearchApp.tenant_id == tenant_id)
    if row is None:
        raise NotFound("no such search")
    return freeze(SearchRecord, row)


def listing(
    tenant_id: str, *, keywords: str = "", orderby: str = "create_time", desc: bool = True, page: int = 1, page_size: int = 30
) -> tuple[int, list[SearchRecord]]:
    """How many searches have `keywords` in their name, and one page of them; ties by id."""
    query = SearchApp.select().where(SearchApp.tenant_id == tenant_id)
    if keywords:
        query = query.where(has_part(SearchApp.name_key, name_key(keywords)))
    column = getattr(SearchApp, orderby)
    order = (column.desc(), SearchApp.id.desc()) if desc else (column.asc(), SearchApp.id.asc())
    return query.count(), [freeze(SearchRecord, row) for row in page_of(query.order_by(*order), page, page_size)]


def update(tenant_id: str, search_id: str, values: Mapping[str, Any]) -> SearchRecord:
    """The search with the given columns replaced. Raises `NotFound`, and `Conflict` when another search has the name."""
    changes = _columns(values)
    if "name" in changes:
        changes["name_key"] = name_key(changes["name"])
    mine = (SearchApp.id == search_id) & (SearchApp.tenant_id == tenant_id)
    try:
        SearchApp.update(update_time=now_ms(), **changes).where(mine).execute()
    except IntegrityError as exc:
        raise Conflict("the search's name is taken") from exc
    return get(tenant_id, search_id)


def delete(tenant_id: str, search_id: str) -> bool:
    """Whether the tenant had that search; it is gone now."""
    return SearchApp.delete().where(SearchApp.id == search_id, SearchApp.tenant_id == tenant_id).execute() > 0


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in COLUMNS}


def _taken(tenant_id: str, keys: list[str]) -> set[str]:
    rows = SearchApp.select(SearchApp.name_key).where(SearchApp.tenant_id == tenant_id, SearchApp.name_key.in_(keys))
    return {row.name_key for row in rows}
