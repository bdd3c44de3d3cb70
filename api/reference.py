"""What an answer cites, as the wire shows it: reference chunks and counts by document (contract, 2.9 and 11.2)."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rag.flow.chat import Answer
from rag.types import RankedChunk

Metadata = Mapping[str, Mapping[str, Any]]
"""Document id -> metadata."""


def reference_of(answer: Answer, metadata: Metadata | None = None) -> dict[str, Any]:
    """`{"total", "chunks", "doc_aggs"}`; the chunks in the order that `[ID:n]` counts. `metadata` None leaves it out."""
    return {
        "total": answer.total,
        "chunks": [reference_chunk(ranked, metadata) for ranked in answer.chunks],
        "doc_aggs": [{"doc_name": count.document_name, "doc_id": count.document_id, "count": count.count} for count in answer.documents],
    }


def reference_chunk(ranked: RankedChunk, metadata: Metadata | None = None) -> dict[str, Any]:
    """The fourteen fields of a reference chunk; null where there is nothing."""
    chunk = ranked.chunk
    return {
        "id": chunk.id,
        "content": chunk.content,
        "document_id": chunk.document_id,
        "document_name": chunk.document_name,
        "dataset_id": chunk.dataset_id,
        "image_id": chunk.extra.get("image_id"),
        "positions": [list(position) for position in chunk.positions],
        "url": chunk.extra.get("url"),
        "similarity": float(ranked.similarity),
        "vector_similarity": float(ranked.vector_similarity),
        "term_similarity": float(ranked.term_similarity),
        "row_id": None,
        "doc_type": chunk.kind or None,
        "document_metadata": None if metadata is None else dict(metadata.get(chunk.document_id, {})),
    }


def chosen_metadata(metadata: Metadata, fields: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """The metadata with only the keys in `fields`; None keeps all."""
    if fields is None:
        return {document_id: dict(values) for document_id, values in metadata.items()}
    wanted: Collection[str] = set(fields)
    return {document_id: {key: value for key, value in values.items() if key in wanted} for document_id, values in metadata.items()}
