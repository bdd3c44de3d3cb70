"""A document's name in its chunks: written by the server that renamed it, or by a worker where that broke off.

The row is changed before the chunks, which are in another store, and the same transaction leaves a task to write the name into them.
"""

from dataclasses import replace

from db.services import document_service, task_service
from db.services.document_service import DocumentRecord
from db.session import Session
from rag.nlp.tokenize import terms_of
from rag.ports import ChunkStore
from rag.threads import Lane
from rag.types import Chunk

CHUNKS_AT_ONCE = 500


async def rename(session: Session, store: ChunkStore, lane: Lane, document_id: str) -> None:
    """Write the document's name into all its chunks, whose vectors stay; `lane` is the store's. Findable when this returns.

    Of several at the same time the name that was committed last wins, and whoever is last to go through the chunks takes the task
    back. One that fails, or is killed, leaves chunks that have this name or still the one of before, and the task.
    """
    while True:  # chunks may have moved between the pages, or been changed by others
        document, task_id = await session.read(document_service.to_rename, document_id)
        if document is None:
            return
        if await _agree(session, store, lane, document):
            break
    await lane.run(store.flush, document.tenant_id)
    if task_id:
        await session.write(task_service.renamed, task_id)


async def _agree(session: Session, store: ChunkStore, lane: Lane, document: DocumentRecord) -> bool:
    """Go through the document's chunks once; whether all had its name already."""
    agree, offset, total = True, 0, 1
    while offset < total:
        total, before, after = await lane.run(_page, store, document, offset)
        if before and not await session.write(_put, store, document, before, after):
            return False
        agree, offset = agree and not before, offset + CHUNKS_AT_ONCE
    return agree


def _page(store: ChunkStore, document: DocumentRecord, offset: int) -> tuple[int, list[Chunk], list[Chunk]]:
    """How many chunks the document has, and those of the page that have another name, as they are and as they shall be."""
    total, chunks = store.list(document.tenant_id, document.id, offset=offset, limit=CHUNKS_AT_ONCE)
    before = [chunk for chunk in chunks if chunk.document_name != document.name]
    return total, before, [_named(chunk, document.name) for chunk in before]


def _named(chunk: Chunk, document_name: str) -> Chunk:
    named = replace(chunk, document_name=document_name)
    return replace(named, terms=terms_of(named))


def _put(store: ChunkStore, document: DocumentRecord, before: list[Chunk], after: list[Chunk]) -> bool:
    """False: the document is gone or has yet another name. Nobody renames it while it is held, so that no older name is written."""
    now = document_service.hold(document.tenant_id, document.id)
    if now is None or now.name != document.name:
        return False
    store.replace(document.tenant_id, before, after, None, "", wait=False)
    return True
