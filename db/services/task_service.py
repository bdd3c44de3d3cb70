"""Background work: rows of `Task`, leased to workers, and what becomes of the documents they are about.

A document has at most one `parse` and one `purge` task. A parse task carries the document's parse version: starting again
raises it, stopping removes the task, and either way the worker that still holds the old one is told False at its next call.
A purge task is the outbox of a deletion (and the pledge of an upload): it is written in the transaction that removes the
rows, whoever removed them purges chunks and file at once and takes the task back, and if that server dies, a worker does it.
A sweep task follows a stop: it removes what the stopped run's worker still wrote, if that was killed before it could itself.

Counters: a document counts the chunks that changes by hand added and removed, and when a parse run ends, or all chunks were
dropped, what the store holds. Whoever changes the store for a caller counts in the same transaction of the database
(api/chunk_edits.py). While a run is under way the tokens may be below zero: chunks of the run that were deleted by hand are
subtracted before the run's end adds them all.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from peewee import Expression

from db.models import Dataset, Document, Task, new_id, now_ms
from rag.types import IngestTask

T = TypeVar("T")

ATTEMPTS = 20  # leases of one task that were lost with their worker, before the next ones keep their distance
DISTANCE_MS = 60_000  # so that a document that takes its worker along does so once a minute; one that is innocent is read in the end
FAILURES = 5  # attempts that ended with a failure worth another try
BACKOFF_MS = (1_000, 5_000, 20_000, 60_000)
PURGE_BACKOFF_MS = 60_000
PURGE_DELAY_MS = 5_000  # the server that deletes comes first
LATE_WRITES_MS = 15_000  # how long after its lease a worker may still write
HOLD_MS = 20_000  # for deleting old chunks between the two steps of a start
PLEDGE_MS = 60_000
MESSAGE_LINES = 40
PROGRESS_WORDS = ("parsing", "found", "embedded")  # how the lines begin that tell where a run is; the last of each kind is kept
ROWS_AT_ONCE = 2_000

STOPPED = "Task stopped by user."


@dataclass(frozen=True, slots=True)
class Purge:
    """A deleted document whose chunks and file must go. With `again` the task stays, for a worker that may still be writing."""

    task_id: str
    tenant_id: str
    dataset_id: str
    document_id: str
    blob_key: str
    again: bool


@dataclass(frozen=True, slots=True)
class Started:
    """A parse run that is on hold until the document's old chunks are gone. `first`: it has none."""

    document_id: str
    version: int
    first: bool


# ---------------------------------------------------------------------------------------------------- for workers
def any_due(busy_tenants: Collection[str] = ()) -> bool:
    """Whether a claim could find a task now."""
    now = now_ms()
    return Task.select(Task.id).where(_not_of(busy_tenants), Task.due_at <= now, Task.lease_until <= now).exists()


def claim(worker: str, lease_seconds: float, after_tenant: str = "", busy_tenants: Collection[str] = ()) -> IngestTask | None:
    """Lease the task that is due for the longest time, of the next tenant after `after_tenant`; None if none is due.

    The tasks of `busy_tenants` are passed over.
    """
    others = _not_of(busy_tenants)
    while True:
        now = now_ms()
        row = _due(now, others & (Task.tenant_id > after_tenant)) or _due(now, others & (Task.tenant_id <= after_tenant))
        if row is None:
            return None
        document = Document.get_or_none(Document.id == row.document_id) if row.kind == "parse" else None
        if row.kind == "parse" and (document is None or document.run != "RUNNING" or document.version != row.version):
            row.delete_instance()
            continue
        row.owner, row.lease_until, row.attempt = worker, now + int(lease_seconds * 1000), row.attempt + 1
        if document is not None and row.attempt > ATTEMPTS:
            row.due_at = now + DISTANCE_MS
        row.save(only=[Task.owner, Task.lease_until, Task.attempt, Task.due_at])
        if document is not None:
            _forget_progress(document)
        return _task(row, document)


def renew(task: IngestTask, worker: str, lease_seconds: float) -> bool:
    """Extend the lease. False: the task was stopped, superseded or taken over."""
    changed = Task.update(lease_until=now_ms() + int(lease_seconds * 1000)).where(_held(task, worker)).execute()
    return changed > 0


def report(task: IngestTask, worker: str, progress: float, message: str) -> bool:
    """Show progress and a line for people, in place of the last line of its kind. False as for `renew`."""
    if _row(task, worker) is None:
        return False
    document = Document.get_or_none(Document.id == task.document_id)
    if document is not None:
        document.progress_msg = "\n".join(_others(document, _word(message))) if message else document.progress_msg
        _tell(document, message, progress=min(max(progress, 0.0), 0.999))
    return True


def finish(task: IngestTask, worker: str, *, chunk_count: int, token_count: int, message: str) -> bool:
    """Remove the task; a parsed document is DONE and counts its new chunks, too. False: nothing was written."""
    row = _row(task, worker)
    if row is None:
        return False
    row.delete_instance()
    document = Document.get_or_none(Document.id == task.document_id) if task.kind == "parse" else None
    if document is not None:
        _tell(document, message, progress=1.0, run="DONE")
        add_counts(document.id, chunk_count, token_count)
    return True


def fail(task: IngestTask, worker: str, message: str, *, retry: bool) -> bool:
    """Queue the task again, with a growing delay, or end it as failed. False as for `finish`."""
    row = _row(task, worker)
    if row is None:
        return False
    failures = row.failures + 1
    if row.kind != "parse":
        _release(row, failures, min(PURGE_BACKOFF_MS, 1_000 << min(failures, 10)))
    elif retry and failures < FAILURES:
        _release(row, failures, BACKOFF_MS[failures - 1])
        document = Document.get_or_none(Document.id == task.document_id)
        if document is not None:
            _tell(document, message)
    else:
        _end_failed(row, message)
    return True


def give_back(task: IngestTask, worker: str) -> bool:
    """End the lease without a result, as a worker does that must stop; the task is due at once and keeps its count."""
    changed = Task.update(owner=None, lease_until=0, attempt=Task.attempt - 1).where(_held(task, worker)).execute()
    return changed > 0


# ---------------------------------------------------------------------------------------------------- for callers
def start(document_ids: Sequence[str]) -> list[Started]:
    """Begin a new parse run of each document: RUNNING, counters at nothing, the task on hold.

    The caller deletes the documents' chunks from the store and then calls `release`. If it never does, the task becomes due
    by itself, and the chunks of older runs go when the new one is done.
    """
    started = []
    for document in _documents(document_ids):
        first = document.version == 0 and document.chunk_count == 0
        _set_counts(document, 0, 0)
        version = document.version + 1
        Document.update(
            run="RUNNING", progress=0.0, progress_msg="", process_begin_at=now_ms(), process_duration=0.0,
            version=version, update_time=now_ms(),
        ).where(Document.id == document.id).execute()  # fmt: skip
        _put_parse(document, version, now_ms() + HOLD_MS)
        started.append(Started(document.id, version, first))
    return started


def release(started: Sequence[Started]) -> None:
    """Make the held tasks due.

    A run that went on in the meantime (the hold ran out, or somebody started the document again) may have lost chunks to the
    caller's delete: it begins anew.
    """
    now = now_ms()
    for batch in _batches(started):
        versions = {item.document_id: item.version for item in batch}
        for document in _documents(list(versions)):
            version = versions[document.id]
            held = Task.document_id == document.id, Task.kind == "parse", Task.version == version, Task.owner.is_null()
            if Task.update(due_at=now).where(*held).execute() or document.run not in ("RUNNING", "DONE"):
                continue
            restart(document)


def restart(document: Document) -> None:
    """Begin the document's parse run anew, whoever is at it; for changes that a run under way cannot take in."""
    by_hand = document.chunk_count, max(0, document.token_count)  # all that a run under way has counted so far
    _set_counts(document, *(by_hand if document.run == "RUNNING" else (0, 0)))
    Document.update(run="RUNNING", version=document.version + 1, progress=0.0).where(Document.id == document.id).execute()
    _put_parse(document, document.version + 1, now_ms())


def stop(document_ids: Sequence[str]) -> None:
    """CANCEL the documents and take their tasks from the workers; the caller deletes their chunks from the store."""
    for document in _documents(document_ids):
        parsing = Task.get_or_none(Task.kind == "parse", Task.document_id == document.id)
        if parsing is not None:
            parsing.delete_instance()
        if parsing is not None and parsing.attempt > 0:
            _put_sweep(document, max(parsing.lease_until, now_ms()) + LATE_WRITES_MS)
        _set_counts(document, 0, 0)
        _tell(document, STOPPED, progress=0.0, run="CANCEL")


def remove_documents(tenant_id: str, which: Expression) -> list[Purge]:
    """Remove the documents and their parse tasks, write a purge task for each; does not touch their datasets' counters."""
    now, purges = now_ms(), []
    columns = Document.id, Document.dataset_id, Document.location, Document.version, Document.update_time
    rows = list(Document.select(*columns).where(Document.tenant_id == tenant_id, which))
    for batch in _batches(rows):
        ids = [row.id for row in batch]
        busy = Task.select(Task.document_id, Task.kind, Task.lease_until, Task.due_at).where(Task.document_id.in_(ids))
        leases = {row.document_id: row.lease_until for row in busy.where(Task.kind == "parse")}
        leases |= {row.document_id: row.due_at - LATE_WRITES_MS for row in busy.where(Task.kind == "sweep")}
        Task.delete().where(Task.document_id.in_(ids)).execute()
        Document.delete().where(Document.id.in_(ids)).execute()
        for row in batch:
            # a worker may still write: one at it now, or one that was until a moment ago (stopped, slow, its lease lost)
            again = leases.get(row.id, 0) > 0 or (row.version > 0 and row.update_time > now - LATE_WRITES_MS)
            purge = Purge(new_id(), tenant_id, row.dataset_id, row.id, row.location, again)
            delay = LATE_WRITES_MS + max(leases.get(row.id, 0) - now, 0) if again else PURGE_DELAY_MS
            Task.create(**_purge_row(purge, now + delay))
            purges.append(purge)
    return purges


def purged(purges: Iterable[Purge]) -> None:
    """Take back the purge tasks whose work is done, but for those that must be done again."""
    for batch in _batches([purge.task_id for purge in purges if not purge.again]):
        Task.delete().where(Task.id.in_(batch)).execute()


def pledge(purge: Purge) -> None:
    """Promise to purge an upload's file that no document owns yet; kept unless `redeem` takes it back within a minute."""
    Task.create(**_purge_row(purge, now_ms() + PLEDGE_MS))


def extend(pledges: Sequence[Purge]) -> None:
    """Another minute for the pledges of an upload that is still coming in."""
    Task.update(due_at=now_ms() + PLEDGE_MS).where(Task.id.in_([purge.task_id for purge in pledges])).execute()


def redeem(purge: Purge) -> bool:
    """Take the pledge back, because the file has its document now. False: too late, a worker may have removed the file."""
    return Task.delete().where(Task.id == purge.task_id, Task.owner.is_null()).execute() > 0


def forfeit(pledges: Sequence[Purge]) -> None:
    """Make the pledges of an upload that broke due at once."""
    Task.update(due_at=now_ms()).where(Task.id.in_([purge.task_id for purge in pledges])).execute()


def add_counts(document_id: str, chunks: int, tokens: int) -> bool:
    """Change the counters of a document and its dataset by so much. False: the document is gone, nothing was counted."""
    document = Document.get_or_none(Document.id == document_id)
    if document is None:
        return False
    tokens += document.token_count
    _set_counts(document, max(0, document.chunk_count + chunks), tokens if document.run == "RUNNING" else max(0, tokens))
    return True


def recount(document_id: str, chunks: int) -> None:
    """Set the counters of a document and its dataset by the number of chunks that the store holds."""
    document = Document.get_or_none(Document.id == document_id)
    if document is not None:
        _set_counts(document, chunks, document.token_count if chunks else 0)


# ---------------------------------------------------------------------------------------------------- inside
def _set_counts(document: Document, chunks: int, tokens: int) -> None:
    """Set a document's counters and change its dataset's by the difference. The row is as of this transaction."""
    if (chunks, tokens) == (document.chunk_count, document.token_count):
        return
    Document.update(chunk_count=chunks, token_count=tokens).where(Document.id == document.id).execute()
    Dataset.update(
        chunk_count=Dataset.chunk_count + (chunks - document.chunk_count), token_num=Dataset.token_num + (tokens - document.token_count)
    ).where(Dataset.id == document.dataset_id).execute()
    document.chunk_count, document.token_count = chunks, tokens


def _not_of(busy_tenants: Collection[str]) -> Expression:
    return Task.tenant_id.not_in(list(busy_tenants))


def _due(now: int, tenants: Expression) -> Task | None:
    due = Task.select().where(tenants, Task.due_at <= now, Task.lease_until <= now)
    return due.order_by(Task.tenant_id, Task.due_at).first()


def _held(task: IngestTask, worker: str) -> Expression:
    return (Task.id == task.id) & (Task.owner == worker) & (Task.version == task.version) & (Task.attempt == task.attempt)


def _row(task: IngestTask, worker: str) -> Task | None:
    return Task.get_or_none(_held(task, worker))


def _task(row: Task, document: Document | None) -> IngestTask:
    base = IngestTask(
        row.id, row.kind, row.tenant_id, row.dataset_id, row.document_id, blob_key=row.blob_key, version=row.version, attempt=row.attempt
    )
    if document is None:
        return base
    dataset = Dataset.get_or_none(Dataset.id == document.dataset_id)
    return IngestTask(
        row.id, row.kind, row.tenant_id, row.dataset_id, row.document_id,
        document_name=document.name, blob_key=document.location, size=document.size, chunk_method=document.chunk_method,
        parser_config=document.parser_config, embedding_model="" if dataset is None else dataset.embedding_model,
        version=row.version, attempt=row.attempt, available=document.enabled,
    )  # fmt: skip


def _put_parse(document: Document, version: int, due_at: int) -> None:
    Task.delete().where(Task.kind == "parse", Task.document_id == document.id).execute()
    Task.create(
        kind="parse", tenant_id=document.tenant_id, dataset_id=document.dataset_id, document_id=document.id,
        blob_key=document.location, version=version, due_at=due_at,
    )  # fmt: skip


def _put_sweep(document: Document, due_at: int) -> None:
    Task.delete().where(Task.kind == "sweep", Task.document_id == document.id).execute()
    Task.create(
        kind="sweep", tenant_id=document.tenant_id, dataset_id=document.dataset_id, document_id=document.id,
        version=document.version, due_at=due_at,
    )  # fmt: skip


def _purge_row(purge: Purge, due_at: int) -> dict[str, object]:
    return {
        "id": purge.task_id, "kind": "purge", "tenant_id": purge.tenant_id, "dataset_id": purge.dataset_id,
        "document_id": purge.document_id, "blob_key": purge.blob_key, "due_at": due_at,
    }  # fmt: skip


def _release(row: Task, failures: int, delay_ms: int) -> None:
    Task.update(owner=None, lease_until=0, failures=failures, due_at=now_ms() + delay_ms).where(Task.id == row.id).execute()


def _end_failed(row: Task, message: str) -> None:
    row.delete_instance()
    document = Document.get_or_none(Document.id == row.document_id)
    if document is not None:
        _set_counts(document, document.chunk_count, max(0, document.token_count))
        _tell(document, message, progress=-1.0, run="FAIL")


def _forget_progress(document: Document) -> None:
    """Drop what an earlier attempt told of where it was; why it failed stays."""
    kept = "\n".join(_others(document, *PROGRESS_WORDS))
    if kept != document.progress_msg:
        Document.update(progress_msg=kept).where(Document.id == document.id).execute()


def _others(document: Document, *words: str) -> list[str]:
    """The document's lines but those of progress that begin with one of the words."""
    dropped = set(words).intersection(PROGRESS_WORDS)
    return [line for line in document.progress_msg.splitlines() if _word(line) not in dropped]


def _word(line: str) -> str:
    return line.partition(" ")[0]


def _tell(document: Document, message: str, **changes: object) -> None:
    lines = [*document.progress_msg.splitlines(), message][-MESSAGE_LINES:] if message else document.progress_msg.splitlines()
    if document.process_begin_at is not None:
        changes["process_duration"] = max(now_ms() - document.process_begin_at, 1) / 1000
    Document.update(progress_msg="\n".join(lines), update_time=now_ms(), **changes).where(Document.id == document.id).execute()


def _documents(document_ids: Sequence[str]) -> Iterator[Document]:
    for batch in _batches(document_ids):
        yield from list(Document.select().where(Document.id.in_(batch)))


def _batches(items: Sequence[T]) -> Iterator[list[T]]:
    for start_at in range(0, len(items), ROWS_AT_ONCE):
        yield list(items[start_at : start_at + ROWS_AT_ONCE])
