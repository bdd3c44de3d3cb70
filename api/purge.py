"""Removing what deleted documents leave behind in the chunk store and the blob store."""

from collections.abc import Iterable, Sequence

import structlog

from api.parts import Parts
from db.services import task_service
from db.services.task_service import Purge
from rag.errors import MillraceError
from rag.types import ChunkSelector

log = structlog.get_logger("millrace.purge")

DOCUMENTS_AT_ONCE = 1_000


async def purge(parts: Parts, purges: Sequence[Purge]) -> None:
    """Do what the purge tasks of one tenant say and take them back.

    Where a part cannot answer now the tasks stay, and a worker does them when it can: the rows are gone already, so the
    deletion itself has succeeded.
    """
    try:
        for start in range(0, len(purges), DOCUMENTS_AT_ONCE):
            await _purge(parts, purges[start : start + DOCUMENTS_AT_ONCE])
    except MillraceError as error:
        log.warning("purge left to a worker", documents=len(purges), error=str(error))


async def _purge(parts: Parts, purges: Sequence[Purge]) -> None:
    selector = ChunkSelector(document_ids=tuple(item.document_id for item in purges))
    await parts.lanes.write.run(parts.store.delete, purges[0].tenant_id, selector)
    await parts.lanes.blob.run(_delete_blobs, parts, [item.blob_key for item in purges])
    await parts.session.write(task_service.purged, purges)


def _delete_blobs(parts: Parts, keys: Iterable[str]) -> None:
    for key in keys:
        parts.blobs.delete(key)
