"""One search over a tenant: both arms, then the scores that each arm lacks for the other's hits."""

from collections.abc import Callable, Iterable

import numkong
import numpy as np

from rag.store.catalogue import Slots, View
from rag.store.text import TextSearcher, terms_query, within
from rag.types import Candidates, SearchRequest

Matrix = Callable[[Slots], np.ndarray | None]
_SCATTERED = 4  # gather the wanted vectors when fewer than one slot in this many is wanted


class Selection:
    """The rows a request may see."""

    def __init__(self, view: View, request: SearchRequest) -> None:
        self.view = view
        self.datasets = {view.datasets[id_] for id_ in request.dataset_ids if id_ in view.datasets}
        self.documents: list[int] | None = None
        self._wanted_documents: np.ndarray | None = None
        if request.document_ids is not None:
            # The mapping is shared by all views and may know newer documents than this view's arrays.
            numbers = (view.documents.get(id_, 0) for id_ in request.document_ids)
            self.documents = [number for number in numbers if 0 < number <= view.documents_known]
            self._wanted_documents = np.zeros(view.documents_known + 1, bool)
            self._wanted_documents[self.documents] = True
        self.available = request.available
        self._wanted_datasets = np.zeros(max(view.datasets.values(), default=0) + 1, bool)
        self._wanted_datasets[list(self.datasets)] = True

    @property
    def empty(self) -> bool:
        """Nothing can be found."""
        return not self.datasets or self.documents == [] or self.view.living == 0

    def text_filters(self) -> dict[str, list[int]]:
        """Filters for the text index; those that would keep everything are left out, as they cost time."""
        filters = {}
        if len(self.datasets) < len(self.view.datasets):
            filters["dataset"] = list(self.datasets)
        if self.documents is not None:
            filters["document"] = self.documents
        if self.available is False or (self.available and self.view.switched_off):
            filters["available"] = [int(self.available)]
        return filters

    def allows(self, rows: np.ndarray) -> np.ndarray:
        """Which of these rows may be found: bool, as long as `rows`."""
        table = self.view.rows
        allowed = table.alive[rows] & self._wanted_datasets[table.dataset[rows]]
        if self.available is not None:
            allowed &= table.available[rows] == self.available
        if self._wanted_documents is not None:
            allowed &= self._wanted_documents[table.document[rows]]
        return allowed


def search(request: SearchRequest, view: View, text: TextSearcher | None, matrix: Matrix) -> Candidates:
    """The union of both arms' best. `matrix` gives a part's vectors, or None when they are damaged. `text` None: no text index.

    The caller fills `degraded`. Raises `Corrupt` when the text index fails.
    """
    selection = Selection(view, request)
    nothing = np.empty(0, np.int64), np.empty(0, np.float32)
    text_rows, text_scores = nothing
    vector_rows = nothing[0]
    query = terms_query(request.terms, request.field_boosts) if request.terms and text is not None else None
    exhausted = True
    if not selection.empty:
        if query is not None and request.text_k > 0:
            text_rows, text_scores, exhausted = _text_arm(query, selection, text, request.text_k)
        elif query is not None:
            exhausted = False
        if request.vector is not None and request.vector_k > 0:
            vector_rows, _ = _vector_arm(request, selection, matrix)
    rows = np.union1d(text_rows, vector_rows)
    cosines = np.full(len(rows), np.nan, np.float32)
    if request.vector is not None:
        cosines = cosines_of(request.vector, request.space, rows, view, matrix)
    bm25 = np.zeros(len(rows), np.float32)
    bm25[np.searchsorted(rows, text_rows)] = text_scores
    missing = np.setdiff1d(rows, text_rows, assume_unique=True)
    if query is not None and not exhausted and len(missing):
        found, scores = _scored(query, missing, view, text)
        bm25[np.searchsorted(rows, found)] = scores
    ids = view.rows.id[rows]
    numbers, document_of = np.unique(view.rows.document[rows], return_inverse=True)
    return Candidates(
        ids=ids,
        documents=[view.document_names[number] for number in numbers.tolist()],
        document_of=document_of.astype(np.int32),
        text_scores=bm25,
        vector_scores=cosines,
        text_ranks=_ranks(rows, text_rows, bm25, ids),
        vector_ranks=_ranks(rows, vector_rows, cosines, ids),
    )


def _text_arm(query, selection: Selection, text: TextSearcher, k: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Rows and scores of the k best, and whether that is every match there is.

    The index may lag behind the record: hits that are gone or switched off there are dropped, and then more are fetched.
    """
    restricted = within(query, selection.text_filters())
    limit = k
    while True:
        rids, scores = text.search(restricted, limit)
        exhausted = len(rids) < limit
        rows, known = selection.view.rows.find_each(rids)
        known[known] = selection.allows(rows[known])
        if exhausted or np.count_nonzero(known) >= k:
            return rows[known][:k], scores[known][:k], exhausted and np.count_nonzero(known) <= k
        limit *= 2


def _scored(query, rows: np.ndarray, view: View, text: TextSearcher) -> tuple[np.ndarray, np.ndarray]:
    """BM25 of the given rows, those without any term left out."""
    rids, scores = text.search(within(query, {"rid": view.rows.rid[rows].tolist()}), len(rows))
    index, known = view.rows.find_each(rids)
    return index[known], scores[known]


def _vector_arm(request: SearchRequest, selection: Selection, matrix: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Rows and rough cosines of the k nearest, by exact scan. Parts are read one after another with a rising floor."""
    rows, scores = np.empty(0, np.int64), np.empty(0, np.float32)
    narrow = request.vector.astype(np.float16)
    k = request.vector_k
    for slots in _parts(selection, request.space):
        if slots.part.dimension != len(narrow) or (vectors := matrix(slots)) is None:
            continue
        floor = scores.min() if len(scores) == k else -np.inf
        found, near = _scan(vectors, slots.rows[: slots.part.slots], narrow, selection, floor)
        rows, scores = _best(np.concatenate([rows, found]), np.concatenate([scores, near]), k)
    return rows, scores


def _parts(selection: Selection, space: str) -> Iterable[Slots]:
    return [
        slots
        for _, slots in sorted(selection.view.slots.items())
        if slots.live and slots.part.space == space and slots.part.dataset in selection.datasets
    ]


def _scan(vectors: np.ndarray, table: np.ndarray, query: np.ndarray, selection: Selection, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows and rough cosines of a part's wanted slots above the floor. A deletion may empty slots of the table at any moment."""
    used = table >= 0
    wanted = used & selection.allows(np.where(used, table, 0))
    count = np.count_nonzero(wanted)
    if count * _SCATTERED < len(table):
        places = np.flatnonzero(wanted)
        scores = _dots(query, vectors[places])
        near = np.flatnonzero(scores > floor)
        rows = table[places[near]]
    else:
        scores = _dots(query, vectors)
        near = np.flatnonzero((scores > floor) & wanted)
        rows = table[near]
    still = rows >= 0
    return rows[still].astype(np.int64), scores[near][still]


def _dots(query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    if not len(vectors):
        return np.empty(0, np.float32)
    return np.asarray(numkong.dot(query, vectors, out_dtype="float32")).reshape(-1)


def _best(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    if len(rows) <= k:
        return rows, scores
    best = np.argpartition(scores, -k)[-k:]
    return rows[best], scores[best]


def cosines_of(vector: np.ndarray, space: str, rows: np.ndarray, view: View, matrix: Matrix) -> np.ndarray:
    """Cosines float32 of the rows with the unit vector, NaN for a row without a vector in the space."""
    result = np.full(len(rows), np.nan, np.float32)
    narrow = vector.astype(np.float16)
    parts = view.rows.part[rows]
    for number in np.unique(parts).tolist():
        slots = view.slots.get(number)
        if slots is None or slots.part.space != space or slots.part.dimension != len(vector) or (vectors := matrix(slots)) is None:
            continue
        members = np.flatnonzero(parts == number)
        result[members] = np.clip(_dots(narrow, vectors[view.rows.slot[rows[members]]]), -1.0, 1.0)
    return result


def _ranks(rows: np.ndarray, hits: np.ndarray, scores: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Place of each row within an arm's hits, by score descending, then id; -1 for the others. int32."""
    ranks = np.full(len(rows), -1, np.int32)
    places = np.searchsorted(rows, hits)
    ordered = places[np.lexsort((ids[places], -scores[places]))]
    ranks[ordered] = np.arange(len(ordered))
    return ranks
