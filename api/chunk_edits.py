"""Changes to chunks in the store that follow from what callers do by hand: adding, editing, renaming, switching."""

import base64
import binascii
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from api.parts import Parts
from api.renames import rename
from api.token_counters import token_counter
from db.services import document_service, state_service, task_service
from db.services.document_service import DocumentRecord
from db.services.task_service import Drop
from rag.errors import Conflict, InvalidArgument, TooLarge, Unavailable
from rag.nlp.tokenize import terms_of
from rag.ports import ChunkStore, Embedder
from rag.types import Chunk, ChunkSelector

CHUNKS_AT_ONCE = 500
EDIT_TRIES = 50  # of all that change a chunk at the same time one gets through each time
EMBEDDED, ANALYSED = {"content", "questions"}, {"content", "questions", "keywords"}
TITLE_SHARE = 0.1  # of the vector of a chunk added by hand
IMAGE_BYTES = 512 << 10


@dataclass(frozen=True, slots=True)
class Image:
    """A picture that belongs to a chunk; kept with it, so that it goes with it."""

    id: str
    text: str


def chunk_id(content: str, document_id: str) -> str:
    """The id of a chunk added by hand: the same content in the same document is the same chunk."""
    return xxhash.xxh64_hexdigest((content + document_id).encode("utf-8", "surrogatepass"))


async def add(parts: Parts, tenant_id: str, chunk: Chunk, embedder: Embedder) -> Chunk | None:
    """Store a chunk made by hand: as it was stored, findable when this returns. None: its document is gone.

    Raises `Unavailable` while the document's old chunks are being dropped, and this one would go with them.
    """
    chunk, tokens = await parts.lanes.search.run(_analysed, chunk, embedder.tokenizer_path)
    vector = await embed(embedder, chunk)
    added = await parts.session.write(_add, parts.store, tenant_id, chunk, vector, embedder.space, tokens)
    if added is not None:
        await parts.lanes.write.run(parts.store.flush, tenant_id)
    return added


async def edit(parts: Parts, tenant_id: str, chunk: Chunk, changes: Mapping[str, Any], embedder: Embedder) -> bool:
    """Change fields of a stored chunk, findable when this returns. False: it is gone. Raises `Conflict` (changed all the time).

    `changes["extra"]` holds keys to set. Somebody else's change in between is kept: these are applied to the chunk anew.
    """
    search, write = parts.lanes.search, parts.lanes.write
    embedded: tuple[tuple[str, str], np.ndarray] | None = None
    for _ in range(EDIT_TRIES):
        after, tokens = await search.run(_edited, chunk, changes, embedder.tokenizer_path)
        text = (after.document_name, embedded_text(after))
        if changes.keys() & EMBEDDED and (embedded is None or embedded[0] != text):
            embedded = text, await embed(embedder, after)
        vector = None if embedded is None else embedded[1]
        now = await parts.session.write_once(_replace, parts.store, tenant_id, chunk, after, vector, embedder.space, tokens)
        if now is None:
            return False
        if now is after:
            await write.run(parts.store.flush, tenant_id)
            return True
        chunk = now
    raise Conflict("the chunk is being changed by others all the time")


async def remove(parts: Parts, document: DocumentRecord, found: Sequence[Chunk], embedder: Embedder) -> int:
    """Delete these chunks of the document; how many of them this call deleted."""
    selector = ChunkSelector(document_ids=(document.id,), chunk_ids=tuple(chunk.id for chunk in found))
    tokens = await parts.lanes.search.run(_tokens_by_text, embedder.tokenizer_path, [chunk.content for chunk in found])
    count = token_counter(embedder.tokenizer_path).count
    return await parts.session.write_once(_take, parts.store, document.tenant_id, selector, lambda text: tokens.get(text) or count(text))


async def remove_all(parts: Parts, document: DocumentRecord, embedder: Embedder) -> None:
    """Delete all chunks that the document has now; one that is being parsed goes on getting new ones."""
    if await parts.session.write(_take_all, parts.store, document):
        return
    left = await parts.lanes.search.run(parts.store.count, document.tenant_id, ChunkSelector(document_ids=(document.id,)))
    while left > 0:
        _, chunks = await parts.lanes.search.run(parts.store.list, document.tenant_id, document.id, limit=CHUNKS_AT_ONCE)
        await remove(parts, document, chunks, embedder)
        left -= CHUNKS_AT_ONCE


async def switch(parts: Parts, document: DocumentRecord, chunk_ids: Sequence[str], available: bool) -> int:
    """Switch these chunks of the document on or off for searches; how many of them there are."""
    selector = ChunkSelector(document_ids=(document.id,), chunk_ids=tuple(chunk_ids))
    selected = await parts.session.write(_set_available, parts.store, document.tenant_id, selector, available)
    await parts.lanes.write.run(parts.store.flush, document.tenant_id)
    return selected


async def drop(parts: Parts, tenant_id: str, drops: Sequence[Drop]) -> None:
    """Delete the old chunks of documents that were just started, stopped or reset. What fails here a worker does: see task_service.py."""
    if not drops:
        return
    by_version: defaultdict[int, list[str]] = defaultdict(list)
    for item in drops:
        by_version[item.version].append(item.document_id)
    for version, ids in by_version.items():
        selector = ChunkSelector(document_ids=tuple(ids), versions_below=version, with_added=True)
        await parts.lanes.write.run(parts.store.delete, tenant_id, selector)
    await parts.session.write(task_service.dropped, drops)


def embedded_text(chunk: Chunk) -> str:
    """What a chunk changed by hand is embedded by, beside its title: the questions if any, else the content."""
    return "\n".join(chunk.questions) if chunk.questions else chunk.content


async def embed(embedder: Embedder, chunk: Chunk) -> np.ndarray:
    """Its vector, `[1, dimension]` of unit length: a little of the title, the rest of its text."""
    title, body = await embedder.embed_documents([chunk.document_name, embedded_text(chunk)])
    vector = TITLE_SHARE * title + (1 - TITLE_SHARE) * body
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)[None, :]


def image_of(dataset_id: str, owner_id: str, encoded: str) -> Image:
    """The picture in base64. Raises `InvalidArgument` for what is none, and `TooLarge` (one, too)."""
    try:
        raw = base64.b64decode(encoded.partition(",")[2] if encoded.startswith("data:") else encoded, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument("the image is not valid base64") from None
    if not raw:
        raise InvalidArgument("the image is empty")
    if len(raw) > IMAGE_BYTES:
        raise TooLarge(f"the image exceeds {IMAGE_BYTES} bytes")
    return Image(f"{dataset_id}-{owner_id}", base64.b64encode(raw).decode())


async def follow(parts: Parts, after: DocumentRecord, *, named: bool, switched: bool) -> None:
    """Bring the document's chunks in line with a change of the document.

    A name or a switch that was sent is followed also where the document had it before: an earlier call may have broken off in between.
    """
    if named:
        await rename(parts.session, parts.store, parts.lanes.write, after.id)
    if switched:
        await parts.session.write(_switch, parts.store, after)
        await parts.lanes.write.run(parts.store.flush, after.tenant_id)


# ------------------------------------------------------------------------------------ inside a transaction of the database
# The document is held first: whoever deletes it, starts or stops it comes wholly before one of these, or wholly after. No chunk is
# stored for a document that is gone, and what is counted is what happened. The store's own transaction inside is short: nothing
# waits for its text index here.
def _add(store: ChunkStore, tenant_id: str, chunk: Chunk, vector: np.ndarray, space: str, tokens: int) -> Chunk | None:
    document = document_service.hold(tenant_id, chunk.document_id)
    if document is None:
        return None
    if task_service.is_dropping(document.id):
        raise Unavailable("the document's old chunks are still being removed")
    chunk = replace(chunk, document_name=document.name, available=document.enabled, version=-document.version)
    store.put(tenant_id, [chunk], vector, space, wait=False)
    state_service.add_counts(document.id, 1, tokens)
    return chunk


def _replace(
    store: ChunkStore, tenant_id: str, before: Chunk, after: Chunk, vector: np.ndarray | None, space: str, tokens: int
) -> Chunk | None:  # fmt: skip
    """What the store has now: `after`, or what somebody else made of `before`. None: the chunk or its document is gone."""
    if document_service.hold(tenant_id, before.document_id) is None:
        return None
    (replaced,) = store.replace(tenant_id, [before], [after], vector, space, wait=False)
    if replaced:
        state_service.add_counts(before.document_id, 0, tokens)
        return after
    (now,) = store.get(tenant_id, [before.id])
    return now if now is not None and now.document_id == before.document_id else None


def _take(store: ChunkStore, tenant_id: str, selector: ChunkSelector, tokens: Callable[[str], int]) -> int:
    for document_id in selector.document_ids or ():
        document_service.hold(tenant_id, document_id)
    taken = store.take(tenant_id, selector)
    for chunk in taken[:1]:
        state_service.add_counts(chunk.document_id, -len(taken), -sum(tokens(chunk.content) for chunk in taken))
    return len(taken)


def _take_all(store: ChunkStore, document: DocumentRecord) -> bool:
    """False: the document is being parsed, and the end of the run needs to know what was taken from it."""
    now = document_service.hold(document.tenant_id, document.id)
    if now is not None and now.run == "RUNNING":
        return False
    store.delete(document.tenant_id, ChunkSelector(document_ids=(document.id,)))
    state_service.recount(document.id, 0)
    return True


def _set_available(store: ChunkStore, tenant_id: str, selector: ChunkSelector, available: bool) -> int:
    """Changes no row, and yet here: where nothing may be written now, no chunk is changed."""
    return store.set_available(tenant_id, selector, available, wait=False)


def _switch(store: ChunkStore, document: DocumentRecord) -> None:
    now = document_service.hold(document.tenant_id, document.id)
    if now is not None:
        store.set_available(document.tenant_id, ChunkSelector(document_ids=(document.id,)), now.enabled, wait=False)


# ------------------------------------------------------------------------------------------------ blocking: for a lane
def _analysed(chunk: Chunk, tokenizer_path: Path) -> tuple[Chunk, int]:
    """The chunk with its terms, and its tokens."""
    return _with_terms(chunk), token_counter(tokenizer_path).count(chunk.content)


def _edited(chunk: Chunk, changes: Mapping[str, Any], tokenizer_path: Path) -> tuple[Chunk, int]:
    """The chunk with the changes, and how many tokens more it has."""
    after = replace(chunk, **{**changes, "extra": {**chunk.extra, **changes.get("extra", {})}})
    if changes.keys() & ANALYSED:
        after = _with_terms(after)
    if after.content == chunk.content:
        return after, 0
    count = token_counter(tokenizer_path).count
    return after, count(after.content) - count(chunk.content)


def _with_terms(chunk: Chunk) -> Chunk:
    """The chunk with its terms made anew."""
    return replace(chunk, terms=terms_of(chunk))


def _tokens_by_text(tokenizer_path: Path, texts: Sequence[str]) -> dict[str, int]:
    count = token_counter(tokenizer_path).count
    return {text: count(text) for text in texts}
