"""What the rows know of stored files, for finding those that belong together no longer."""

from collections.abc import Collection

from db.models import Document, Task, Tenant

KEYS_AT_ONCE = 500


def page(after_id: str, count: int) -> list[tuple[str, str]]:
    """The next `count` documents of all tenants by id, with the keys of their files."""
    rows = Document.select(Document.id, Document.location).where(Document.id > after_id, Document.location != "")
    return list(rows.order_by(Document.id).limit(count).tuples())


def owned(keys: Collection[str]) -> set[str]:
    """Those of at most `KEYS_AT_ONCE` keys that a document has, or that an upload or a deletion under way has pledged to see to.

    A key ends in its document's id.
    """
    ids = [key.rpartition("/")[2] for key in keys]
    documents = Document.select(Document.location).where(Document.id.in_(ids)).tuples()
    tasks = Task.select(Task.blob_key).where(Task.document_id.in_(ids)).tuples()
    return {key for rows in (documents, tasks) for (key,) in rows} & set(keys)


def tenants(ids: Collection[str]) -> set[str]:
    """Those of at most `KEYS_AT_ONCE` ids that are tenants."""
    return {row_id for (row_id,) in Tenant.select(Tenant.id).where(Tenant.id.in_(ids)).tuples()}
