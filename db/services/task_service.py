"""Background work as callers write it: rows of `Task`, and what that does to the documents they are about.

A document has at most one `parse` and one `purge` task. A parse task carries the document's parse version: starting again
raises it, stopping removes the task, and either way the worker that still holds the old one is told False at its next call.
A purge task is the outbox of a deletion (and the pledge of an upload): it is written in the transaction that removes the
rows, whoever removed them purges chunks and file at once and takes the task back, and if that server dies, a worker does it.
A sweep task follows a stop: it removes what the stopped run's worker still wrote, if that was killed before it could itself.

Workers find their side of it in lease_service.py. Times are those of the database's clock.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from peewee import Expression

from db.dialect import locked, shared_now_ms
from db.models import Document, Task, new_id
from db.services.state_service import batches, held, set_counts, tell

PURGE_DELAY_MS = 5_000  # the server that deletes comes first
LATE_WRITES_MS = 15_000  # how long after its lease a worker may still write
HOLD_MS = 20_000  # for deleting old chunks between the two steps of a start
PLEDGE_MS = 60_000
INSERT_ROWS = 500

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


def start(document_ids: Sequence[str]) -> list[Started]:
    """Begin a new parse run of each document: RUNNING, counters at nothing, the task on hold.

    The caller deletes the documents' chunks from the store and then calls `release`. If it never does, the task becomes due
    by itself, and the chunks of older runs go when the new one is done.
    """
    started, now = [], shared_now_ms()
    for document in held(document_ids):
        first = document.version == 0 and document.chunk_count == 0
        set_counts(document, 0, 0)
        version = document.version + 1
        Document.update(
            run="RUNNING", progress=0.0, progress_msg="", process_begin_at=now, process_duration=0.0,
            version=version, update_time=now,
        ).where(Document.id == document.id).execute()  # fmt: skip
        _put("parse", document, now + HOLD_MS, version=version, blob_key=document.location)
        started.append(Started(document.id, version, first))
    return started


def release(started: Sequence[Started]) -> None:
    """Make the held tasks due.

    A run that went on in the meantime (the hold ran out, or somebody started the document again) may have lost chunks to the
    caller's delete: it begins anew.
    """
    now = shared_now_ms()
    for batch in batches(started):
        versions = {item.document_id: item.version for item in batch}
        for document in held(list(versions)):
            version = versions[document.id]
            unclaimed = Task.document_id == document.id, Task.kind == "parse", Task.version == version, Task.owner.is_null()
            if Task.update(due_at=now).where(*unclaimed).execute() or document.run not in ("RUNNING", "DONE"):
                continue
            restart(document)


def restart(document: Document) -> None:
    """Begin a held document's parse run anew, whoever is at it; for changes that a run under way cannot take in."""
    by_hand = document.chunk_count, max(0, document.token_count)  # all that a run under way has counted so far
    set_counts(document, *(by_hand if document.run == "RUNNING" else (0, 0)))
    Document.update(run="RUNNING", version=document.version + 1, progress=0.0).where(Document.id == document.id).execute()
    _put("parse", document, shared_now_ms(), version=document.version + 1, blob_key=document.location)


def stop(document_ids: Sequence[str]) -> None:
    """CANCEL the documents and take their tasks from the workers; the caller deletes their chunks from the store."""
    for document in held(document_ids):
        parsing = locked(Task.select().where(Task.kind == "parse", Task.document_id == document.id)).first()
        if parsing is not None:
            parsing.delete_instance()
        if parsing is not None and (parsing.attempt > 0 or parsing.lease_until > 0):  # a worker had it, or gave it back
            _put("sweep", document, max(parsing.lease_until, shared_now_ms()) + LATE_WRITES_MS, version=document.version)
        set_counts(document, 0, 0)
        tell(document, STOPPED, progress=0.0, run="CANCEL")


def remove_documents(tenant_id: str, which: Expression) -> list[Purge]:
    """Remove the documents and their parse tasks, write a purge task for each.

    Their datasets are held by the caller, who also sees to the counters.
    """
    purges: list[Purge] = []
    columns = Document.id, Document.dataset_id, Document.location, Document.version, Document.update_time
    rows = list(locked(Document.select(*columns).where(Document.tenant_id == tenant_id, which).order_by(Document.id)))
    now = shared_now_ms()
    for batch in batches(rows):
        ids = [row.id for row in batch]
        leases = _leases(ids)
        Task.delete().where(Task.document_id.in_(ids)).execute()
        Document.delete().where(Document.id.in_(ids)).execute()
        tasks = []
        for row in batch:
            # a worker may still write: one at it now, or one that was until a moment ago (stopped, slow, its lease lost)
            again = leases.get(row.id, 0) > 0 or (row.version > 0 and row.update_time > now - LATE_WRITES_MS)
            purge = Purge(new_id(), tenant_id, row.dataset_id, row.id, row.location, again)
            delay = LATE_WRITES_MS + max(leases.get(row.id, 0) - now, 0) if again else PURGE_DELAY_MS
            tasks.append(_purge_row(purge, now + delay))
            purges.append(purge)
        for start_at in range(0, len(tasks), INSERT_ROWS):
            Task.insert_many(tasks[start_at : start_at + INSERT_ROWS]).execute()
    return purges


def purged(purges: Iterable[Purge]) -> None:
    """Take back the purge tasks whose work is done, but for those that must be done again."""
    for batch in batches([purge.task_id for purge in purges if not purge.again]):
        Task.delete().where(Task.id.in_(batch)).execute()


def pledge(purge: Purge) -> None:
    """Promise to purge an upload's file that no document owns yet; kept unless `redeem` takes it back within a minute."""
    Task.create(**_purge_row(purge, shared_now_ms() + PLEDGE_MS))


def extend(pledges: Sequence[Purge]) -> None:
    """Another minute for the pledges of an upload that is still coming in."""
    Task.update(due_at=shared_now_ms() + PLEDGE_MS).where(Task.id.in_([purge.task_id for purge in pledges])).execute()


def redeem(purge: Purge) -> bool:
    """Take the pledge back, because the file has its document now. False: too late, a worker may have removed the file."""
    return Task.delete().where(Task.id == purge.task_id, Task.owner.is_null()).execute() > 0


def forfeit(pledges: Sequence[Purge]) -> None:
    """Make the pledges of an upload that broke due at once."""
    Task.update(due_at=shared_now_ms()).where(Task.id.in_([purge.task_id for purge in pledges])).execute()


def _leases(document_ids: Sequence[str]) -> dict[str, int]:
    """Until when a worker may be at the documents, for those that have a parse run or the sweep after one; held."""
    columns = Task.document_id, Task.kind, Task.lease_until, Task.due_at
    busy = Task.select(*columns).where(Task.document_id.in_(document_ids), Task.kind.in_(("parse", "sweep")))
    rows = sorted(locked(busy), key=lambda row: row.kind)  # where there are both, the sweep tells
    return {row.document_id: row.lease_until if row.kind == "parse" else row.due_at - LATE_WRITES_MS for row in rows}


def _put(kind: str, document: Document, due_at: int, *, version: int, blob_key: str = "") -> None:
    """Write the document's task of this kind, in the place of the one before."""
    Task.delete().where(Task.kind == kind, Task.document_id == document.id).execute()
    Task.create(
        kind=kind, tenant_id=document.tenant_id, dataset_id=document.dataset_id, document_id=document.id,
        blob_key=blob_key, version=version, due_at=due_at,
    )  # fmt: skip


def _purge_row(purge: Purge, due_at: int) -> dict[str, object]:
    return {
        "id": purge.task_id, "kind": "purge", "tenant_id": purge.tenant_id, "dataset_id": purge.dataset_id,
        "document_id": purge.document_id, "blob_key": purge.blob_key, "due_at": due_at,
    }  # fmt: skip
