"""How a chunk is laid out in a row of the record: ids as integers that sort like their hex form, the rest as JSON."""

import re
from collections.abc import Sequence
from typing import Any

import orjson

from rag.errors import InvalidArgument
from rag.types import ID_PATTERN, Chunk, ChunkTerms

# What text indexes keep for a field without terms. Engines count a field's average length over all chunks, or over those that
# have the field; with a term in each the two are one, and so are the scores of all stores. No analysed term holds this character.
ABSENT = "\x00\x00"
_ID = re.compile(r"[0-9a-f]{16}")
_TENANT_ID = re.compile(ID_PATTERN)
_HALF = 1 << 63


def check_tenant_id(tenant_id: str) -> None:
    """A tenant id becomes the name of a folder, or of an index. Raises `InvalidArgument`."""
    if not _TENANT_ID.fullmatch(tenant_id):
        raise InvalidArgument("a tenant id must be 32 lower-case hex digits")


def stored_id(chunk_id: str) -> int:
    """A chunk id as a signed 64-bit integer with the order of the hex digits. Raises `InvalidArgument`."""
    if not _ID.fullmatch(chunk_id):
        raise InvalidArgument("a chunk id must be 16 lower-case hex digits")
    return int(chunk_id, 16) - _HALF


def hex_id(stored: int) -> str:
    """The inverse of `stored_id`."""
    return f"{stored + _HALF:016x}"


def indexed_text(terms: str) -> str:
    """A field's terms as text indexes keep them."""
    return terms or ABSENT


def body_of(chunk: Chunk) -> tuple[str, str, str, str, bytes]:
    """The columns title, content, keywords, questions (terms) and body (JSON) of a chunk.

    Raises `InvalidArgument` for what is not valid Unicode or not JSON.
    """
    fields = {
        "document_name": chunk.document_name,
        "content": chunk.content,
        "headings": chunk.headings,
        "keywords": chunk.keywords,
        "questions": chunk.questions,
        "tags": chunk.tags,
        "positions": chunk.positions,
        "kind": chunk.kind,
        "extra": dict(chunk.extra),
    }
    terms = (chunk.terms.title, chunk.terms.content, chunk.terms.keywords, chunk.terms.questions)
    try:
        for text in (*terms, chunk.dataset_id, chunk.document_id):
            text.encode()
        return (*terms, orjson.dumps(fields))
    except (TypeError, ValueError) as exc:
        raise InvalidArgument(f"chunk {chunk.id} holds text that is not valid unicode or extra data that is not json") from exc


def chunk_of(row: Sequence[Any]) -> Chunk:
    """The chunk of id, dataset id, document id, version, position, created_at, available, then the columns of `body_of`, parsed."""
    fields = row[11]
    return Chunk(
        id=hex_id(row[0]),
        dataset_id=row[1],
        document_id=row[2],
        document_name=fields["document_name"],
        content=fields["content"],
        terms=ChunkTerms(*row[7:11]),
        version=row[3],
        position=row[4],
        headings=tuple(fields["headings"]),
        keywords=tuple(fields["keywords"]),
        questions=tuple(fields["questions"]),
        tags=tuple(fields["tags"]),
        positions=tuple(tuple(position) for position in fields["positions"]),
        kind=fields["kind"],
        available=bool(row[6]),
        created_at=row[5],
        extra=fields["extra"],
    )
