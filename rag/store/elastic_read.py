"""Reading an index from end to end, and by id."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from rag.errors import Unavailable
from rag.store.elastic import NO_INDEX, Cluster, error_type, failure

_AT_ONCE = 1000
_KEEP_ALIVE = "2m"


def pages(
    cluster: Cluster, index: str, query: Mapping[str, Any], size: int, *, source: bool = True, fields: bool = False
) -> Iterator[list[dict[str, Any]]]:  # fmt: skip
    """The matching documents of one moment as hits, `size` at a time: id, sequence number and term, `_source` and field `packed`.

    Changes that come after the first page are not seen. Nothing where there is no index. Raises `Unavailable`.
    """
    opened = cluster.ask("POST", f"/{index}/_pit", params={"keep_alive": _KEEP_ALIVE}, expected=(404,))
    if opened.status == 404:
        return
    point = opened.body["id"]
    body: dict[str, Any] = {
        "size": size, "query": query, "sort": [{"id": "asc"}], "track_total_hits": False, "seq_no_primary_term": True, "_source": source,
    } | ({"stored_fields": ["packed"]} if fields else {})  # fmt: skip
    try:
        while True:
            body["pit"] = {"id": point, "keep_alive": _KEEP_ALIVE}
            reply = cluster.ask("POST", "/_search", orjson.dumps(body), params={"allow_partial_search_results": "false"}).body
            point, hits = reply.get("pit_id", point), reply["hits"]["hits"]
            if hits:
                yield hits
            if len(hits) < size:
                return
            body["search_after"] = hits[-1]["sort"]
    finally:
        _close(cluster, point)


def _close(cluster: Cluster, point: str) -> None:
    try:
        cluster.ask("DELETE", "/_pit", orjson.dumps({"id": point}), expected=(404,))
    except Unavailable:
        return  # it ends by itself


def read(
    cluster: Cluster, index: str, chunk_ids: Sequence[str], *, packed: bool = False, space: bool = False
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """The stored documents by id, as they are now, whether searches see them yet or not. Missing ones are left out.

    With `packed` each has its vector in `fields`; `space` reads only this name of `_source`. Raises `Unavailable`.
    """
    params = {"_source": "space" if space else "true"} | ({"stored_fields": "packed"} if packed else {})
    found: dict[str, dict[str, Any]] = {}
    for start in range(0, len(chunk_ids), _AT_ONCE):
        body = orjson.dumps({"ids": list(dict.fromkeys(chunk_ids[start : start + _AT_ONCE]))})
        for document in cluster.ask("POST", f"/{index}/_mget", body, params=params).body["docs"]:
            if document.get("found"):
                found[document["_id"]] = document
            elif "error" in document and (kind := error_type(document["error"])) != NO_INDEX:
                raise failure(503, kind)
    return found
