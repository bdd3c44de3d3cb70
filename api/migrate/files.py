"""Uploaded files from one blob store to another, and a comparison of both, byte by byte."""

from collections.abc import Callable, Iterator
from functools import partial

from api.migrate.patience import patiently
from api.migrate.pipeline import in_order
from rag.errors import Damaged, MillraceError, NotFound
from rag.ports import BlobStore
from rag.store.blob_sum import Sum

AT_ONCE = 4
_PIECE_BYTES = 1 << 20

Documents = Iterator[tuple[str, str]]
"""(document id, key of its file), by rising id."""


def copy(source: BlobStore, target: BlobStore, documents: Documents, copied: Callable[[str], None]) -> None:
    """Copy each document's file. `copied(document_id)` is told in order, of what is durable. What the source has lost is left out."""
    in_order(documents, lambda document: _copy_one(source, target, document[1]), lambda document: copied(document[0]), threads=AT_ONCE)


def _copy_one(source: BlobStore, target: BlobStore, key: str) -> None:
    try:
        with source.open(key) as file:
            target.put(key, file)
    except (NotFound, Damaged):
        return  # the comparison names it


def compare(source: BlobStore, target: BlobStore, documents: Documents, seen: Callable[[], None]) -> tuple[int, list[str]]:
    """How many files are the same in both, and the documents whose file the source has lost.

    Raises `MillraceError` for a file that is another one in the target.
    """
    same, lost = 0, []
    for document_id, key in documents:
        try:
            own = patiently(partial(_sum_of, source, key))
        except (NotFound, Damaged):
            lost.append(document_id)
        else:
            if _sum_or_none(target, key) != own:
                raise MillraceError(f"the file of document {document_id} is not the same in both places")
            same += 1
        seen()
    return same, lost


def _sum_or_none(blobs: BlobStore, key: str) -> tuple[int, bytes] | None:
    try:
        return patiently(partial(_sum_of, blobs, key))
    except (NotFound, Damaged):
        return None


def _sum_of(blobs: BlobStore, key: str) -> tuple[int, bytes]:
    total = Sum()
    with blobs.open(key) as file:
        while piece := file.read(_PIECE_BYTES):
            total.add(piece)
    return total.size, total.digest
