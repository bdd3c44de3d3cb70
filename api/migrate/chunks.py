"""Chunks from one store to another, with their vectors as they are; and a comparison of both, chunk by chunk."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice

import orjson

from api.migrate.patience import patiently
from api.migrate.pipeline import in_order
from rag.errors import MillraceError
from rag.ports import ChunkStore
from rag.store.rows import body_of
from rag.types import ChunkSelector, StoredChunk

PAGE_CHUNKS = 500
LOADERS = 3
ROUNDS = 3  # of comparing and mending
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Contents:
    """How many chunks, and a digest of them that does not depend on their order."""

    chunks: int = 0
    digest: int = 0

    def __add__(self, other: "Contents") -> "Contents":
        return Contents(self.chunks + other.chunks, (self.digest + other.digest) % (1 << 8 * _DIGEST_BYTES))


def copy(
    source: ChunkStore, target: ChunkStore, tenant_id: str, after: str, copied: Callable[[str, int], None], *, page: int = PAGE_CHUNKS
) -> None:  # fmt: skip
    """Load the tenant's chunks with ids above `after` into the target.

    `copied(chunk_id, count)` is told in order: everything up to this id is durable in the target, so many more than before.
    Reading and writing go on at the same time, a bounded number of pages between them.
    """
    waiting = pages(source, tenant_id, after, page)
    for some in (islice(waiting, 1), waiting):  # the first page by itself: it makes the tenant's index
        in_order(some, partial(target.load, tenant_id), lambda items: copied(items[-1].chunk.id, len(items)), threads=LOADERS)


def pages(store: ChunkStore, tenant_id: str, after: str = "", size: int = PAGE_CHUNKS) -> Iterator[Sequence[StoredChunk]]:
    """As the store's `scan`, begun again behind the last page when the store did not answer for a while."""
    scan: Iterator[Sequence[StoredChunk]] | None = None

    def following() -> Sequence[StoredChunk] | None:
        nonlocal scan
        if scan is None:
            scan = iter(store.scan(tenant_id, after=after, size=size))
        try:
            return next(scan, None)
        except MillraceError:
            scan = None
            raise

    while items := patiently(following):
        after = items[-1].chunk.id
        yield items


def compare(source: ChunkStore, target: ChunkStore, tenant_id: str, seen: Callable[[int], None] = lambda _: None) -> Contents:
    """What both stores hold of the tenant. Differences are mended: what changed in the source while it was copied, without being
    acknowledged, or what a copy that was killed left.

    Raises `MillraceError` where they do not come to agree.
    """
    for _ in range(ROUNDS):
        patiently(partial(target.flush, tenant_id))
        contents, agree = _compare_once(source, target, tenant_id, seen)
        if agree:
            return contents
    raise MillraceError(f"the chunks of tenant {tenant_id} are not the same in both stores, after {ROUNDS} attempts to mend them")


def _compare_once(source: ChunkStore, target: ChunkStore, tenant_id: str, seen: Callable[[int], None]) -> tuple[Contents, bool]:
    contents, agree = Contents(), True
    missing: list[StoredChunk] = []
    extra: list[str] = []

    def mend() -> None:
        nonlocal agree
        if missing or extra:
            agree = False
        if missing:
            patiently(partial(target.load, tenant_id, list(missing)))
            missing.clear()
        if extra:
            patiently(partial(target.delete, tenant_id, ChunkSelector(chunk_ids=tuple(extra))))
            extra.clear()

    theirs = (item for page in pages(target, tenant_id) for item in page)
    their = next(theirs, None)
    for page in pages(source, tenant_id):
        for item in page:
            while their is not None and their.chunk.id < item.chunk.id:
                extra.append(their.chunk.id)
                their = next(theirs, None)
            own = fingerprint(item)
            contents += Contents(1, int.from_bytes(own, "big"))
            if their is None or their.chunk.id != item.chunk.id:
                missing.append(item)
                continue
            if fingerprint(their) != own:
                missing.append(item)
            their = next(theirs, None)
        seen(len(page))
        if len(missing) >= PAGE_CHUNKS or len(extra) >= PAGE_CHUNKS:
            mend()
    while their is not None:
        extra.append(their.chunk.id)
        their = next(theirs, None)
    mend()
    return contents, agree


def fingerprint(stored: StoredChunk) -> bytes:
    """16 bytes of everything that is stored of a chunk: its fields, terms, space and the vector's bits."""
    chunk = stored.chunk
    places = (chunk.id, chunk.dataset_id, chunk.document_id, chunk.version, chunk.position, float(chunk.created_at), chunk.available)
    *terms, body = body_of(chunk)
    digest = blake2b(orjson.dumps((*places, *terms, stored.space)), digest_size=_DIGEST_BYTES)
    digest.update(body)
    if stored.vector is not None:
        digest.update(stored.vector.tobytes())
    return digest.digest()
