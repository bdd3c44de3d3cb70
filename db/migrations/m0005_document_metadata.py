"""Documents' metadata is indexed, so that a filter reads as many documents as it finds."""

from db.engines import Engine
from db.migrations import m0001_initial
from db.models import Document, DocumentMetadata
from db.services import metadata_rows

PAGE_ROWS = 1_000


def up(database: Engine) -> None:
    """Create the index's table and fill it by what the documents say, from the beginning if a crash had cut it short."""
    m0001_initial.create(database, [DocumentMetadata])
    DocumentMetadata.delete().execute()
    rows = Document.select(Document.id, Document.dataset_id, Document.meta_fields).order_by(Document.id).limit(PAGE_ROWS)
    after = ""
    while page := list(rows.where(Document.id > after).tuples()):
        metadata_rows.fill(page)
        after = page[-1][0]
