"""What an Elasticsearch cluster says of our indexes, as the health of a chunk store."""

from typing import Any

from rag.errors import Unavailable
from rag.store.elastic import Cluster, failure
from rag.store.mapping import tenant_of

PROBE_SECONDS = 2.0


def health(cluster: Cluster, prefix: str) -> dict[str, str]:
    """As `rag.ports.ChunkStore.health`: red when the cluster does not answer or no tenant has all its shards, yellow when only some
    tenants have, when replicas are missing or an index takes no writes.
    """
    try:
        status, error = _state(cluster, prefix)
    except Unavailable as exc:
        status, error = "red", str(exc)
    return {"type": "elasticsearch", "status": status} | ({"error": error} if error else {})


def _state(cluster: Cluster, prefix: str) -> tuple[str, str]:
    """The colour, and what is wrong if it is not green. Raises `Unavailable`."""
    reasons, everyone = [], False
    shards = _shards(cluster, prefix)
    if shards["status"] == "red":  # one index of all is enough for that
        shards = _shards(cluster, prefix, ",indices.*.status&level=indices")
    if shards["status"] == "red":
        indexes = shards.get("indices", {})
        tenants = {tenant_of(prefix, name) for name in indexes}
        stopped = {tenant_of(prefix, name) for name, index in indexes.items() if index["status"] == "red"}
        everyone = stopped == tenants
        reasons.append(f"shards of elasticsearch are missing for {len(stopped)} of {len(tenants)} tenants")
    elif shards["status"] == "yellow":
        reasons.append("replicas are missing")
    if _takes_no_writes(cluster, prefix):
        reasons.append("an elasticsearch index takes no writes now (a disk may be full)")
    if not reasons:
        return "green", ""
    return "red" if everyone else "yellow", "; ".join(reasons)


def _shards(cluster: Cluster, prefix: str, more: str = "") -> dict[str, Any]:
    """The cluster's health, of our indexes alone. Raises `Unavailable`."""
    path = f"/_cluster/health/{prefix}*?timeout=1s&filter_path=status,error.type{more}"
    reply = cluster.probe(path, PROBE_SECONDS)
    if not isinstance(reply.body, dict) or not isinstance(reply.body.get("status"), str):  # the status of an error is a number
        raise failure(reply.status, reply.error)
    return reply.body


def _takes_no_writes(cluster: Cluster, prefix: str) -> bool:
    """Whether one of our indexes has a block. Raises `Unavailable`."""
    path = f"/{prefix}*/_settings/index.blocks.*?flat_settings=true&filter_path=*.settings"
    reply = cluster.probe(path, PROBE_SECONDS)
    indexes = reply.body.values() if reply.status == 200 and isinstance(reply.body, dict) else ()
    return any("true" in index["settings"].values() for index in indexes)
