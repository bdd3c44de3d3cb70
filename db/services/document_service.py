"""Documents: rows of `Document`, and the dataset's count of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from peewee import IntegrityError, ModelSelect, fn

from db.dialect import alone, among, has_part, locked
from db.models import Dataset, Document, name_key, now_ms, proxy
from db.records import free_name, freeze, only, page_of
from db.services import metadata_rows, state_service, task_service
from db.services.task_service import Drop, Purge
from rag.errors import Conflict, Unavailable

NAME_BYTES = 255
# of SQLite; one parameter however many ids: a retrieval asks for hundreds. The plus keeps SQLite from reading all of the tenant's rows.
# All names in one row: at every row it fetches Python's sqlite3 gives up the interpreter lock, and waits for other threads.
_NAMES = "SELECT json_group_object(id, name) FROM document WHERE +tenant_id = ? AND id IN (SELECT value FROM json_each(?))"


@dataclass(frozen=True, slots=True)
class DocumentRecord:
    """A document; times in milliseconds since the epoch, `process_duration` in seconds."""

    id: str
    tenant_id: str
    dataset_id: str
    created_by: str
    name: str
    location: str
    folder: str
    size: int
    type: str
    suffix: str
    source_type: str
    thumbnail: str | None
    content_hash: str
    chunk_method: str
    pipeline_id: str | None
    parser_config: Mapping[str, Any]
    meta_fields: Mapping[str, Any]
    chunk_count: int
    token_count: int
    progress: float
    progress_msg: str
    process_begin_at: int | None
    process_duration: float
    run: str
    enabled: bool
    version: int
    create_time: int
    update_time: int


@dataclass(frozen=True, slots=True)
class DocumentQuery:
    """Which documents of a dataset to list: all conditions given must hold; None and "" are no condition."""

    ids: tuple[str, ...] | None = None
    name: str | None = None
    keywords: str = ""
    suffixes: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    page: int = 1
    page_size: int = 30
    orderby: str = "create_time"
    descending: bool = True


@dataclass(frozen=True, slots=True)
class DocumentBrief:
    """What filters and retrieval need of a document."""

    id: str
    dataset_id: str
    name: str
    meta_fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Facets:
    """Documents counted: all, by suffix, by run state, by value of each metadata key, and those without metadata."""

    total: int
    suffixes: Mapping[str, int]
    runs: Mapping[str, int]
    values: Sequence[metadata_rows.Value]
    without_metadata: int


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that has arrived in the blob store, with the pledge to purge it that its document will redeem."""

    pledge: Purge
    name: str
    folder: str
    size: int
    type: str
    suffix: str
    content_hash: str
    chunk_method: str
    pipeline_id: str | None
    parser_config: Mapping[str, Any]


def add(tenant_id: str, dataset_id: str, uploads: Sequence[Upload]) -> list[DocumentRecord] | None:
    """The documents of these files, all or none. A name that is taken gets a number: `a(1).txt`.

    None when the dataset is gone. Raises `Unavailable` when a pledge ran out before its file was complete.
    """
    if locked(Dataset.select(Dataset.id).where(Dataset.tenant_id == tenant_id, Dataset.id == dataset_id)).first() is None:
        return None
    records = [_add(tenant_id, dataset_id, upload) for upload in uploads]
    _count(dataset_id, len(records))
    return records


def get(tenant_id: str, document_id: str) -> DocumentRecord | None:
    """The tenant's document, or None."""
    row = Document.get_or_none(Document.tenant_id == tenant_id, Document.id == document_id)
    return None if row is None else freeze(DocumentRecord, row)


def hold(tenant_id: str, document_id: str) -> DocumentRecord | None:
    """`get`, and nobody else changes the document, its dataset or its counters before the transaction ends."""
    row = state_service.hold(document_id)
    return None if row is None or row.tenant_id != tenant_id else freeze(DocumentRecord, row)


def to_rename(document_id: str) -> tuple[DocumentRecord | None, str]:
    """The document, and the task to write its name into its chunks; None if it is gone, "" if there is no task."""
    row = Document.get_or_none(Document.id == document_id)
    return None if row is None else freeze(DocumentRecord, row), task_service.rename_of(document_id)


def get_many(dataset_id: str, document_ids: Sequence[str]) -> dict[str, DocumentRecord]:
    """Those of the documents that the dataset has, by id."""
    rows = Document.select().where(Document.dataset_id == dataset_id, among(Document.id, document_ids))
    return {row.id: freeze(DocumentRecord, row) for row in rows}


def briefs(
    tenant_id: str, dataset_ids: Sequence[str], document_ids: Sequence[str] | None = None, *, hold: bool = False
) -> list[DocumentBrief]:  # fmt: skip
    """The datasets' documents, all or those among `document_ids`. With `hold` nobody changes them before the transaction ends."""
    columns = Document.id, Document.dataset_id, Document.name, Document.meta_fields
    rows = Document.select(*columns).where(Document.tenant_id == tenant_id, among(Document.dataset_id, dataset_ids))
    if document_ids is not None:
        rows = rows.where(among(Document.id, document_ids))
    return [freeze(DocumentBrief, row) for row in (locked(rows.order_by(Document.id)) if hold else rows)]


def names(tenant_id: str, document_ids: Sequence[str]) -> dict[str, str]:
    """Document id -> name, for those of the documents that the tenant has."""
    if alone():
        return orjson.loads(proxy.execute_sql(_NAMES, (tenant_id, orjson.dumps(list(document_ids)).decode())).fetchone()[0])
    rows = Document.select(Document.id, Document.name).where(Document.tenant_id == tenant_id, among(Document.id, document_ids))
    return dict(rows.tuples())


def find_name(dataset_id: str, name: str) -> DocumentRecord | None:
    """The dataset's document of that name, whatever its case, or None."""
    row = only(Document.select().where(Document.dataset_id == dataset_id, Document.name_key == name_key(name)))
    return None if row is None else freeze(DocumentRecord, row)


def search(dataset_id: str, query: DocumentQuery) -> tuple[int, list[DocumentRecord]]:
    """How many documents match, and the page of them that was asked for."""
    counted = None if _has_conditions(query) else Dataset.select(Dataset.document_count).where(Dataset.id == dataset_id).scalar()
    rows = _matching(dataset_id, query)
    order, tie = getattr(Document, query.orderby), Document.id
    ordered = rows.order_by(order.desc(), tie.desc()) if query.descending else rows.order_by(order, tie)
    total = rows.count() if counted is None else counted
    return total, [freeze(DocumentRecord, row) for row in page_of(ordered, query.page, query.page_size)]


def facets(dataset_id: str, query: DocumentQuery) -> Facets:
    """How many documents match, and what they say."""
    matching = _matching(dataset_id, query)
    suffixes: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    columns = Document.suffix, Document.run
    for suffix, run, count in matching.select(*columns, fn.COUNT(Document.id)).group_by(*columns).tuples():
        suffixes[suffix] += count
        runs[run] += count
    values = metadata_rows.values(dataset_id, matching.select(Document.id) if _has_conditions(query) else None)
    return Facets(suffixes.total(), suffixes, runs, list(values), matching.where(metadata_rows.has_none()).count())


def update(document_id: str, values: Mapping[str, Any], *, restart: bool = False) -> DocumentRecord | None:
    """The document with these columns changed, or None if it is gone. Raises `Conflict` for a taken name.

    With `restart` a parse run under way begins anew, because it cannot take the change in. A new name leaves a task to write it into
    the chunks, which the caller does (`api.renames`).
    """
    if restart:
        state_service.hold(document_id)
    changes = {**values, "update_time": now_ms()}
    if "name" in values:
        changes |= {"name_key": name_key(values["name"]), "suffix": suffix_of(values["name"])}
    try:
        with Document._meta.database.atomic():
            Document.update(**changes).where(Document.id == document_id).execute()
    except IntegrityError as error:
        raise Conflict("the document's name is taken") from error
    row = Document.get_or_none(Document.id == document_id)
    if row is not None and "meta_fields" in values:
        metadata_rows.put([(row.id, row.dataset_id, row.meta_fields)])
    if row is not None and "name" in values:
        task_service.put_rename(row)
    if row is not None and restart and row.run == "RUNNING":
        task_service.restart(row)
        row = Document.get_by_id(document_id)
    return None if row is None else freeze(DocumentRecord, row)


def merge_config(document_id: str, keys: Mapping[str, Any]) -> DocumentRecord | None:
    """The document with these keys set in its parser config, or None if it is gone."""
    row = locked(Document.select().where(Document.id == document_id)).first()
    return None if row is None else update(document_id, {"parser_config": row.parser_config | dict(keys)})


def reset(document_id: str, values: Mapping[str, Any]) -> tuple[DocumentRecord | None, list[Drop]]:
    """The document with these columns changed and as if never parsed, and what of it must go, as after `task_service.stop`."""
    drops = task_service.stop([document_id])
    blank = {"run": "UNSTART", "progress": 0.0, "progress_msg": "", "process_begin_at": None, "process_duration": 0.0}
    return update(document_id, {**values, **blank}), drops


def delete(tenant_id: str, dataset_id: str, document_ids: Sequence[str] | None) -> list[Purge]:
    """Remove documents (all of the dataset's for None): what is to be purged after."""
    state_service.hold_datasets([dataset_id])
    which = Document.dataset_id == dataset_id
    if document_ids is not None:
        which &= among(Document.id, document_ids)
    list(locked(Document.select(Document.id).where(which).order_by(Document.id)).tuples())
    sums = Document.select(fn.SUM(Document.chunk_count), fn.SUM(Document.token_count)).where(which).tuples().get()
    purges = task_service.remove_documents(tenant_id, which)
    _count(dataset_id, -len(purges), -int(sums[0] or 0), -int(sums[1] or 0))
    return purges


def suffix_of(name: str) -> str:
    """What follows the last dot of a file name, in lower case; "" if there is no dot."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def _add(tenant_id: str, dataset_id: str, upload: Upload) -> DocumentRecord:
    pledge = upload.pledge
    if not task_service.redeem(pledge):
        raise Unavailable("the upload took longer than its file was kept")
    while True:
        name = free_name(upload.name, NAME_BYTES, lambda keys: _taken(dataset_id, keys))
        try:
            with Document._meta.database.atomic():
                row = Document.create(
                    id=pledge.document_id, tenant_id=tenant_id, dataset_id=dataset_id, created_by=tenant_id,
                    name=name, name_key=name_key(name), location=pledge.blob_key, folder=upload.folder, size=upload.size,
                    type=upload.type, suffix=upload.suffix, content_hash=upload.content_hash,
                    chunk_method=upload.chunk_method, pipeline_id=upload.pipeline_id, parser_config=upload.parser_config,
                )  # fmt: skip
        except IntegrityError:  # another server took the name in between
            continue
        return freeze(DocumentRecord, row)


def _taken(dataset_id: str, keys: list[str]) -> set[str]:
    rows = Document.select(Document.name_key).where(Document.dataset_id == dataset_id, Document.name_key.in_(keys))
    return {row.name_key for row in rows}


def _count(dataset_id: str, documents: int, chunks: int = 0, tokens: int = 0) -> None:
    Dataset.update(
        document_count=Dataset.document_count + documents,
        chunk_count=Dataset.chunk_count + chunks,
        token_num=Dataset.token_num + tokens,
        update_time=now_ms(),
    ).where(Dataset.id == dataset_id).execute()


def _has_conditions(query: DocumentQuery) -> bool:
    return query.ids is not None or bool(query.name or query.keywords or query.suffixes or query.types or query.runs)


def _matching(dataset_id: str, query: DocumentQuery) -> ModelSelect:
    rows = Document.select().where(Document.dataset_id == dataset_id)
    if query.ids is not None:
        rows = rows.where(among(Document.id, query.ids))
    if query.name:
        rows = rows.where(Document.name_key == name_key(query.name))
    if query.keywords:
        rows = rows.where(has_part(Document.name_key, name_key(query.keywords)))
    if query.suffixes:
        rows = rows.where(Document.suffix.in_([suffix.lower() for suffix in query.suffixes]))
    if query.types:
        rows = rows.where(Document.type.in_(query.types))
    if query.runs:
        rows = rows.where(Document.run.in_(query.runs))
    return rows
