"""Background work as callers write it: rows of `Task`, and what that does to the documents they are about.

A document has at most one `parse` and one `purge` task. A parse task carries the document's parse version: starting again
raises it, stopping removes the task, and either way the worker that still holds the old one is told False at its next call.
A purge task is the outbox of a deletion (and the pledge of an upload): it is written in the transaction that removes the
rows, whoever removed them purges chunks and file at once and takes the task back, and if that server dies, a worker does it.
A sweep task follows whenever a parse task is taken from its worker: it removes what that still wrote, if it was killed before it
could itself.
A drop task is what stands between a document's old chunks and its new ones. Starting again, stopping and resetting write it in
the place of the parse task; it ends, and becomes the parse task of a run that waits, only when the old chunks are gone. The
server that wrote it comes first, and if that fails or dies, a worker does it, again and again until it is done.
A rename task is to write a document's new name into its chunks; it, too, is a worker's only if the server that renamed it breaks off.

Workers find their side of it in lease_service.py. Times are those of the database's clock.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from peewee import Expression

from db.dialect import locked, shared_now_ms
from db.models import Document, Task, new_id
from db.services import metadata_rows
from db.services.state_service import batches, held, set_counts, tell

PURGE_DELAY_MS = 5_000  # the server that deletes comes first
LATE_WRITES_MS = 15_000  # how long after its lease a worker may still write
HOLD_MS = 20_000  # for the server that drops old chunks, or renames them
PLEDGE_MS = 60_000
INSERT_ROWS = 500
RUN = "drop", "parse"  # kinds of which a document has one, whichever its run has come to

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
class Drop:
    """Chunks of a document that must go: those of parse runs below `version`, and those added by hand before.

    The document's version is raised to it in the same transaction, so that this is no longer true of any chunk that comes later.
    """

    document_id: str
    version: int


def start(document_ids: Sequence[str]) -> list[Drop]:
    """Begin a new parse run of each document: RUNNING, counters at nothing.

    Runs of documents that had chunks before wait: the caller deletes those from the store, then calls `dropped`.
    """
    drops, now = [], shared_now_ms()
    for document in held(document_ids):
        first = document.version == 0 and document.chunk_count == 0
        set_counts(document, 0, 0)
        version = document.version + 1
        Document.update(
            run="RUNNING", progress=0.0, progress_msg="", process_begin_at=now, process_duration=0.0,
            version=version, update_time=now,
        ).where(Document.id == document.id).execute()  # fmt: skip
        if first:
            _put_run("parse", document, now, version)
        else:
            drops.append(_put_drop(document, version))
    return drops


def dropped(drops: Sequence[Drop]) -> None:
    """The chunks are gone: end their tasks, but for those that a worker has by now, or that something newer has replaced."""
    for batch in batches(drops):
        versions = {drop.document_id: drop.version for drop in batch}
        for document in held(list(versions)):
            own = Task.document_id == document.id, Task.kind == "drop", Task.version == versions[document.id], Task.owner.is_null()
            task = locked(Task.select().where(*own)).first()
            if task is not None:
                end_drop(task, document)


def end_drop(task: Task, document: Document) -> None:
    """Let the parse run that waited for a held drop task begin; without one the task is done.

    Whatever was counted since the task was written is gone: nothing can be added meanwhile (`is_dropping`).
    """
    set_counts(document, 0, 0)
    if document.run == "RUNNING" and document.version == task.version:
        _put_run("parse", document, shared_now_ms(), task.version)
    else:
        task.delete_instance()


def is_dropping(document_id: str) -> bool:
    """Whether the document's old chunks are still to be dropped: one that is added now would go with them."""
    return Task.select().where(Task.kind == "drop", Task.document_id == document_id).exists()


def restart(document: Document) -> None:
    """Begin a held document's parse run anew, whoever is at it; for changes that a run under way cannot take in."""
    by_hand = document.chunk_count, max(0, document.token_count)  # all that a run under way has counted so far
    set_counts(document, *(by_hand if document.run == "RUNNING" else (0, 0)))
    Document.update(run="RUNNING", version=document.version + 1, progress=0.0).where(Document.id == document.id).execute()
    _put_run("drop" if is_dropping(document.id) else "parse", document, shared_now_ms(), document.version + 1)


def stop(document_ids: Sequence[str]) -> list[Drop]:
    """CANCEL the documents and take their tasks from the workers; the caller deletes their chunks from the store, then calls `dropped`."""
    drops = []
    for document in held(document_ids):
        version = document.version + 1
        drops.append(_put_drop(document, version))
        set_counts(document, 0, 0)
        tell(document, STOPPED, progress=0.0, run="CANCEL", version=version)
    return drops


def put_rename(document: Document) -> None:
    """Leave word that a held document's chunks must get its name, in the place of what an earlier rename left."""
    _take_back(document, "rename")
    _put("rename", document, shared_now_ms() + HOLD_MS, document.version)


def rename_of(document_id: str) -> str:
    """The id of the document's rename task, "" without one."""
    return Task.select(Task.id).where(Task.kind == "rename", Task.document_id == document_id).scalar() or ""


def renamed(task_id: str) -> None:
    """The chunks have the name: end the task, unless a worker has it by now."""
    Task.delete().where(Task.id == task_id, Task.owner.is_null()).execute()


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
        metadata_rows.remove(ids)
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


def _leases(document_ids: Sequence[str]) -> dict[str, int]:
    """Until when a worker may be at the documents, for those that have a parse run or the sweep after one; held."""
    columns = Task.document_id, Task.kind, Task.lease_until, Task.due_at
    leases: dict[str, int] = {}
    for row in locked(Task.select(*columns).where(Task.document_id.in_(document_ids), Task.kind.in_(("parse", "sweep")))):
        until = row.lease_until if row.kind == "parse" else row.due_at - LATE_WRITES_MS
        leases[row.document_id] = max(until, leases.get(row.document_id, 0))
    return leases


def _put_drop(document: Document, version: int) -> Drop:
    _put_run("drop", document, shared_now_ms() + HOLD_MS, version)
    return Drop(document.id, version)


def _put_run(kind: str, document: Document, due_at: int, version: int) -> None:
    """Write the task that the document's run has come to, in the place of the one before. If a worker had that, a sweep follows."""
    before = _take_back(document, *RUN)
    if before is not None and before.kind == "parse" and (before.attempt > 0 or before.lease_until > 0):
        earlier = _take_back(document, "sweep")
        sweep_at = max(before.lease_until, shared_now_ms()) + LATE_WRITES_MS
        _put("sweep", document, sweep_at if earlier is None else max(sweep_at, earlier.due_at), before.version)
    _put(kind, document, due_at, version)


def _take_back(document: Document, *kinds: str) -> Task | None:
    """The document's task of one of these kinds, which it has no more."""
    row = locked(Task.select().where(Task.kind.in_(kinds), Task.document_id == document.id)).first()
    if row is not None:
        row.delete_instance()
    return row


def _put(kind: str, document: Document, due_at: int, version: int) -> None:
    Task.create(
        kind=kind, tenant_id=document.tenant_id, dataset_id=document.dataset_id, document_id=document.id,
        version=version, due_at=due_at,
    )  # fmt: skip


def _purge_row(purge: Purge, due_at: int) -> dict[str, object]:
    return {
        "id": purge.task_id, "kind": "purge", "tenant_id": purge.tenant_id, "dataset_id": purge.dataset_id,
        "document_id": purge.document_id, "blob_key": purge.blob_key, "due_at": due_at,
    }  # fmt: skip
