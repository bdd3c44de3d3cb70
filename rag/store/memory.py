"""The chunk store in memory: a stub of the same port for tests and trials, with exact BM25 (Lucene's formula) and exact cosines."""

import builtins
import math
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rag.errors import InvalidArgument
from rag.store.rows import body_of, indexed_text, stored_id
from rag.store.selection import matcher
from rag.store.vectors import checked_units
from rag.types import Candidates, Chunk, ChunkSelector, SearchRequest, StoredChunk

_FIELDS = ("title", "content", "keywords", "questions")
_K1, _B = 1.2, 0.75


@dataclass(slots=True)
class _Entry:
    chunk: Chunk
    space: str = ""
    vector: np.ndarray | None = None
    counts: dict[str, Counter[str]] = field(default_factory=dict)


class MemoryStore:
    """A `ChunkStore` that forgets everything when the process ends. Thread-safe; searches take time linear in the chunks."""

    def __init__(self) -> None:
        self._tenants: dict[str, dict[str, _Entry]] = {}
        self._lock = threading.RLock()

    def put(self, tenant_id: str, chunks: Sequence[Chunk], vectors: np.ndarray | None, space: str, *, wait: bool = True) -> None:
        """As `rag.ports.ChunkStore.put`."""
        units = None if vectors is None else checked_units(vectors, len(chunks)).astype(np.float32)
        for chunk in chunks:
            stored_id(chunk.id)
            body_of(chunk)
        with self._lock:
            entries = self._tenants.setdefault(tenant_id, {})
            if units is not None:
                _check_dimension(entries, space, units.shape[1])
            for index, chunk in enumerate(chunks):
                old = entries.get(chunk.id)
                entry = _Entry(chunk, counts={name: Counter(indexed_text(getattr(chunk.terms, name)).split()) for name in _FIELDS})
                if units is not None:
                    entry.space, entry.vector = space, None if np.isnan(units[index]).any() else units[index]
                elif old is not None:
                    entry.space, entry.vector = old.space, old.vector
                entries[chunk.id] = entry

    def replace(
        self, tenant_id: str, before: Sequence[Chunk], after: Sequence[Chunk], vectors: np.ndarray | None, space: str, *, wait: bool = True
    ) -> builtins.list[bool]:  # fmt: skip
        """As `rag.ports.ChunkStore.replace`."""
        if [chunk.id for chunk in before] != [chunk.id for chunk in after]:
            raise InvalidArgument("a chunk is replaced by one of another id")
        with self._lock:
            same = [stored == chunk for stored, chunk in zip(self.get(tenant_id, [chunk.id for chunk in before]), before, strict=True)]
            rows = [index for index, unchanged in enumerate(same) if unchanged]
            self.put(tenant_id, [after[index] for index in rows], None if vectors is None else vectors[rows], space)
            return same

    def delete(self, tenant_id: str, selector: ChunkSelector) -> int:
        """As `rag.ports.ChunkStore.delete`."""
        return len(self.take(tenant_id, selector))

    def take(self, tenant_id: str, selector: ChunkSelector) -> builtins.list[Chunk]:
        """As `rag.ports.ChunkStore.take`."""
        with self._lock:
            found = self._selected(tenant_id, selector)
            for entry in found:
                del self._tenants[tenant_id][entry.chunk.id]
            return [entry.chunk for entry in found]

    def set_available(self, tenant_id: str, selector: ChunkSelector, available: bool, *, wait: bool = True) -> int:
        """As `rag.ports.ChunkStore.set_available`."""
        with self._lock:
            found = self._selected(tenant_id, selector)
            for entry in found:
                entry.chunk = replace(entry.chunk, available=available)
            return len(found)

    def flush(self, tenant_id: str) -> None:
        """As `rag.ports.ChunkStore.flush`: nothing is ever pending."""

    def search(self, request: SearchRequest) -> Candidates:
        """As `rag.ports.ChunkStore.search`."""
        with self._lock:
            entries = list(self._tenants.get(request.tenant_id, {}).values())
            bm25 = _bm25(entries, request)
        cosines = np.array([_cosine(entry, request) for entry in entries], np.float32)
        ids = np.array([int(entry.chunk.id, 16) for entry in entries], np.uint64)
        allowed = np.array([_allows(request, entry.chunk) for entry in entries], bool)
        by_text = _best(np.flatnonzero(allowed & (bm25 > 0)), bm25, ids, request.text_k)
        by_vector = _best(np.flatnonzero(allowed & ~np.isnan(cosines)), cosines, ids, request.vector_k)
        union = np.union1d(by_text, by_vector)
        documents = [entries[index].chunk.document_id for index in union]
        names = sorted(set(documents))
        return Candidates(
            ids=ids[union],
            documents=names,
            document_of=np.array([names.index(name) for name in documents], np.int32),
            text_scores=bm25[union],
            vector_scores=cosines[union],
            text_ranks=_ranks(union, by_text),
            vector_ranks=_ranks(union, by_vector),
        )

    def get(self, tenant_id: str, chunk_ids: Sequence[str]) -> list[Chunk | None]:
        """As `rag.ports.ChunkStore.get`."""
        with self._lock:
            entries = self._tenants.get(tenant_id, {})
            return [entries[chunk_id].chunk if chunk_id in entries else None for chunk_id in chunk_ids]

    def vectors(self, tenant_id: str, chunk_ids: Sequence[str], space: str) -> np.ndarray:
        """As `rag.ports.ChunkStore.vectors`."""
        with self._lock:
            entries = self._tenants.get(tenant_id, {})
            held = (entry.vector for entry in entries.values() if entry.space == space and entry.vector is not None)
            dimension = len(next(held, ()))
            result = np.full((len(chunk_ids), dimension), np.nan, np.float32)
            for row, chunk_id in enumerate(chunk_ids):
                entry = entries.get(chunk_id)
                if entry is not None and entry.space == space and entry.vector is not None:
                    result[row] = entry.vector / np.linalg.norm(entry.vector)
            return result

    def list(
        self, tenant_id: str, document_id: str, *, chunk_ids: Sequence[str] | None = None, available: bool | None = None,
        offset: int = 0, limit: int = 30,
    ) -> tuple[int, builtins.list[Chunk]]:  # fmt: skip
        """As `rag.ports.ChunkStore.list`."""
        with self._lock:
            found = self._selected(tenant_id, ChunkSelector(document_ids=(document_id,), chunk_ids=_tuple(chunk_ids)))
            chunks = [entry.chunk for entry in found if available is None or entry.chunk.available == available]
        chunks.sort(key=lambda chunk: (chunk.position, -chunk.created_at, chunk.id))
        return len(chunks), chunks[offset : offset + limit]

    def count(self, tenant_id: str, selector: ChunkSelector) -> int:
        """As `rag.ports.ChunkStore.count`."""
        with self._lock:
            return len(self._selected(tenant_id, selector))

    def scan(self, tenant_id: str, *, after: str = "", size: int = 500) -> Iterator[builtins.list[StoredChunk]]:
        """As `rag.ports.ChunkStore.scan`."""
        with self._lock:
            entries = [entry for chunk_id, entry in sorted(self._tenants.get(tenant_id, {}).items()) if chunk_id > after]
        for start in range(0, len(entries), size):
            yield [
                StoredChunk(entry.chunk) if entry.vector is None else StoredChunk(entry.chunk, entry.space, entry.vector.astype(np.float16))
                for entry in entries[start : start + size]
            ]

    def load(self, tenant_id: str, stored: Sequence[StoredChunk]) -> None:
        """As `rag.ports.ChunkStore.load`."""
        with self._lock:
            self.put(tenant_id, [item.chunk for item in stored], None, "")
            for item in stored:
                entry = self._tenants[tenant_id][item.chunk.id]
                entry.space, entry.vector = item.space, None if item.vector is None else item.vector.astype(np.float32)

    def drop_tenant(self, tenant_id: str) -> None:
        """As `rag.ports.ChunkStore.drop_tenant`."""
        with self._lock:
            self._tenants.pop(tenant_id, None)

    def health(self) -> dict[str, str]:
        """As `rag.ports.ChunkStore.health`."""
        return {"type": "memory", "status": "green"}

    def close(self) -> None:
        """As `rag.ports.ChunkStore.close`."""

    def _selected(self, tenant_id: str, selector: ChunkSelector) -> builtins.list[_Entry]:
        selects = matcher(selector)
        for chunk_id in selector.chunk_ids or ():
            stored_id(chunk_id)
        return [entry for entry in self._tenants.get(tenant_id, {}).values() if selects(entry.chunk)]


def _tuple(ids: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if ids is None else tuple(ids)


def _check_dimension(entries: dict[str, _Entry], space: str, dimension: int) -> None:
    for entry in entries.values():
        if entry.space == space and entry.vector is not None and len(entry.vector) != dimension:
            raise InvalidArgument(f"vectors have {dimension} dimensions, those of their embedding space have {len(entry.vector)}")


def _allows(request: SearchRequest, chunk: Chunk) -> bool:
    return (
        chunk.dataset_id in request.dataset_ids
        and (request.document_ids is None or chunk.document_id in request.document_ids)
        and (request.available is None or chunk.available == request.available)
    )


def _cosine(entry: _Entry, request: SearchRequest) -> float:
    if request.vector is None or entry.vector is None or entry.space != request.space or len(entry.vector) != len(request.vector):
        return math.nan
    return float(np.clip(entry.vector @ request.vector, -1.0, 1.0))


def _bm25(entries: Sequence[_Entry], request: SearchRequest) -> np.ndarray:
    """Okapi BM25 as in Lucene, with its one-byte lengths, summed over the fields. Statistics are the tenant's."""
    scores = np.zeros(len(entries), np.float32)
    for name in _FIELDS:
        boost = request.field_boosts.get(name, 0.0)
        lengths = [entry.counts[name].total() for entry in entries]
        if boost <= 0 or not any(lengths):
            continue
        average = sum(lengths) / len(entries)
        norms = np.array([_K1 * (1 - _B + _B * _coarse(length) / average) for length in lengths])
        for term in request.terms:
            counts = np.array([entry.counts[name][term.text] for entry in entries], float)
            hits = np.count_nonzero(counts)
            idf = math.log(1 + (len(entries) - hits + 0.5) / (hits + 0.5))
            scores += (boost * max(term.weight, 0.0) * idf * (_K1 + 1) * counts / (counts + norms)).astype(np.float32)
    return scores


def _coarse(length: int) -> int:
    """A length as Lucene keeps it in one byte: exact to 39, then the 4 leading bits (`SmallFloat.intToByte4` and back)."""
    rest = length - 24
    shift = max(0, rest.bit_length() - 4)
    return length if rest < 16 else 24 + (rest >> shift << shift)


def _best(indexes: np.ndarray, scores: np.ndarray, ids: np.ndarray, k: int) -> np.ndarray:
    return indexes[np.lexsort((ids[indexes], -scores[indexes]))][: max(k, 0)]


def _ranks(union: np.ndarray, hits: np.ndarray) -> np.ndarray:
    ranks = np.full(len(union), -1, np.int32)
    ranks[np.searchsorted(union, hits)] = np.arange(len(hits))
    return ranks
