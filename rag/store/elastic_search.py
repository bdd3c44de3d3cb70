"""One search in an Elasticsearch index: both arms in one request, and in a second one the scores that each lacks for the other's hits.

Hits carry sort values and nothing else: score, id, document. That is all a candidate needs, it gives equal scores the order of
their ids, Elasticsearch reads no stored field for it, and such hits are decoded as a table (`elastic_cbor.py`).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import orjson

from rag.errors import Unavailable
from rag.store.elastic import Cluster, error_type, failure
from rag.store.mapping import MOST_HITS, MOST_NEIGHBOURS, TERM_FIELDS, WORD_CHARACTERS, cosines, vector_field
from rag.types import Candidates, SearchRequest

_NO_IDS, _NO_RANKS, _NO_SCORES = np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)
NOTHING = Candidates(_NO_IDS.view(np.uint64), [], _NO_RANKS, _NO_SCORES, _NO_SCORES, _NO_RANKS, _NO_RANKS)
_SIGN = np.uint64(1 << 63)
_BY_SCORE = ({"_score": "desc"}, {"id": "asc"}, {"document": "asc"})
_BY_ID = ({"id": "asc"}, {"_score": "desc"})
_PATH = "/_msearch?filter_path=responses.hits.hits.sort,responses.status,responses.error.type,responses.error.root_cause.type"


class UnknownVectorField(Exception):
    """The index has no field for the space: it was dropped and perhaps made anew."""


@dataclass(frozen=True, slots=True)
class Hits:
    """An arm's hits: stored ids int64, scores float32, document ids in UTF-8. `all` tells that there are no others."""

    ids: np.ndarray = field(default_factory=lambda: _NO_IDS)
    scores: np.ndarray = field(default_factory=lambda: _NO_SCORES)
    documents: Sequence[bytes] = ()
    all: bool = False


def search(cluster: Cluster, index: str, request: SearchRequest, *, has_vectors: bool, exact: bool, sharded: bool) -> Candidates:
    """The union of both arms' best. `has_vectors`: the index has a field for the request's space, of the vector's dimension.

    `exact`: an arm with less neighbours than asked for has found all there are. `sharded`: statistics have to be gathered from
    several shards. An arm that fails alone is named in `degraded`. Raises `Unavailable` when both fail, `UnknownVectorField`.
    """
    filters = _filters(request)
    clauses = _clauses(request)
    vector = None
    if has_vectors and request.vector is not None:
        vector = _once(request.vector.astype(np.float16).astype(np.float32))  # rounded as the stored ones are
    text_k, vector_k = min(request.text_k, MOST_HITS), min(request.vector_k, MOST_NEIGHBOURS)
    bodies = {}
    if clauses is not None and text_k > 0:
        bodies["text"] = {"query": _text(clauses, filters), "size": text_k, "sort": _BY_SCORE}
    if vector is not None and vector_k > 0:
        bodies["vector"] = {"knn": _near(request.space, vector, filters, vector_k), "size": vector_k, "sort": _BY_SCORE}
    found, degraded = _ask(cluster, index, bodies, sharded)
    text, near = found.get("text", Hits()), found.get("vector", Hits())
    near_scores = cosines(near.scores)

    ids, places = np.unique(np.concatenate([text.ids, near.ids]), return_inverse=True)
    text_places, near_places = places[: len(text.ids)], places[len(text.ids) :]
    bm25, cosine = np.zeros(len(ids), np.float32), np.full(len(ids), np.nan, np.float32)
    bm25[text_places], cosine[near_places] = text.scores, near_scores

    bodies = {}
    lacking = _without(ids, text_places)
    if clauses is not None and len(lacking) and not text.all and "text" not in degraded:
        bodies["text"] = {"query": _text(clauses, [_among(lacking)]), "size": len(lacking), "sort": _BY_ID}
    lacking = _without(ids, near_places)
    if vector is not None and len(lacking) and not (near.all and exact) and "vector" not in degraded:
        for start in range(0, len(lacking), MOST_NEIGHBOURS):
            part = lacking[start : start + MOST_NEIGHBOURS]
            bodies[f"vector {start}"] = {
                "knn": _near(request.space, vector, [_among(part)], len(part)), "size": len(part), "sort": _BY_ID,
            }  # fmt: skip
    more, failed = _ask(cluster, index, bodies, sharded)
    for name, hits in more.items():
        (bm25 if name == "text" else cosine)[np.searchsorted(ids, hits.ids)] = hits.scores if name == "text" else cosines(hits.scores)

    documents = defaultdict(count().__next__)  # a number for each name, by the order in which they are asked for
    document_of = np.empty(len(ids), np.int32)
    document_of[text_places] = list(map(documents.__getitem__, text.documents))
    document_of[near_places] = list(map(documents.__getitem__, near.documents))
    return Candidates(
        ids=ids.view(np.uint64) ^ _SIGN,
        documents=[document.decode() for document in documents],
        document_of=document_of,
        text_scores=bm25,
        vector_scores=cosine,
        text_ranks=_ranks(len(ids), text_places),
        vector_ranks=_ranks(len(ids), near_places),
        degraded=tuple(sorted({name.partition(" ")[0] for name in degraded | failed})),
    )


# ---------------------------------------------------------------------------------------------------- queries
def _filters(request: SearchRequest) -> list[dict[str, Any]]:
    filters: list[dict[str, Any]] = [{"terms": {"dataset": request.dataset_ids}}]
    if request.document_ids is not None:
        filters.append({"terms": {"document": request.document_ids}})
    if request.available is not None:
        filters.append({"term": {"available": request.available}})
    return filters


def _once(value: Any) -> orjson.Fragment:
    """What goes into several requests, encoded."""
    return orjson.Fragment(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))


def _clauses(request: SearchRequest) -> orjson.Fragment | None:
    """A clause a term and field, None without any: their sum is the text arm's score."""
    boosts = [(name, boost) for name in TERM_FIELDS if (boost := request.field_boosts.get(name, 0.0)) > 0]
    clauses = [_clause(name, term.text, term.weight * boost) for name, boost in boosts for term in request.terms if term.weight > 0]
    return _once(clauses) if clauses else None


def _clause(name: str, term: str, boost: float) -> dict[str, Any]:
    if len(term) <= WORD_CHARACTERS // 2:  # characters beyond the basic plane count twice
        return {"term": {name: {"value": term, "boost": boost}}}
    return {"match": {name: {"query": term, "operator": "and", "boost": boost}}}  # cut into pieces, as it was in the index


def _text(clauses: orjson.Fragment, filters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"bool": {"should": clauses, "minimum_should_match": 1, "filter": filters}}


def _near(space: str, vector: orjson.Fragment, filters: Sequence[Mapping[str, Any]], k: int) -> dict[str, Any]:
    return {"field": vector_field(space), "query_vector": vector, "k": k, "num_candidates": k, "filter": filters}


def _among(ids: np.ndarray) -> dict[str, Any]:
    return {"terms": {"id": ids}}


# ---------------------------------------------------------------------------------------------------- asking
def _ask(cluster: Cluster, index: str, bodies: Mapping[str, Mapping[str, Any]], sharded: bool) -> tuple[dict[str, Hits], set[str]]:
    """Each search's hits by name, and the names of those that failed."""
    if not bodies:
        return {}, set()
    header: dict[str, Any] = {"index": index, "ignore_unavailable": True, "allow_partial_search_results": False}
    if sharded:
        header["search_type"] = "dfs_query_then_fetch"
    first = orjson.dumps(header)
    lines: list[bytes] = []
    for body in bodies.values():
        fixed = {"_source": False, "stored_fields": "_none_", "track_total_hits": False}
        lines += [first, orjson.dumps({**fixed, **body}, option=orjson.OPT_SERIALIZE_NUMPY)]
    reply = cluster.ask("POST", _PATH, b"\n".join(lines) + b"\n", lines=True, cbor=True)
    found, failed = {}, set()
    error = None
    for (name, body), answer in zip(bodies.items(), reply.body["responses"], strict=True):
        if answer["status"] == 200:
            found[name] = _hits(answer, body["sort"], body["size"])
            continue
        kind = error_type(answer.get("error"))
        if answer["status"] == 400 and name != "text":
            raise UnknownVectorField
        failed.add(name)
        error = failure(answer["status"], kind)
    if error is not None and not found:
        raise error
    return found, failed


def _hits(answer: Mapping[str, Any], sort: Sequence[Mapping[str, str]], size: int) -> Hits:
    columns = answer.get("hits", {}).get("hits")
    if not columns:
        return Hits(all=True)
    if isinstance(columns[0], dict):  # hits, not columns
        raise Unavailable("elasticsearch was asked for CBOR, and something before it answers in JSON")
    if sort is _BY_ID:
        return Hits(*columns)
    scores, ids, documents = columns
    return Hits(ids, scores, documents, len(ids) < size)


def _without(ids: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The ids at all other places."""
    others = np.ones(len(ids), bool)
    others[places] = False
    return ids[others]


def _ranks(count: int, places: np.ndarray) -> np.ndarray:
    ranks = np.full(count, -1, np.int32)
    ranks[places] = np.arange(len(places))
    return ranks
