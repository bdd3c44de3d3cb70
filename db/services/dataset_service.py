"""Datasets: rows of `Dataset` and the counters they keep of their documents."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from peewee import IntegrityError, fn

from db.dialect import alone, among, has_part, locked
from db.models import Dataset, Document, Tenant, name_key, new_version, now_ms, proxy
from db.records import free_name, freeze, only, page_of
from db.services import task_service
from db.services.task_service import Purge
from rag.errors import Conflict

NAME_BYTES = 128
# SQLite answers it in 10 microseconds; to make the same statement with peewee takes another 100.
_BRIEFS = (
    "SELECT id, name, chunk_count, embedding_model, data_version FROM dataset"
    " WHERE +tenant_id = ? AND id IN (SELECT value FROM json_each(?))"
)


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    """A dataset; times in milliseconds since the epoch."""

    id: str
    tenant_id: str
    created_by: str
    name: str
    avatar: str | None
    description: str | None
    language: str
    permission: str
    embedding_model: str
    chunk_method: str
    pipeline_id: str | None
    parser_config: Mapping[str, Any]
    connectors: Sequence[Any]
    document_count: int
    chunk_count: int
    token_num: int
    pagerank: int
    similarity_threshold: float
    vector_similarity_weight: float
    create_time: int
    update_time: int
    data_version: int = 0


@dataclass(frozen=True, slots=True)
class DatasetBrief:
    """What a search must know of a dataset."""

    id: str
    name: str
    chunk_count: int
    embedding_model: str
    data_version: int = 0


@dataclass(frozen=True, slots=True)
class DatasetQuery:
    """Which datasets to list: all conditions given must hold; None and "" are no condition."""

    ids: tuple[str, ...] | None = None
    name: str | None = None
    chunk_method: str | None = None
    keywords: str = ""
    page: int = 1
    page_size: int = 30
    orderby: str = "create_time"
    descending: bool = True


def create(tenant_id: str, values: Mapping[str, Any]) -> DatasetRecord:
    """A new dataset of these columns. A name that is taken gets a number: `name(1)`."""
    while True:
        name = free_name(values["name"], NAME_BYTES, lambda keys: _taken(tenant_id, keys))
        try:
            with Dataset._meta.database.atomic():
                row = Dataset.create(**{**values, "name": name}, tenant_id=tenant_id, created_by=tenant_id, name_key=name_key(name))
        except IntegrityError:  # another server took the name in between
            continue
        _count(tenant_id, 1)
        return freeze(DatasetRecord, row)


def get(tenant_id: str, dataset_id: str) -> DatasetRecord | None:
    """The tenant's dataset, or None."""
    row = Dataset.get_or_none(Dataset.tenant_id == tenant_id, Dataset.id == dataset_id)
    return None if row is None else freeze(DatasetRecord, row)


def get_many(tenant_id: str, dataset_ids: Sequence[str]) -> dict[str, DatasetRecord]:
    """Those of the datasets that the tenant has, by id."""
    rows = Dataset.select().where(Dataset.tenant_id == tenant_id, among(Dataset.id, dataset_ids))
    return {row.id: freeze(DatasetRecord, row) for row in rows}


def briefs(tenant_id: str, dataset_ids: Sequence[str]) -> dict[str, DatasetBrief]:
    """The same in brief: every search reads them."""
    if alone():
        rows = proxy.execute_sql(_BRIEFS, (tenant_id, orjson.dumps(list(dataset_ids)).decode())).fetchall()
    else:
        columns = (Dataset.id, Dataset.name, Dataset.chunk_count, Dataset.embedding_model, Dataset.data_version)
        rows = Dataset.select(*columns).where(Dataset.tenant_id == tenant_id, among(Dataset.id, dataset_ids)).tuples()
    return {row[0]: DatasetBrief(*row) for row in rows}


def find_name(tenant_id: str, name: str) -> DatasetRecord | None:
    """The tenant's dataset of that name, whatever its case, or None."""
    row = only(Dataset.select().where(Dataset.tenant_id == tenant_id, Dataset.name_key == name_key(name)))
    return None if row is None else freeze(DatasetRecord, row)


def search(tenant_id: str, query: DatasetQuery) -> tuple[int, list[DatasetRecord]]:
    """How many datasets match, and the page of them that was asked for."""
    counted = None if _has_conditions(query) else _counted(tenant_id)
    rows = Dataset.select().where(Dataset.tenant_id == tenant_id)
    if query.ids is not None:
        rows = rows.where(among(Dataset.id, query.ids))
    if query.name:
        rows = rows.where(Dataset.name_key == name_key(query.name))
    if query.chunk_method:
        rows = rows.where(Dataset.chunk_method == query.chunk_method)
    if query.keywords:
        rows = rows.where(has_part(Dataset.name_key, name_key(query.keywords)))
    order, tie = getattr(Dataset, query.orderby), Dataset.id
    ordered = rows.order_by(order.desc(), tie.desc()) if query.descending else rows.order_by(order, tie)
    total = rows.count() if counted is None else counted
    return total, [freeze(DatasetRecord, row) for row in page_of(ordered, query.page, query.page_size)]


def run_counts(dataset_ids: Iterable[str]) -> dict[str, dict[str, int]]:
    """Dataset id -> run state -> how many of its documents are in it."""
    rows = (
        Document.select(Document.dataset_id, Document.run, fn.COUNT(Document.id).alias("number"))
        .where(among(Document.dataset_id, list(dataset_ids)))
        .group_by(Document.dataset_id, Document.run)
    )
    counts: dict[str, dict[str, int]] = {}
    for dataset_id, run, number in rows.tuples():
        counts.setdefault(dataset_id, {})[run] = number
    return counts


def size_bytes(dataset_id: str) -> int:
    """Bytes of all files of the dataset."""
    return int(Document.select(fn.COALESCE(fn.SUM(Document.size), 0)).where(Document.dataset_id == dataset_id).scalar())


def update(tenant_id: str, dataset_id: str, values: Mapping[str, Any]) -> DatasetRecord | None:
    """The dataset with these columns changed, or None if the tenant has none of that id. Raises `Conflict` for a taken name."""
    changes = {**values, "update_time": now_ms()}
    if "name" in values:
        changes["name_key"] = name_key(values["name"])
    try:
        with Dataset._meta.database.atomic():
            Dataset.update(**changes).where(Dataset.tenant_id == tenant_id, Dataset.id == dataset_id).execute()
    except IntegrityError as error:
        raise Conflict("the dataset's name is taken") from error
    return get(tenant_id, dataset_id)


def merge_config(tenant_id: str, dataset_id: str, keys: Mapping[str, Any]) -> DatasetRecord | None:
    """The dataset with these keys set in its parser config, or None if the tenant has none of that id."""
    row = locked(Dataset.select().where(Dataset.tenant_id == tenant_id, Dataset.id == dataset_id)).first()
    return None if row is None else update(tenant_id, dataset_id, {"parser_config": row.parser_config | dict(keys)})


def changed(dataset_id: str, tenant_id: str | None = None) -> None:
    """Give the dataset's data a new version: whatever was remembered of it is of no use from now on.

    To be called when the change can be found already, and before anyone is told that it was made: who reads the version, then
    searches, and remembers the result under that version never remembers something older than the version says.
    With a tenant, only a dataset of that tenant's.
    """
    which = Dataset.id == dataset_id
    if tenant_id is not None:
        which &= Dataset.tenant_id == tenant_id
    Dataset.update(data_version=new_version()).where(which).execute()


def delete(tenant_id: str, dataset_ids: Sequence[str] | None) -> tuple[int, list[Purge]]:
    """Remove datasets (all of the tenant's for None) with their documents: how many there were, and what is to be purged after."""
    owned = Dataset.select(Dataset.id).where(Dataset.tenant_id == tenant_id)
    if dataset_ids is not None:
        owned = owned.where(among(Dataset.id, dataset_ids))
    ids = [row.id for row in locked(owned.order_by(Dataset.id))]
    purges = task_service.remove_documents(tenant_id, among(Document.dataset_id, ids))
    Dataset.delete().where(among(Dataset.id, ids)).execute()
    _count(tenant_id, -len(ids))
    return len(ids), purges


def _has_conditions(query: DatasetQuery) -> bool:
    return query.ids is not None or bool(query.name or query.chunk_method or query.keywords)


def _counted(tenant_id: str) -> int | None:
    """How many datasets the tenant counts; counting them anew takes the longer the more there are."""
    return Tenant.select(Tenant.dataset_count).where(Tenant.id == tenant_id).scalar()


def _count(tenant_id: str, datasets: int) -> None:
    # the tenant comes last: whoever holds it waits for nobody
    Tenant.update(dataset_count=Tenant.dataset_count + datasets).where(Tenant.id == tenant_id).execute()


def _taken(tenant_id: str, keys: list[str]) -> set[str]:
    rows = Dataset.select(Dataset.name_key).where(Dataset.tenant_id == tenant_id, Dataset.name_key.in_(keys))
    return {row.name_key for row in rows}
