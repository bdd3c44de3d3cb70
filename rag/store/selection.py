"""Chunk selectors as SQL over the record's tables."""

# ruff: noqa: S608 - the statements are pieced together from constants of this module; every value is bound

from collections.abc import Sequence

import orjson

from rag.errors import InvalidArgument
from rag.store.rows import stored_id
from rag.types import ChunkSelector

IN = "IN (SELECT value FROM json_each(?))"
"""Follows a column; its parameter is `json_list` of the values."""


def json_list(values: Sequence[int] | Sequence[str]) -> str:
    """The values as the parameter of `IN`."""
    return orjson.dumps(values).decode()


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
        conditions.append("version >= 1 AND version < ?")
    if not conditions:
        raise InvalidArgument("a chunk selector needs at least one condition")
    return " WHERE " + " AND ".join(conditions)


def values_of(selector: ChunkSelector) -> list[str | int]:
    """The parameters of `where`."""
    values: list[str | int] = [json_list(ids) for ids in (selector.dataset_ids, selector.document_ids) if ids is not None]
    if selector.chunk_ids is not None:
        values.append(json_list([stored_id(id_) for id_ in selector.chunk_ids]))
    if selector.versions_below is not None:
        values.append(selector.versions_below)
    return values
