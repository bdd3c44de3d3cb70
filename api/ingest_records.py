"""The ingestion worker's view of the database: `rag.ports.IngestRecords` over the session and the task service."""

from collections.abc import Callable, Collection
from typing import Any

from db.services import dataset_service, lease_service, state_service
from db.session import Session
from rag.ports import ChunkStore
from rag.types import ChunkSelector, IngestTask


class DatabaseRecords:
    """Tasks and documents in the database. Tenants take turns: a claim begins with the tenant after the one served last."""

    def __init__(self, session: Session, store: ChunkStore) -> None:
        """`store` says how many chunks a finished document has: callers may have changed them meanwhile."""
        self._session = session
        self._store = store
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
        """As `rag.ports.IngestRecords.finish`."""
        return await self._session.write(self._finish, task, worker, chunk_count, token_count, message)

    async def fail(self, task: IngestTask, worker: str, message: str, *, retry: bool) -> bool:
        """As `rag.ports.IngestRecords.fail`."""
        return await self._session.write(_ended, task, lease_service.fail, worker, message, retry=retry)

    async def give_back(self, task: IngestTask, worker: str) -> bool:
        """As `rag.ports.IngestRecords.give_back`."""
        return await self._session.write(_ended, task, lease_service.give_back, worker)

    def _finish(self, task: IngestTask, worker: str, chunk_count: int, token_count: int, message: str) -> bool:
        if not _ended(task, lease_service.finish, worker, chunk_count=chunk_count, token_count=token_count, message=message):
            return False
        if task.kind == "parse":
            state_service.recount(task.document_id, self._store.count(task.tenant_id, ChunkSelector(document_ids=(task.document_id,))))
        return True


def _ended(task: IngestTask, end: Callable[..., bool], worker: str, *args: Any, **kwargs: Any) -> bool:
    """`end` the worker's lease. What it wrote can be found by now, whether the task was still its own or not."""
    dataset_service.changed(task.dataset_id)
    return end(task, worker, *args, **kwargs)
