"""What a move leaves on the index that it copies: writes are refused, and a mark names the copy, for whoever comes after a kill.

A block without the mark is somebody else's, a full disk's or an administrator's, and stays, unless a move has begun under it.
"""

from typing import Any

import orjson

from rag.store.elastic import Cluster

SHOWN = "*.mappings._meta"
_MARK = "moved_to"


def hold(cluster: Cluster, index: str, copy: str) -> dict[str, int]:
    """Take no more writes into the index, which is to be moved to `copy`; its changes so far. May be called again.

    Raises `Unavailable`.
    """
    _write_mark(cluster, index, {_MARK: copy})
    cluster.ask("PUT", f"/{index}/_block/write")  # waits for the writes that are under way
    shards = cluster.ask(
        "GET", f"/{index}/_stats/docs", params={"level": "shards", "filter_path": "indices.*.shards.*.seq_no.max_seq_no"}
    ).body["indices"][index]["shards"]
    # a replica that is only coming up tells nothing yet
    return {number: max(shard["seq_no"]["max_seq_no"] for shard in each if "seq_no" in shard) for number, each in shards.items()}


def release(cluster: Cluster, index: str, copy: str) -> None:
    """Let the index take writes again, if it is still held to be moved to `copy`. Raises `Unavailable`."""
    found = cluster.ask("GET", f"/{index}/_mapping", params={"filter_path": SHOWN}, expected=(404,))
    if found.status == 404 or copy_of(found.body.get(index, {})) != copy:
        return
    cluster.ask("PUT", f"/{index}/_settings", orjson.dumps({"index.blocks.write": None}), expected=(404,))
    _write_mark(cluster, index, {})  # at last: a kill before it leaves what the next one finds


def copy_of(described: dict[str, Any]) -> str:
    """The copy that an index, as the cluster describes it with `SHOWN`, is held for; "" for one that is not held."""
    return str(described.get("mappings", {}).get("_meta", {}).get(_MARK, ""))


def _write_mark(cluster: Cluster, index: str, mark: dict[str, str]) -> None:
    cluster.ask("PUT", f"/{index}/_mapping", orjson.dumps({"_meta": mark}), expected=() if mark else (404,))
