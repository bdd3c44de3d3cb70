"""The index of documents' metadata: a row for each key of each document, written in the transaction that writes the metadata.

The database finds and groups, the caller decides: it is shown each value once, however many documents share it, so that a
condition means the same on every database. Keys and values stand here as JSON. One that is too long for an index stands by its
digest; what it says is then read from a document that has it.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson
from peewee import SQL, Expression, ModelSelect, fn

from db.dialect import among
from db.models import Document, DocumentMetadata, new_id, proxy
from db.services.state_service import batches

TEXT_BYTES = 128
DIGEST = "#"  # begins a digest, and no JSON
INSERT_ROWS = 500

_row = DocumentMetadata
_COLUMNS = _row.id, _row.document_id, _row.key, _row.dataset_id, _row.value


class Value(NamedTuple):
    """What `count` documents of a dataset say of a key, one of them being `document_id`; `text` is how the value stands in the table."""

    key: str
    value: Any
    count: int
    document_id: str
    text: str


def put(documents: Iterable[tuple[str, str, Mapping[str, Any]]]) -> None:
    """Make the rows say what the documents' metadata says: (document id, dataset id, metadata). The caller holds the documents."""
    for batch in batches(list(documents)):
        wanted = _wanted(batch)
        ids = [document_id for document_id, _, _ in batch]
        stale = []
        for row_id, document_id, key, *said in list(_row.select(*_COLUMNS).where(_row.document_id.in_(ids)).tuples()):
            if wanted.get((document_id, key)) == tuple(said):
                del wanted[document_id, key]
            else:
                stale.append(row_id)
        for some in batches(stale):
            _row.delete().where(_row.id.in_(some)).execute()
        _insert_all(wanted)


def fill(documents: Iterable[tuple[str, str, Mapping[str, Any]]]) -> None:
    """`put` for documents of which the table says nothing yet."""
    _insert_all(_wanted(documents))


def remove(document_ids: Sequence[str]) -> None:
    """Delete the rows of documents that are deleted."""
    _row.delete().where(_row.document_id.in_(document_ids)).execute()


def documents_where(dataset_id: str, key: str, holds: Callable[[Any], bool]) -> set[str]:
    """Ids of the dataset's documents that have the key with a value that holds."""
    which = (_row.dataset_id == dataset_id) & (_row.key == _text(key))
    found, shared = set(), []
    for value in _values(which):
        if holds(value.value):
            if value.count == 1:
                found.add(value.document_id)
            else:
                shared.append(value.text)
    for some in batches(shared):
        found.update(document_id for (document_id,) in proxy.execute(_row.select(_row.document_id).where(which & _row.value.in_(some))))
    return found


def values(dataset_id: str, documents: ModelSelect | None = None) -> Iterator[Value]:
    """Each value of each key of the dataset's documents: of all, or of those of the query, which yields their ids."""
    which = _row.dataset_id == dataset_id
    return _values(which if documents is None else which & _row.document_id.in_(documents))


def most_frequent(
    dataset_ids: Sequence[str], keys: Sequence[str] | None, most_keys: int, most_values: int
) -> Iterator[tuple[str, Any, int]]:  # fmt: skip
    """Keys with the values that most of the datasets' documents have, and how many: of these keys, or of the first ones by JSON.

    The database counts; however many keys and values there are, only so many leave it.
    """
    for key in _first_keys(dataset_ids, most_keys) if keys is None else [_text(key) for key in keys[:most_keys]]:
        which = among(_row.dataset_id, dataset_ids) & (_row.key == key)
        count = fn.COUNT(SQL("*"))
        groups = _row.select(_row.value, count).where(which).group_by(_row.value).order_by(count.desc(), _row.value).limit(most_values)
        found = list(proxy.execute(groups))
        if DIGEST in (key[0], *(value[0] for value, _ in found)):
            yield from (value[:3] for value in _values(which & _row.value.in_([value for value, _ in found])))
        else:
            yield from ((orjson.loads(key), orjson.loads(value), count) for value, count in found)


def has_none() -> Expression:
    """Of a query for documents: whether one has no metadata."""
    return ~fn.EXISTS(_row.select(_row.id).where((_row.dataset_id == Document.dataset_id) & (_row.document_id == Document.id)))


def _wanted(documents: Iterable[tuple[str, str, Mapping[str, Any]]]) -> dict[tuple[str, str], tuple[str, str]]:
    """(document id, key) -> (dataset id, value): the rows that the documents ask for."""
    return {
        (document_id, _text(key)): (dataset_id, _text(value)) for document_id, dataset_id, meta in documents for key, value in meta.items()
    }


def _insert_all(wanted: Mapping[tuple[str, str], tuple[str, str]]) -> None:
    rows = [(new_id(), *place, *said) for place, said in wanted.items()]
    for start in range(0, len(rows), INSERT_ROWS):
        _insert(rows[start : start + INSERT_ROWS])


def _insert(rows: Sequence[tuple[str, ...]]) -> None:
    """Not by way of the model, which takes longer for a row than the database does."""
    database = proxy.obj
    names = ", ".join(column.column_name.join(database.quote) for column in _COLUMNS)
    one = f"({', '.join([database.param] * len(_COLUMNS))})"
    statement = f"INSERT INTO {_row._meta.table_name} ({names}) VALUES {', '.join([one] * len(rows))}"  # noqa: S608 - our own names
    database.execute_sql(statement, [value for row in rows for value in row])


def _first_keys(dataset_ids: Sequence[str], most: int) -> list[str]:
    """As they stand in the table. Each is looked up behind the one before, so that the rows of all documents are skipped."""
    found: set[str] = set()
    for dataset_id in dataset_ids:
        key: str | None = ""
        for _ in range(most):
            key = _row.select(fn.MIN(_row.key)).where((_row.dataset_id == dataset_id) & (_row.key > key)).scalar()
            if key is None:
                break
            found.add(key)
    return sorted(found)[:most]


def _values(which: Expression) -> Iterator[Value]:
    columns = _row.key, _row.value, fn.COUNT(SQL("*")), fn.MIN(_row.document_id)
    groups = list(proxy.execute(_row.select(*columns).where(which).group_by(_row.key, _row.value)))
    in_full = _in_full({document_id for key, text, _, document_id in groups if DIGEST in (key[0], text[0])})
    for key, text, count, document_id in groups:
        if DIGEST in (key[0], text[0]):
            yield Value(*in_full[document_id, key], count, document_id, text)
        else:
            yield Value(orjson.loads(key), orjson.loads(text), count, document_id, text)


def _in_full(document_ids: Collection[str]) -> dict[tuple[str, str], tuple[str, Any]]:
    """(document id, key as it stands in the table) -> key and value, for these documents."""
    rows = Document.select(Document.id, Document.meta_fields)
    read = [row for some in batches(list(document_ids)) for row in rows.where(Document.id.in_(some)).tuples()]
    return {(document_id, _text(key)): (key, value) for document_id, meta in read for key, value in meta.items()}


def _text(value: Any) -> str:
    """How a key or a value stands in the table."""
    text = orjson.dumps(value)
    return text.decode() if len(text) <= TEXT_BYTES else DIGEST + blake2b(text, digest_size=16).hexdigest()
