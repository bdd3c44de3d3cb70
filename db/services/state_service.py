"""What a document tells of its parse runs: its counters, its progress, and the lines for people.

Counters: a document counts the chunks that changes by hand added and removed, and when a parse run ends, or all chunks were
dropped, what the store holds. Whoever changes the store for a caller counts in the same transaction of the database
(api/chunk_edits.py). While a run is under way the tokens may be below zero: chunks of the run that were deleted by hand are
subtracted before the run's end adds them all.

Locks: a transaction holds datasets first, then documents, then tasks, those of a kind by rising
id. Whoever changes what it has read of a document holds it before. (A claim holds its task first; it is begun again if that
meets somebody.)
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from db.dialect import alone, among, locked, shared_now_ms
from db.models import Dataset, Document

T = TypeVar("T")

MESSAGE_LINES = 40
PROGRESS_WORDS = ("parsing", "found", "embedded")  # how the lines begin that tell where a run is; the last of each kind is kept
ROWS_AT_ONCE = 2_000


def hold(document_id: str) -> Document | None:
    """The document's row, held with its dataset's until the transaction ends; None if it is gone."""
    return next(held([document_id]), None)


def held(document_ids: Sequence[str]) -> Iterator[Document]:
    """The documents' rows by id, held with those of their datasets until the transaction ends."""
    for batch in batches(document_ids):
        of_batch = Document.id.in_(batch)
        if not alone():
            ids = {row.dataset_id for row in Document.select(Document.dataset_id).where(of_batch).distinct()}
            hold_datasets(sorted(ids))
        yield from list(locked(Document.select().where(of_batch).order_by(Document.id)))


def hold_datasets(dataset_ids: Sequence[str]) -> None:
    """Hold the datasets' rows until the transaction ends; nothing is asked where a transaction is alone anyway."""
    if dataset_ids and not alone():
        list(locked(Dataset.select(Dataset.id).where(among(Dataset.id, dataset_ids)).order_by(Dataset.id)).tuples())


def add_counts(document_id: str, chunks: int, tokens: int) -> bool:
    """Change the counters of a document and its dataset by so much. False: the document is gone, nothing was counted."""
    document = hold(document_id)
    if document is None:
        return False
    tokens += document.token_count
    set_counts(document, max(0, document.chunk_count + chunks), tokens if document.run == "RUNNING" else max(0, tokens))
    return True


def recount(document_id: str, chunks: int) -> None:
    """Set the counters of a document and its dataset by the number of chunks that the store holds."""
    document = hold(document_id)
    if document is not None:
        set_counts(document, chunks, document.token_count if chunks else 0)


def set_counts(document: Document, chunks: int, tokens: int) -> None:
    """Set a held document's counters and change its dataset's by the difference."""
    if (chunks, tokens) == (document.chunk_count, document.token_count):
        return
    Document.update(chunk_count=chunks, token_count=tokens).where(Document.id == document.id).execute()
    Dataset.update(
        chunk_count=Dataset.chunk_count + (chunks - document.chunk_count), token_num=Dataset.token_num + (tokens - document.token_count)
    ).where(Dataset.id == document.dataset_id).execute()
    document.chunk_count, document.token_count = chunks, tokens


def tell(document: Document, message: str, **changes: object) -> None:
    """Add a line for people to a held document, and change these columns."""
    now = shared_now_ms()
    lines = [*document.progress_msg.splitlines(), message][-MESSAGE_LINES:] if message else document.progress_msg.splitlines()
    if document.process_begin_at is not None:
        changes["process_duration"] = max(now - document.process_begin_at, 1) / 1000
    Document.update(progress_msg="\n".join(lines), update_time=now, **changes).where(Document.id == document.id).execute()


def tell_progress(document: Document, progress: float, message: str) -> None:
    """Show how far a run is (0 to 1), with a line in place of the last one of its kind."""
    if message:
        document.progress_msg = "\n".join(_others(document, _word(message)))
    tell(document, message, progress=min(max(progress, 0.0), 0.999))


def forget_progress(document: Document) -> None:
    """Drop what an earlier attempt told of where it was; why it failed stays."""
    kept = "\n".join(_others(document, *PROGRESS_WORDS))
    if kept != document.progress_msg:
        Document.update(progress_msg=kept).where(Document.id == document.id).execute()


def batches(items: Sequence[T]) -> Iterator[list[T]]:
    """The items, at most 2,000 at a time."""
    for start_at in range(0, len(items), ROWS_AT_ONCE):
        yield list(items[start_at : start_at + ROWS_AT_ONCE])


def _others(document: Document, *words: str) -> list[str]:
    """The document's lines but those of progress that begin with one of the words."""
    dropped = set(words).intersection(PROGRESS_WORDS)
    return [line for line in document.progress_msg.splitlines() if _word(line) not in dropped]


def _word(line: str) -> str:
    return line.partition(" ")[0]
