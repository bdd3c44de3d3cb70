"""The blocking part of a retrieval, in one go: search the chunk store, fuse, and read the chunks that the answer needs.

It runs on a thread, or in a process of its own (`Finder`): a crossing costs as much as fusing, so there is one.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rag.nlp.fuse import Ranking, fuse
from rag.ports import ChunkStore
from rag.threads import Lane
from rag.types import Candidates, Chunk, SearchRequest


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to find. `trust`, `vector_weight`, `threshold` and `keep_vector_only` are those of `rag.nlp.fuse.fuse`.

    The list's entries from `start`, `size` at most, are the page. `best` > 0 asks for so many of the head of the list that
    has no threshold, too, for a reranker. `named` asks for the names of the documents.
    """

    search: SearchRequest
    trust: float
    vector_weight: float
    threshold: float
    keep_vector_only: bool
    start: int
    size: int
    best: int = 0
    named: bool = False


@dataclass(frozen=True, slots=True)
class Entries:
    """A piece of a ranked list: its candidates alone, their ranking in the list's order (`rows` counts from 0), and their chunks.

    `chunks[i]` belongs to candidate i; None for one that was deleted since it was found.
    """

    candidates: Candidates
    ranking: Ranking
    chunks: Sequence[Chunk | None]


@dataclass(frozen=True, slots=True)
class Found:
    """`total` and `counts` (entries by document id, descending, equal ones by id) are of the whole list, `candidates` is how many there
    were before the threshold. `names` maps document ids to names, where they were asked for.

    `seconds` maps a stage ("search", "fuse", "fetch") to how long it took. `degraded` is that of `Candidates`.
    """

    candidates: int
    total: int
    counts: dict[str, int]
    page: Entries
    best: Entries | None
    names: Mapping[str, str]
    degraded: tuple[str, ...]
    seconds: dict[str, float]


class Finder(Protocol):
    """Where `find` runs."""

    async def find(self, wanted: Wanted) -> Found:
        """As `find`. Raises `Overloaded` when too many wait."""
        ...


class LaneFinder:
    """Finds on the threads of a lane."""

    def __init__(self, store: ChunkStore, lane: Lane) -> None:
        self._store, self._lane = store, lane

    async def find(self, wanted: Wanted) -> Found:
        """As `Finder.find`."""
        return await self._lane.run(find, self._store, wanted)


def find(store: ChunkStore, wanted: Wanted) -> Found:
    """Raises `Unavailable` when the store cannot answer."""
    started = time.perf_counter()
    candidates = store.search(wanted.search)
    searched = time.perf_counter()
    ranking = _fused(candidates, wanted, wanted.threshold)
    page = _piece(candidates, ranking, slice(wanted.start, wanted.start + wanted.size))
    best = _piece(candidates, _fused(candidates, wanted, -np.inf), slice(wanted.best)) if wanted.best else None
    counts = counted(candidates, ranking)
    fused = time.perf_counter()
    first = _first_of_each(candidates, ranking) if wanted.named else []
    chunks = _chunks(store, wanted.search.tenant_id, (chunk_ids(page[0].ids), chunk_ids(best[0].ids) if best is not None else [], first))
    seconds = {"search": searched - started, "fuse": fused - searched, "fetch": time.perf_counter() - fused}
    names = {chunk.document_id: chunk.document_name for group in chunks[1:] for chunk in group if chunk is not None} if wanted.named else {}
    return Found(
        len(candidates.ids), len(ranking), counts, Entries(*page, chunks[0]), Entries(*best, chunks[1]) if best is not None else None,
        names, candidates.degraded, seconds,
    )  # fmt: skip


def counted(candidates: Candidates, ranking: Ranking) -> dict[str, int]:
    """How many of the ranked entries each document has, by descending number, equal ones by id."""
    counts = np.bincount(candidates.document_of[ranking.rows], minlength=len(candidates.documents)).tolist()
    ordered = sorted([(-count, document) for count, document in zip(counts, candidates.documents, strict=True) if count])
    return {document: -negative for negative, document in ordered}


def _fused(candidates: Candidates, wanted: Wanted, threshold: float) -> Ranking:
    return fuse(
        candidates, vector_weight=wanted.vector_weight, trust=wanted.trust, threshold=threshold, keep_vector_only=wanted.keep_vector_only
    )


def _piece(candidates: Candidates, ranking: Ranking, part: slice) -> tuple[Candidates, Ranking]:
    """That part of the list, with nothing of the candidates that are not in it."""
    rows = ranking.rows[part]
    documents, document_of = np.unique(candidates.document_of[rows], return_inverse=True)
    taken = Candidates(
        candidates.ids[rows],
        [candidates.documents[place] for place in documents.tolist()],
        document_of.astype(np.int32),
        candidates.text_scores[rows],
        candidates.vector_scores[rows],
        candidates.text_ranks[rows],
        candidates.vector_ranks[rows],
        candidates.degraded,
    )
    return taken, Ranking(np.arange(len(rows)), ranking.similarity[part], ranking.term[part], ranking.vector[part])


def _first_of_each(candidates: Candidates, ranking: Ranking) -> list[str]:
    """The id of one chunk of each document."""
    _, first = np.unique(candidates.document_of[ranking.rows], return_index=True)
    return chunk_ids(candidates.ids[ranking.rows[first]])


def _chunks(store: ChunkStore, tenant_id: str, groups: Sequence[list[str]]) -> list[list[Chunk | None]]:
    """The chunks of each group of ids, read once though they may be in several."""
    ids = list(dict.fromkeys(chunk_id for group in groups for chunk_id in group))
    found = dict(zip(ids, store.get(tenant_id, ids), strict=True)) if ids else {}
    return [[found[chunk_id] for chunk_id in group] for group in groups]


def chunk_ids(numbers: np.ndarray) -> list[str]:
    """The ids of `Candidates.ids` as chunks have them."""
    return [f"{number:016x}" for number in numbers.tolist()]
