"""Chunks on the wire."""

from typing import Any

from pydantic import Field

from api.schema.base import Answer, Tolerant
from api.schema.document import Document


class ChunkAdd(Tolerant):
    """A chunk written by hand."""

    content: str
    important_keywords: list[str] = Field([])
    questions: list[str] = Field([])
    tag_kwd: list[str] = Field([])
    tag_feas: dict[str, float] = Field({})
    image_base64: str | None = None


class ChunkEdit(Tolerant):
    """Changes to a chunk; what is absent stays."""

    content: str | None = None
    important_keywords: list[str] | None = None
    questions: list[str] | None = None
    available: bool | None = None
    positions: list[list[int]] | None = None
    tag_kwd: list[str] | None = None
    tag_feas: dict[str, float] | None = None
    image_base64: str | None = None


class ChunkSwitch(Tolerant):
    """Chunks to switch on or off."""

    chunk_ids: list[str]
    available_int: int | None = None
    available: bool | None = None


class ChunkDelete(Tolerant):
    """Chunks to delete."""

    chunk_ids: list[str] = Field([])
    delete_all: bool = False


class ChunkList(Tolerant):
    """Which chunks to list."""

    keywords: str = Field("", description="full-text terms; content comes with <em>")
    page: int = 1
    page_size: int = 30
    id: str = ""
    chunk_ids: list[str] = Field([])
    available: bool | None = None


class ChunkItem(Answer):
    """A chunk in a list."""

    id: str
    content: str
    document_id: str
    docnm_kwd: str
    dataset_id: str
    important_keywords: list[str]
    questions: list[str]
    tag_kwd: list[str]
    image_id: str
    doc_type_kwd: str
    available: bool
    positions: list[list[int]]


class ChunkPage(Answer):
    """A page of a document's chunks."""

    total: int
    chunks: list[ChunkItem]
    doc: Document


class AddedChunk(Answer):
    """A chunk that was just added."""

    id: str
    content: str
    document_id: str
    dataset_id: str
    important_keywords: list[str]
    questions: list[str]
    tag_kwd: list[str]
    create_timestamp: float
    create_time: str
    image_id: str | None = None
    doc_type_kwd: str


class Added(Answer):
    """The answer to adding a chunk."""

    chunk: AddedChunk


class RawChunk(Answer):
    """A chunk with the names of the index's fields."""

    id: str
    content_with_weight: str
    doc_id: str
    kb_id: str
    docnm_kwd: str
    important_kwd: list[str]
    question_kwd: list[str]
    tag_kwd: list[str]
    tag_feas: dict[str, Any]
    img_id: str
    doc_type_kwd: str
    available_int: int
    position_int: list[list[int]]
    page_num_int: list[int]
    top_int: list[int]
    chunk_order_int: int
    create_time: str
    create_timestamp_flt: float


class ChunksDeleted(Answer):
    """How many chunks were deleted, where some were named twice."""

    success_count: int
    errors: list[str]
