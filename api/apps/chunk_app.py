"""Chunks of a document: /datasets/{d}/documents/{doc}/chunks (contract, 6)."""

import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from quart import Response, request

from api import chunk_edits, chunk_input, chunk_wire, document_wire, respond
from api.body import id_list, page_of, tolerant
from api.context import parts, tenant_id
from api.documents import find_document
from api.errors import ApiError
from api.routes import Routes
from api.schema import chunk as schema
from db.services import dataset_service
from db.services.document_service import DocumentRecord
from rag.nlp.find import chunk_ids
from rag.nlp.highlight import Highlighter
from rag.nlp.query import question_terms
from rag.ports import Embedder
from rag.types import Chunk, ChunkTerms, SearchRequest

api = Routes("chunk")

CHUNKS = "/datasets/<dataset_id>/documents/<document_id>/chunks"
CHUNK_ID = re.compile(r"[0-9a-f]{16}")
KEYWORD_MATCHES = 1024


@api.route("POST", CHUNKS, body=schema.ChunkAdd, data=schema.Added)
async def add_chunk(dataset_id: str, document_id: str) -> Response:
    """Add a chunk by hand."""
    document = await find_document(dataset_id, document_id)
    fields = chunk_input.fields(document, await tolerant())
    embedder = await _embedder(document)
    chunk = Chunk(
        dataset_id=document.dataset_id, document_id=document.id, document_name=document.name, terms=ChunkTerms(), created_at=time.time(),
        **fields,
    )  # fmt: skip
    added = await chunk_edits.add(parts(), tenant_id(), chunk, embedder)
    if added is None:
        raise ApiError(102, f"you don't own the document {document_id}", 404)
    return respond.reply({"chunk": chunk_wire.added(added)})


@api.route("GET", CHUNKS, query=schema.ChunkList, data=schema.ChunkPage)
async def list_chunks(dataset_id: str, document_id: str) -> Response:
    """List a document's chunks, or find words in them."""
    document = await find_document(dataset_id, document_id)
    page, page_size = page_of(request.args)
    ids = id_list("chunk_ids", commas=True)
    one = request.args.get("id", "").strip()
    if one:
        await _find_chunk(document, one, f"Chunk not found: {dataset_id}/{one}")
        ids = [one]
    available = chunk_input.SWITCH.get(request.args.get("available", "").lower())
    keywords = request.args.get("keywords", "").strip()
    offset = (page - 1) * page_size
    if keywords:
        total, items = await _matches(document, keywords, ids, available, offset, page_size)
    else:
        wanted = [chunk_id for chunk_id in ids if CHUNK_ID.fullmatch(chunk_id)] if ids else None
        total, chunks = await parts().lanes.search.run(
            parts().store.list, tenant_id(), document.id, chunk_ids=wanted, available=available, offset=offset, limit=page_size
        )
        items = [chunk_wire.item(chunk, document.name) for chunk in chunks]
    return respond.reply({"total": total, "chunks": items, "doc": document_wire.document(document)})


@api.route("PATCH", CHUNKS, body=schema.ChunkSwitch, data=bool)
async def switch_chunks(dataset_id: str, document_id: str) -> Response:
    """Switch chunks on or off for searches."""
    document = await find_document(dataset_id, document_id)
    body = await tolerant()
    ids = body.get("chunk_ids")
    if not isinstance(ids, list) or not ids:
        raise ApiError(102, "`chunk_ids` is required.")
    value = body.get("available_int") if body.get("available_int") is not None else body.get("available")
    if value is None:
        raise ApiError(102, "`available_int` or `available` is required.")
    wanted = [str(chunk_id) for chunk_id in ids if CHUNK_ID.fullmatch(str(chunk_id))]
    if not await chunk_edits.switch(parts(), document, wanted, chunk_input.available(value)):
        raise ApiError(102, "Index updating failure", 500)
    return respond.reply(True)


@api.route("DELETE", CHUNKS, body=schema.ChunkDelete, data=schema.ChunksDeleted)
async def delete_chunks(dataset_id: str, document_id: str) -> Response:
    """Delete chunks."""
    document = await find_document(dataset_id, document_id)
    body = await tolerant()
    ids = body.get("chunk_ids") or []
    if not isinstance(ids, list):
        raise ApiError(101, "`chunk_ids` should be a list")
    if not ids:
        if body.get("delete_all") is True:
            await chunk_edits.remove_all(parts(), document, await _embedder(document))
        return respond.reply()
    counts = Counter(str(chunk_id) for chunk_id in ids)
    found = await _get(document, list(counts))
    deleted = await chunk_edits.remove(parts(), document, found, await _embedder(document)) if found else 0
    if deleted < len(counts):
        raise ApiError(102, f"rm_chunk deleted chunks {deleted}, expect {len(counts)}", 404)
    repeated = [f"Duplicate chunk ids: {chunk_id}" for chunk_id, count in counts.items() if count > 1]
    return respond.reply({"success_count": deleted, "errors": repeated}) if repeated else respond.reply()


@api.route("GET", f"{CHUNKS}/<chunk_id>", data=schema.RawChunk)
async def get_chunk(dataset_id: str, document_id: str, chunk_id: str) -> Response:
    """Get a chunk with the names of the index's fields."""
    document = await find_document(dataset_id, document_id)
    chunk = await _find_chunk(document, chunk_id, "Chunk not found!")
    return respond.reply(chunk_wire.raw(chunk, document.name))


@api.route("PATCH PUT", f"{CHUNKS}/<chunk_id>", body=schema.ChunkEdit)
async def update_chunk(dataset_id: str, document_id: str, chunk_id: str) -> Response:
    """Change a chunk; keys that are absent stay. It is embedded again if its content or questions change."""
    document = await find_document(dataset_id, document_id)
    not_found = f"Can't find this chunk {chunk_id}"
    chunk = await _find_chunk(document, chunk_id, not_found)
    changes = chunk_input.changes(document, chunk.id, await tolerant())
    if not changes:
        return respond.reply()
    if changes.keys() == {"available"}:
        changed = await chunk_edits.switch(parts(), document, [chunk.id], changes["available"]) > 0
    else:
        changed = await chunk_edits.edit(parts(), tenant_id(), chunk, changes, await _embedder(document))
    if not changed:
        raise ApiError(102, not_found, 404)
    return respond.reply()


async def _find_chunk(document: DocumentRecord, chunk_id: str, otherwise: str) -> Chunk:
    found = await _get(document, [chunk_id])
    if not found:
        raise ApiError(102, otherwise, 404)
    return found[0]


async def _get(document: DocumentRecord, chunk_ids: Sequence[str]) -> list[Chunk]:
    """Those of the chunks that exist and belong to the document."""
    wanted = [chunk_id for chunk_id in chunk_ids if CHUNK_ID.fullmatch(chunk_id)]
    chunks = await parts().lanes.search.run(parts().store.get, tenant_id(), wanted)
    return [chunk for chunk in chunks if chunk is not None and chunk.document_id == document.id]


async def _embedder(document: DocumentRecord) -> Embedder:
    dataset = await parts().session.read(dataset_service.get, tenant_id(), document.dataset_id)
    return parts().models.embedder(None if dataset is None else dataset.embedding_model)


async def _matches(
    document: DocumentRecord, keywords: str, ids: Sequence[str], available: bool | None, offset: int, limit: int
) -> tuple[int, list[dict[str, Any]]]:
    terms = question_terms(keywords)
    asked = SearchRequest(
        tenant_id=tenant_id(), dataset_ids=(document.dataset_id,), document_ids=(document.id,), terms=terms,
        text_k=KEYWORD_MATCHES, available=True if available else None,
    )  # fmt: skip
    found = await parts().lanes.search.run(parts().store.search, asked)
    matching = np.flatnonzero(found.text_scores > 0)
    ordered = matching[np.lexsort((found.ids[matching], -found.text_scores[matching]))]
    matches = chunk_ids(found.ids[ordered])
    if ids:
        wanted = set(ids)
        matches = [chunk_id for chunk_id in matches if chunk_id in wanted]
    if available is False:
        matches = [chunk.id for chunk in await _get(document, matches) if not chunk.available]
    highlighter = Highlighter(terms)
    chunks = await _get(document, matches[offset : offset + limit])
    return len(matches), [chunk_wire.item(chunk, document.name, highlighter.mark(chunk.content)) for chunk in chunks]
