"""Changes to chunks in the store that follow from what callers do by hand: adding, editing, renaming, switching."""

import base64
import binascii
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from api.parts import Parts
from db.services.document_service import DocumentRecord
from rag.errors import InvalidArgument, TooLarge
from rag.nlp.tokenize import chunk_terms
from rag.nlp.tokens import TokenCounter
from rag.ports import ChunkStore, Embedder
from rag.types import Chunk, ChunkSelector

CHUNKS_AT_ONCE = 500
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


def handmade(document: DocumentRecord, content: str, fields: Mapping[str, Any]) -> Chunk:
    """A chunk added by hand. `fields` are those of `Chunk` that the caller chose: keywords, questions, tags, kind, extra."""
    keywords, questions = fields.get("keywords", ()), fields.get("questions", ())
    return Chunk(
        id=chunk_id(content, document.id),
        dataset_id=document.dataset_id,
        document_id=document.id,
        document_name=document.name,
        content=content,
        terms=chunk_terms("", (), content, keywords, questions),
        available=document.enabled,
        created_at=time.time(),
        **fields,
    )


def edited(chunk: Chunk, **fields: Any) -> Chunk:
    """The chunk with fields changed and its terms made anew. Only parsed chunks carry their document's title."""
    chunk = replace(chunk, **fields)
    title = chunk.document_name if chunk.version else ""
    return replace(chunk, terms=chunk_terms(title, chunk.headings, chunk.content, chunk.keywords, chunk.questions))


async def embed(embedder: Embedder, chunk: Chunk) -> np.ndarray:
    """Its vector, `[1, dimension]` of unit length: a little of the title, the rest of the questions if any, else of the content."""
    text = "\n".join(chunk.questions) if chunk.questions else chunk.content
    title, body = await embedder.embed_documents([chunk.document_name, text])
    vector = TITLE_SHARE * title + (1 - TITLE_SHARE) * body
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)[None, :]


async def put(parts: Parts, tenant_id: str, chunk: Chunk, embedder: Embedder) -> None:
    """Embed the chunk and store it, findable when this returns."""
    vector = await embed(embedder, chunk)
    await parts.lanes.search.run(parts.store.put, tenant_id, [chunk], vector, embedder.space)


async def count_tokens(parts: Parts, embedder: Embedder, contents: Sequence[str]) -> int:
    """Tokens of the contents together, as the embedding model counts them."""
    return await parts.lanes.search.run(_count_tokens, embedder.tokenizer_path, contents)


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


async def follow(parts: Parts, before: DocumentRecord, after: DocumentRecord, *, dropped: bool) -> None:
    """Bring the document's chunks in line with a change of the document; `dropped` ones are deleted."""
    selector = ChunkSelector(document_ids=(after.id,))
    search = parts.lanes.search
    if dropped:
        await search.run(parts.store.delete, after.tenant_id, selector)
        return
    if after.name != before.name:
        await search.run(_rename, parts.store, after)
    if after.enabled != before.enabled:
        await search.run(parts.store.set_available, after.tenant_id, selector, after.enabled)


def _rename(store: ChunkStore, document: DocumentRecord) -> None:
    """Write the document's new name into its chunks; their vectors stay."""
    offset, total = 0, 1
    while offset < total:
        total, chunks = store.list(document.tenant_id, document.id, offset=offset, limit=CHUNKS_AT_ONCE)
        if not chunks:
            return
        store.put(document.tenant_id, [edited(chunk, document_name=document.name) for chunk in chunks], None, "", wait=False)
        offset += len(chunks)
    store.flush(document.tenant_id)


def _count_tokens(tokenizer_path: Path, contents: Sequence[str]) -> int:
    counter = _counter(tokenizer_path)
    return sum(counter.count(content) for content in contents)


@cache
def _counter(tokenizer_path: Path) -> TokenCounter:
    return TokenCounter(tokenizer_path)
