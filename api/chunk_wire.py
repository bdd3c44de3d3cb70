"""Chunks as callers see them."""

from datetime import UTC, datetime
from typing import Any

from rag.types import Chunk


def item(chunk: Chunk, document_name: str, content: str | None = None) -> dict[str, Any]:
    """A chunk in a list; `content` stands in for its own where matched words are marked."""
    return {
        "id": chunk.id,
        "content": chunk.content if content is None else content,
        "document_id": chunk.document_id,
        "docnm_kwd": document_name,
        "dataset_id": chunk.dataset_id,
        "important_keywords": list(chunk.keywords),
        "questions": list(chunk.questions),
        "tag_kwd": list(chunk.tags),
        "image_id": chunk.extra.get("image_id", ""),
        "doc_type_kwd": chunk.kind,
        "available": chunk.available,
        "positions": [list(position) for position in chunk.positions],
    }


def added(chunk: Chunk) -> dict[str, Any]:
    """A chunk that was just added."""
    image = chunk.extra.get("image_id")
    return {
        "id": chunk.id,
        "content": chunk.content,
        "document_id": chunk.document_id,
        "dataset_id": chunk.dataset_id,
        "important_keywords": list(chunk.keywords),
        "questions": list(chunk.questions),
        "tag_kwd": list(chunk.tags),
        "create_timestamp": chunk.created_at,
        "create_time": clock_time(chunk.created_at),
        "doc_type_kwd": chunk.kind,
    } | ({"image_id": image} if image else {})


def raw(chunk: Chunk, document_name: str) -> dict[str, Any]:
    """A chunk with the names of the index's fields."""
    return {
        "id": chunk.id,
        "content_with_weight": chunk.content,
        "doc_id": chunk.document_id,
        "kb_id": chunk.dataset_id,
        "docnm_kwd": document_name,
        "important_kwd": list(chunk.keywords),
        "question_kwd": list(chunk.questions),
        "tag_kwd": list(chunk.tags),
        "tag_feas": chunk.extra.get("tag_feas", {}),
        "img_id": chunk.extra.get("image_id", ""),
        "doc_type_kwd": chunk.kind,
        "available_int": int(chunk.available),
        "position_int": [list(position) for position in chunk.positions],
        "page_num_int": [position[0] for position in chunk.positions],
        "top_int": [position[3] for position in chunk.positions],
        "chunk_order_int": chunk.position,
        "create_time": clock_time(chunk.created_at),
        "create_timestamp_flt": chunk.created_at,
    }


def clock_time(seconds: float) -> str:
    """`YYYY-MM-DD HH:MM:SS`, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
