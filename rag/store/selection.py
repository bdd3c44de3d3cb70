"""Chunk selectors: as SQL over the record's tables, and as a test of a chunk."""

# ruff: noqa: S608 - the statements are pieced together from constants of this module; every value is bound

from collections.abc import Callable, Sequence

import orjson

from rag.errors import InvalidArgument
from rag.store.rows import stored_id
from rag.types import Chunk, ChunkSelector

EMPTY_SELECTOR = "a chunk selector needs at least one condition"
IN = "IN (SELECT value FROM json_each(?))"
"""Follows a column; its parameter is `json_list` of the values."""


def json_list(values: Sequence[int] | Sequence[str]) -> str:
    """The values as the parameter of `IN`."""
    return orjson.dumps(values).decode()


def oldest_version(selector: ChunkSelector) -> int:
    """Where the versions begin that a selector with `versions_below` selects: chunks added by hand have the document's, negated."""
    return 1 - (selector.versions_below or 0) if selector.with_added else 1


def where(selector: ChunkSelector) -> str:
    """The clause that selects from the table `chunks`, to be run with `values_of`. Raises `InvalidArgument` for a selector of all."""
    conditions = []
    if selector.dataset_ids is not None:
        conditions.append(f"dataset IN (SELECT number FROM datasets WHERE id {IN})")
    if selector.document_ids is not None:
        conditions.append(f"document IN (SELECT number FROM documents WHERE id {IN})")
    if selector.chunk_ids is not None:
        conditions.append(f"id {IN}")
    if selector.versions_below is not None:
        conditions.append(f"version >= {oldest_version(selector)} AND version < ?")
    if not conditions:
        raise InvalidArgument(EMPTY_SELECTOR)
    return " WHERE " + " AND ".join(conditions)


def values_of(selector: ChunkSelector) -> list[str | int]:
    """The parameters of `where`."""
    values: list[str | int] = [json_list(ids) for ids in (selector.dataset_ids, selector.document_ids) if ids is not None]
    if selector.chunk_ids is not None:
        values.append(json_list([stored_id(id_) for id_ in selector.chunk_ids]))
    if selector.versions_below is not None:
        values.append(selector.versions_below)
    return values


def matcher(selector: ChunkSelector) -> Callable[[Chunk], bool]:
    """Tells of a chunk whether it is selected. Raises `InvalidArgument` for a selector of all."""
    datasets, documents, chunks = (
        None if ids is None else frozenset(ids) for ids in (selector.dataset_ids, selector.document_ids, selector.chunk_ids)
    )
    if datasets is documents is chunks is selector.versions_below is None:
        raise InvalidArgument(EMPTY_SELECTOR)
    oldest = oldest_version(selector)

    def selects(chunk: Chunk) -> bool:
        return (
            (datasets is None or chunk.dataset_id in datasets)
            and (documents is None or chunk.document_id in documents)
            and (chunks is None or chunk.id in chunks)
            and (selector.versions_below is None or oldest <= chunk.version < selector.versions_below)
        )

    return selects
