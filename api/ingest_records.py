"""The ingestion worker's view of the database: `rag.ports.IngestRecords` over the session and the task service."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from api.renames import rename
from db.services import dataset_service, document_service, lease_service, state_service
from db.services.document_service import DocumentRecord
from db.session import Session
from rag.ports import ChunkStore
from rag.threads import Lane
from rag.types import ChunkSelector, IngestTask

Counters = tuple[int, int]

COUNTS = 5  # of a document whose chunks are changed by hand while they are being counted


class DatabaseRecords:
    """Tasks and documents in the database. Tenants take turns: a claim begins with the tenant after the one served last."""

    def __init__(self, session: Session, store: ChunkStore, store_lane: Lane) -> None:
        """`store`, asked in its lane, says how many chunks a finished document has: callers may have changed them meanwhile."""
        self._session = session
        self._store = store
        self._store_lane = store_lane
        self._last_tenant = ""

    async def claim(self, worker: str, lease_seconds: float, busy_tenants: Collection[str] = ()) -> IngestTask | None:
        """As `rag.ports.IngestRecords.claim`. Polling an idle queue only reads."""
        if not await self._session.read(lease_service.any_due, busy_tenants):
            return None
        task = await self._session.write(lease_service.claim, worker, lease_seconds, self._last_tenant, busy_tenants)
        if task is not None:
            self._last_tenant = task.tenant_id
        return task

    async def renew(self, task: IngestTask, worker: str, lease_seconds: float) -> bool:
        """As `rag.ports.IngestRecords.renew`."""
        return await self._session.write(lease_service.renew, task, worker, lease_seconds)

    async def report(self, task: IngestTask, worker: str, progress: float, message: str) -> bool:
        """As `rag.ports.IngestRecords.report`."""
        return await self._session.write(lease_service.report, task, worker, progress, message)

    async def finish(self, task: IngestTask, worker: str, *, chunk_count: int, token_count: int, message: str) -> bool:
        """As `rag.ports.IngestRecords.finish`.

        What a document has is counted outside of any transaction, and holds only if its counters are at the end, where the document
        is held, what they were before: whoever adds or removes chunks by hand changes the counters in the same transaction. (Unless
        as many chunks of as many tokens came as went within these milliseconds.) If they changed it is counted again, and what is
        changed all the time is counted at last while it is held.
        """
        ended = {"chunk_count": chunk_count, "token_count": token_count, "message": message}
        if task.kind != "parse":
            return await self._session.write(_ended, task, lease_service.finish, worker, **ended)
        for _ in range(COUNTS):
            before = await self._session.read(_counters, task)
            stored = await self._store_lane.run(self._stored, task)
            done = await self._session.write(_finish_counted, task, worker, before, stored, ended)
            if done is not None:
                return done
        return await self._session.write(self._finish_counting, task, worker, ended)

    async def fail(self, task: IngestTask, worker: str, message: str, *, retry: bool, counts: bool = True) -> bool:
        """As `rag.ports.IngestRecords.fail`."""
        return await self._session.write(_ended, task, lease_service.fail, worker, message, retry=retry, counts=counts)

    async def rename(self, task: IngestTask) -> None:
        """As `rag.ports.IngestRecords.rename`."""
        await rename(self._session, self._store, self._store_lane, task.document_id)

    async def give_back(self, task: IngestTask, worker: str) -> bool:
        """As `rag.ports.IngestRecords.give_back`."""
        return await self._session.write(_ended, task, lease_service.give_back, worker)

    def _finish_counting(self, task: IngestTask, worker: str, ended: Mapping[str, Any]) -> bool:
        done = _ended(task, lease_service.finish, worker, **ended)
        if done:
            state_service.recount(task.document_id, self._stored(task))
        return done

    def _stored(self, task: IngestTask) -> int:
        return self._store.count(task.tenant_id, ChunkSelector(document_ids=(task.document_id,)))


def _counters(task: IngestTask) -> Counters | None:
    return _of(document_service.get(task.tenant_id, task.document_id))


def _finish_counted(task: IngestTask, worker: str, before: Counters | None, stored: int, ended: Mapping[str, Any]) -> bool | None:
    """None: the document's counters are no longer what they were `before` its `stored` chunks were counted, and nothing was written."""
    dataset_service.changed(task.dataset_id)
    if _of(document_service.hold(task.tenant_id, task.document_id)) != before:
        return None
    done = lease_service.finish(task, worker, **ended)
    if done:
        state_service.recount(task.document_id, stored)
    return done


def _of(document: DocumentRecord | None) -> Counters | None:
    return None if document is None else (document.chunk_count, document.token_count)


def _ended(task: IngestTask, end: Callable[..., bool], worker: str, *args: Any, **kwargs: Any) -> bool:
    """`end` the worker's lease. What it wrote can be found by now, whether the task was still its own or not."""
    dataset_service.changed(task.dataset_id)
    return end(task, worker, *args, **kwargs)
