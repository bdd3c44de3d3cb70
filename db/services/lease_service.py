"""Tasks as workers see them: leased for a while, renewed, and ended one way or another.

A lease counts by the clock of the database (`shared_now_ms`), whatever the clocks of the workers' hosts say.
"""

from collections.abc import Collection
from dataclasses import replace

from peewee import Expression

from db.dialect import locked, shared_now_ms
from db.models import Dataset, Document, Task
from db.services import state_service, task_service
from rag.types import IngestTask

ATTEMPTS = 20  # leases of one task that were lost with their worker, before the next ones keep their distance
DISTANCE_MS = 60_000  # so that a document that takes its worker along does so once a minute; one that is innocent is read in the end
FAILURES = 5  # attempts that ended with a failure worth another try
BACKOFF_MS = (1_000, 5_000, 20_000, 60_000)
PURGE_BACKOFF_MS = 60_000
CANDIDATES = 16  # tasks that a claim looks at, because others may hold the first ones


def any_due(busy_tenants: Collection[str] = ()) -> bool:
    """Whether a claim could find a task now."""
    now = shared_now_ms()
    return Task.select(Task.id).where(_not_of(busy_tenants), *_is_due(now)).exists()


def claim(worker: str, lease_seconds: float, after_tenant: str = "", busy_tenants: Collection[str] = ()) -> IngestTask | None:
    """Lease the task that is due for the longest time, of the next tenant after `after_tenant`; None if none is due.

    The tasks of `busy_tenants` are passed over, and those that another worker is claiming at this moment.
    """
    others = _not_of(busy_tenants)
    while True:
        now = shared_now_ms()
        row = _take_due(now, others & (Task.tenant_id > after_tenant)) or _take_due(now, others & (Task.tenant_id <= after_tenant))
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
        if document is not None and row.attempt > 1:
            _forget_progress(document.id)
        return _task(row, document)


def renew(task: IngestTask, worker: str, lease_seconds: float) -> bool:
    """Extend the lease. False: the task was stopped, superseded or taken over."""
    changed = Task.update(lease_until=shared_now_ms() + int(lease_seconds * 1000)).where(_held(task, worker)).execute()
    return changed > 0


def report(task: IngestTask, worker: str, progress: float, message: str) -> bool:
    """Show progress and a line for people, in place of the last line of its kind. False as for `renew`."""
    document = locked(Document.select().where(Document.id == task.document_id)).first()
    if _row(task, worker) is None:
        return False
    if document is not None:
        state_service.tell_progress(document, progress, message)
    return True


def finish(task: IngestTask, worker: str, *, chunk_count: int, token_count: int, message: str) -> bool:
    """Remove the task; a parsed document is DONE and counts its new chunks, too. False: nothing was written.

    After a drop the document's parse run begins, if one waits for it.
    """
    document, row = _both(task, worker)
    if row is None:
        return False
    if row.kind == "drop" and document is not None:
        task_service.end_drop(row, document)
        return True
    row.delete_instance()
    if document is not None:
        state_service.set_counts(document, max(0, document.chunk_count + chunk_count), max(0, document.token_count + token_count))
        state_service.tell(document, message, progress=1.0, run="DONE")
    return True


def fail(task: IngestTask, worker: str, message: str, *, retry: bool, counts: bool = True) -> bool:
    """Queue the task again, with a growing delay, or end it as failed. False as for `finish`.

    A failure that does not `count` uses up none of the tries: nothing is wrong with the document.
    """
    document, row = _both(task, worker)
    if row is None:
        return False
    failures = row.failures + (1 if counts or row.kind != "parse" else 0)
    if row.kind != "parse":
        _release(row, failures, min(PURGE_BACKOFF_MS, 1_000 << min(failures, 10)))
        if document is not None and document.run == "RUNNING":
            state_service.tell(document, message)
    elif retry and failures < FAILURES:
        _release(row, failures, BACKOFF_MS[min(failures if counts else row.attempt, len(BACKOFF_MS)) - 1])
        if document is not None:
            state_service.tell(document, message)
    else:
        row.delete_instance()
        if document is not None:
            state_service.set_counts(document, document.chunk_count, max(0, document.token_count))
            state_service.tell(document, message, progress=-1.0, run="FAIL")
    return True


def give_back(task: IngestTask, worker: str) -> bool:
    """End the lease without a result, as a worker does that must stop; the task is due at once and keeps its count.

    When the lease ended stays: what the worker had sent to the store may still arrive there.
    """
    changed = Task.update(owner=None, lease_until=shared_now_ms(), attempt=Task.attempt - 1).where(_held(task, worker)).execute()
    return changed > 0


def _not_of(busy_tenants: Collection[str]) -> Expression:
    return Task.tenant_id.not_in(list(busy_tenants))


def _is_due(now: int) -> tuple[Expression, Expression]:
    return Task.due_at <= now, Task.lease_until <= now


def _take_due(now: int, tenants: Expression) -> Task | None:
    """The first due task that nobody else is taking, held. One by one by its key: a lock on a list would take all of the list."""
    candidates = Task.select(Task.id).where(tenants, *_is_due(now)).order_by(Task.tenant_id, Task.due_at).limit(CANDIDATES)
    for (task_id,) in list(candidates.tuples()):
        row = locked(Task.select().where(Task.id == task_id, *_is_due(now)), skip=True).first()
        if row is not None:
            return row
    return None


def _held(task: IngestTask, worker: str) -> Expression:
    return (Task.id == task.id) & (Task.owner == worker) & (Task.version == task.version) & (Task.attempt == task.attempt)


def _row(task: IngestTask, worker: str) -> Task | None:
    return locked(Task.select().where(_held(task, worker))).first()


def _both(task: IngestTask, worker: str) -> tuple[Document | None, Task | None]:
    """The document of a parse or a drop, held, and the task's row if it is still the worker's, held as well."""
    document = state_service.hold(task.document_id) if task.kind in task_service.RUN else None
    return document, _row(task, worker)


def _task(row: Task, document: Document | None) -> IngestTask:
    task = IngestTask(
        row.id, row.kind, row.tenant_id, row.dataset_id, row.document_id, blob_key=row.blob_key, version=row.version, attempt=row.attempt
    )
    if document is None:
        return task
    dataset = Dataset.get_or_none(Dataset.id == document.dataset_id)
    return replace(
        task, document_name=document.name, blob_key=document.location, size=document.size, chunk_method=document.chunk_method,
        parser_config=document.parser_config, embedding_model="" if dataset is None else dataset.embedding_model,
        available=document.enabled,
    )  # fmt: skip


def _release(row: Task, failures: int, delay_ms: int) -> None:
    due_at = shared_now_ms() + delay_ms
    Task.update(owner=None, lease_until=0, failures=failures, due_at=due_at).where(Task.id == row.id).execute()


def _forget_progress(document_id: str) -> None:
    document = locked(Document.select().where(Document.id == document_id)).first()
    if document is not None:
        state_service.forget_progress(document)
