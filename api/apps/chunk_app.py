"""Chunks of a document: /datasets/{d}/documents/{doc}/chunks (contract, 6)."""

import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from quart import Response, request

from api import chunk_edits, chunk_wire, document_wire, respond
from api.body import id_list, page_of, tolerant
from api.context import parts, tenant_id
from api.documents import find_document
from api.errors import ApiError
from api.routes import Routes
from api.schema import chunk as schema
from db.services import dataset_service
from db.services.document_service import DocumentRecord
from rag.errors import InvalidArgument
from rag.nlp.highlight import Highlighter
from rag.nlp.query import question_terms
from rag.ports import Embedder
from rag.types import Chunk, ChunkSelector, ChunkTerms, SearchRequest

api = Routes("chunk")

CHUNKS = "/datasets/<dataset_id>/documents/<document_id>/chunks"
CHUNK_ID = re.compile(r"[0-9a-f]{16}")
KEYWORD_MATCHES = 1024
LIST_ITEMS = 1_000
ITEM_CHARACTERS = 1_000
SWITCH = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}  # 1 and 0 are True and False


@api.route("POST", CHUNKS, body=schema.ChunkAdd, data=schema.Added)
async def add_chunk(dataset_id: str, document_id: str) -> Response:
    """Add a chunk by hand."""
    document = await find_document(dataset_id, document_id)
    body = await tolerant()
    content = _content(body)
    fields = {name: _texts(body, key, "is required to be a list") for name, key in LISTS.items() if body.get(key) is not None}
    extra: dict[str, Any] = {}
    if body.get("tag_feas") is not None:
        extra["tag_feas"] = _tag_features(body["tag_feas"])
    if "image_base64" in body and body["image_base64"] is not None:
        extra |= _image(document, chunk_edits.chunk_id(content, document.id), body["image_base64"])
    embedder = await _embedder(document)
    chunk = Chunk(
        chunk_edits.chunk_id(content, document.id), document.dataset_id, document.id, document.name, content, ChunkTerms(),
        kind="image" if "image_id" in extra else "", created_at=time.time(), extra=extra, **fields,
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
    available = SWITCH.get(request.args.get("available", "").lower())
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
    selector = _selector(document, [str(chunk_id) for chunk_id in ids])
    switched = await parts().lanes.search.run(parts().store.set_available, tenant_id(), selector, _available(value))
    if not switched:
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
    changes = _changes(document, chunk.id, await tolerant())
    if not changes:
        return respond.reply()
    if changes.keys() == {"available"}:
        selector = _selector(document, [chunk.id])
        changed = await parts().lanes.search.run(parts().store.set_available, tenant_id(), selector, changes["available"]) > 0
    else:
        changed = await chunk_edits.edit(parts(), tenant_id(), chunk, changes, await _embedder(document))
    if not changed:
        raise ApiError(102, not_found, 404)
    return respond.reply()


def _changes(document: DocumentRecord, chunk_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Chunk` that an edit changes."""
    changes: dict[str, Any] = {}
    if body.get("content") is not None:
        changes["content"] = _content(body)
        if document.chunk_method == "qa" and not re.search(r"[\t\n]", changes["content"].strip()):
            raise ApiError(102, "Q&A must be separated by TAB/ENTER key.")
    changes |= {name: _texts(body, key, "should be a list") for name, key in LISTS.items() if body.get(key) is not None}
    if body.get("positions") is not None:
        changes["positions"] = _positions(body["positions"])
    if body.get("available") is not None:
        changes["available"] = _available(body["available"])
    extra: dict[str, Any] = {}
    if body.get("tag_feas") is not None:
        extra["tag_feas"] = _tag_features(body["tag_feas"])
    if body.get("image_base64") is not None:
        extra |= _image(document, chunk_id, body["image_base64"])
    return changes | {"extra": extra} if extra else changes


LISTS = {"keywords": "important_keywords", "questions": "questions", "tags": "tag_kwd"}


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
    chunk_ids = [f"{number:016x}" for number in found.ids[ordered].tolist()]
    if ids:
        chunk_ids = [chunk_id for chunk_id in chunk_ids if chunk_id in set(ids)]
    if available is False:
        chunk_ids = [chunk.id for chunk in await _get(document, chunk_ids) if not chunk.available]
    highlighter = Highlighter(terms)
    chunks = await _get(document, chunk_ids[offset : offset + limit])
    return len(chunk_ids), [chunk_wire.item(chunk, document.name, highlighter.mark(chunk.content)) for chunk in chunks]


def _selector(document: DocumentRecord, chunk_ids: Sequence[str]) -> ChunkSelector:
    wanted = tuple(chunk_id for chunk_id in chunk_ids if CHUNK_ID.fullmatch(chunk_id))
    return ChunkSelector(document_ids=(document.id,), chunk_ids=wanted)


def _content(body: Mapping[str, Any]) -> str:
    content = body.get("content")
    if content is None or (isinstance(content, str) and not content.strip()):
        raise ApiError(102, "`content` is required")
    if not isinstance(content, str):
        raise ApiError(101, "`content` should be a string")
    return content


def _texts(body: Mapping[str, Any], key: str, not_a_list: str) -> tuple[str, ...]:
    values = body[key]
    adding = not_a_list.startswith("is")
    if not isinstance(values, list):
        raise ApiError(102, f"`{key}` {not_a_list}")
    _check_size(key, values)
    if not all(isinstance(value, str) for value in values):
        # an edit answers 101 for keywords and questions, everything else 102
        raise ApiError(102 if adding or key == "tag_kwd" else 101, f"`{key}` must be a list of strings")
    _check_lengths(key, values)
    return tuple(stripped for value in values if (stripped := value.strip())) if key == "questions" else tuple(values)


def _check_size(key: str, values: Sized) -> None:
    if len(values) > LIST_ITEMS:
        raise ApiError(101, f"`{key}` must contain at most {LIST_ITEMS} items")


def _check_lengths(key: str, values: Iterable[str]) -> None:
    if any(len(value) > ITEM_CHARACTERS for value in values):
        raise ApiError(101, f"an item of `{key}` must have at most {ITEM_CHARACTERS} characters")


def _positions(value: Any) -> tuple[tuple[int, int, int, int, int], ...]:
    if not isinstance(value, list):
        raise ApiError(102, "`positions` should be a list")
    _check_size("positions", value)
    rows = [tuple(row) if isinstance(row, list) else () for row in value]
    if not all(len(row) == 5 and all(isinstance(number, int) and not isinstance(number, bool) for number in row) for row in rows):
        raise ApiError(101, "`positions` should be a list of lists of 5 integers")
    return tuple(rows)  # type: ignore[arg-type]


def _available(value: Any) -> bool:
    switch = SWITCH.get(value) if isinstance(value, (bool, int, str)) else None
    if switch is None:
        raise ApiError(101, "`available` should be true, false, 1 or 0")
    return switch


def _tag_features(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise ApiError(102, "`tag_feas` must be an object that maps tags to numbers")
    _check_lengths("tag_feas", value)
    for score in value.values():
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
            raise ApiError(102, "`tag_feas` must map tags to finite numbers")
    return value


def _image(document: DocumentRecord, chunk_id: str, encoded: Any) -> dict[str, str]:
    if not isinstance(encoded, str) or not encoded.strip():
        raise ApiError(102, "`image_base64` must be a non-empty string")
    try:
        image = chunk_edits.image_of(document.dataset_id, chunk_id, encoded.strip())
    except InvalidArgument as error:
        raise ApiError(102, "Invalid `image_base64`") from error
    return {"image_id": image.id, "image": image.text}
