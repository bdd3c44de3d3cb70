"""The chunk store on Elasticsearch: an index a tenant, the same ranking as the embedded store's.

There are no transactions over several chunks. What replaces them: a chunk is written whole, in one request, durable before it is
answered; a change that depends on what is stored is written only while that is what was read (sequence numbers); and a call that
fails in the middle raises, and can be made again. A `put` that raised may have stored some of its chunks.
"""

import builtins
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson

from rag.errors import InvalidArgument, Unavailable
from rag.store.elastic import Cluster
from rag.store.elastic_health import PROBE_SECONDS, health
from rag.store.elastic_index import Analyse, Indexes, Layout, VectorField
from rag.store.elastic_read import pages, read
from rag.store.elastic_search import NOTHING, UnknownVectorField, search
from rag.store.elastic_write import FieldMissing, Item, write
from rag.store.mapping import MOST_HITS, chunk_from, document, kept, unpacked
from rag.store.rows import stored_id
from rag.store.selection import EMPTY_SELECTOR, matcher, oldest_version
from rag.store.vectors import checked_units
from rag.types import Candidates, Chunk, ChunkSelector, SearchRequest, StoredChunk

_PAGE_IDS, _PAGE_CHUNKS = 5000, 500
_ATTEMPTS = 10  # to win against other writers of the same chunks

Hit = Mapping[str, Any]


class ElasticStore:
    """A `ChunkStore` in an Elasticsearch cluster, shared by any number of processes. Thread-safe."""

    def __init__(self, cluster: Cluster, layout: Layout | None = None, *, analyse: Analyse | None = None) -> None:
        """Closes the cluster with itself. `analyse` computes a chunk's terms anew after `Layout.analyser_version` has changed."""
        self._cluster = cluster
        self._layout = layout or Layout()
        self._indexes = Indexes(cluster, self._layout, analyse)
        self._unseen: set[str] = set()  # tenants with writes of ours that searches do not see yet
        self._closing = threading.Lock()
        self._closed = False

    # ------------------------------------------------------------------------------------------------ writing
    def put(self, tenant_id: str, chunks: Sequence[Chunk], vectors: np.ndarray | None, space: str, *, wait: bool = True) -> None:
        """As `rag.ports.ChunkStore.put`, but in no transaction: when it raises, some of the chunks may be stored."""
        self._check_open()
        if not chunks:
            return
        latest = {chunk.id: row for row, chunk in enumerate(chunks)}
        if vectors is None:
            wanted = {chunk_id: chunks[row] for chunk_id, row in latest.items()}
            for chunk in wanted.values():
                document(chunk)
            self._indexes.prepare(tenant_id, "", 0)
            self._put_keeping(tenant_id, wanted, wait=wait)
            return
        units = checked_units(vectors, len(chunks))
        items = [Item(chunk_id, _document(chunks[row], space, units[row])) for chunk_id, row in latest.items()]
        self._write(tenant_id, items, space, units.shape[1], wait=wait)

    def replace(
        self, tenant_id: str, before: Sequence[Chunk], after: Sequence[Chunk], vectors: np.ndarray | None, space: str, *, wait: bool = True
    ) -> builtins.list[bool]:  # fmt: skip
        """As `rag.ports.ChunkStore.replace`: comparing and putting are one for each chunk, not for all together."""
        self._check_open()
        if [chunk.id for chunk in before] != [chunk.id for chunk in after]:
            raise InvalidArgument("a chunk is replaced by one of another id")
        units = None if vectors is None else checked_units(vectors, len(after))
        rows = {chunk.id: row for row, chunk in enumerate(after)}
        for chunk in after:
            document(chunk)
        if not self._indexes.exists(tenant_id):
            return [False] * len(after)
        if units is not None:
            self._indexes.prepare(tenant_id, space, units.shape[1])

        def change(hit: Hit) -> Item | None:
            row = rows[hit["_id"]]
            if chunk_from(hit["_source"]) != before[row]:
                return None
            if units is not None:
                return Item(hit["_id"], _document(after[row], space, units[row]), _seen(hit))
            return Item(hit["_id"], document(after[row], *kept(hit)), _seen(hit))

        hits = read(self._cluster, self._indexes.alias(tenant_id), list(rows), packed=units is None).values()
        done = {hit["_id"] for hit in self._change(tenant_id, hits, change, packed=units is None)}
        self._settle(tenant_id, wait=wait)
        return [chunk.id in done for chunk in after]

    def delete(self, tenant_id: str, selector: ChunkSelector) -> int:
        """As `rag.ports.ChunkStore.delete`."""
        return sum(1 for _ in self._remove(tenant_id, selector, source=False))

    def take(self, tenant_id: str, selector: ChunkSelector) -> builtins.list[Chunk]:
        """As `rag.ports.ChunkStore.take`. When it raises, some may have been deleted."""
        return [chunk_from(hit["_source"]) for hit in self._remove(tenant_id, selector, source=True)]

    def set_available(self, tenant_id: str, selector: ChunkSelector, available: bool, *, wait: bool = True) -> int:
        """As `rag.ports.ChunkStore.set_available`. When it raises, some may be switched; it can be called again."""
        query, selects = _query(selector), matcher(selector)
        selected = 0

        def change(hit: Hit) -> Item | None:
            chunk = chunk_from(hit["_source"])
            if not selects(chunk) or chunk.available == available:
                return None
            return Item(chunk.id, document(replace(chunk, available=available), *kept(hit)), _seen(hit))

        for page in self._pages(tenant_id, query, _PAGE_CHUNKS, fields=True):
            selected += len(page)
            for _ in self._change(tenant_id, page, change, packed=True):
                pass
        if selected:
            self._settle(tenant_id, wait=wait)
        return selected

    def load(self, tenant_id: str, stored: Sequence[StoredChunk]) -> None:
        """As `rag.ports.ChunkStore.load`."""
        self._check_open()
        spaces = {(item.space, len(item.vector)) for item in stored if item.vector is not None}
        for space, dimension in spaces or {("", 0)}:
            self._indexes.prepare(tenant_id, space, dimension)
        self._write_conditionally(tenant_id, [Item(item.chunk.id, document(item.chunk, item.space, item.vector)) for item in stored])

    def flush(self, tenant_id: str) -> None:
        """As `rag.ports.ChunkStore.flush`."""
        self._check_open()
        alias = self._indexes.alias(tenant_id)
        self._unseen.discard(tenant_id)  # before: what is put meanwhile is not seen for certain
        try:
            self._cluster.ask("POST", f"/{alias}/_refresh", expected=(404,))
        except BaseException:
            self._unseen.add(tenant_id)
            raise

    def drop_tenant(self, tenant_id: str) -> None:
        """As `rag.ports.ChunkStore.drop_tenant`."""
        self._check_open()
        self._indexes.drop(tenant_id)

    # ------------------------------------------------------------------------------------------------ reading
    def search(self, request: SearchRequest) -> Candidates:
        """As `rag.ports.ChunkStore.search`. At most 10,000 candidates come from the vector arm, Elasticsearch's own limit."""
        self._check_open()
        tenant_id = request.tenant_id
        if not request.dataset_ids or request.document_ids == () or not self._indexes.exists(tenant_id):
            return NOTHING
        try:
            return self._search(request)
        except UnknownVectorField:  # dropped by another process and begun again
            self._indexes.forget(tenant_id)
        try:
            return self._search(request)
        except UnknownVectorField as exc:
            raise Unavailable("elasticsearch refused a search") from exc

    def _search(self, request: SearchRequest) -> Candidates:
        tenant_id, length = request.tenant_id, 0 if request.vector is None else len(request.vector)
        field = self._indexes.field(tenant_id, request.space) if length else VectorField()
        return search(
            self._cluster,
            self._indexes.alias(tenant_id),
            request,
            has_vectors=length > 0 and field.dimension == length,
            exact=field.exact,
            sharded=self._layout.shards > 1,
        )

    def get(self, tenant_id: str, chunk_ids: Sequence[str]) -> builtins.list[Chunk | None]:
        """As `rag.ports.ChunkStore.get`."""
        self._check_open()
        _check_ids(chunk_ids)
        found = read(self._cluster, self._indexes.alias(tenant_id), chunk_ids)
        chunks = {chunk_id: chunk_from(hit["_source"]) for chunk_id, hit in found.items()}
        return [chunks.get(chunk_id) for chunk_id in chunk_ids]

    def vectors(self, tenant_id: str, chunk_ids: Sequence[str], space: str) -> np.ndarray:
        """As `rag.ports.ChunkStore.vectors`."""
        self._check_open()
        _check_ids(chunk_ids)
        dimension = self._indexes.field(tenant_id, space).dimension if self._indexes.exists(tenant_id) else 0
        result = np.full((len(chunk_ids), dimension), np.nan, np.float32)
        if not dimension:
            return result
        found = read(self._cluster, self._indexes.alias(tenant_id), chunk_ids, packed=True, space=True)
        for row, chunk_id in enumerate(chunk_ids):
            hit = found.get(chunk_id)
            if hit is None or hit["_source"].get("space") != space:
                continue
            vector = unpacked(hit["fields"]["packed"][0]).astype(np.float32)
            result[row] = vector / np.linalg.norm(vector)
        return result

    def list(
        self, tenant_id: str, document_id: str, *, chunk_ids: Sequence[str] | None = None, available: bool | None = None,
        offset: int = 0, limit: int = 30,
    ) -> tuple[int, builtins.list[Chunk]]:  # fmt: skip
        """As `rag.ports.ChunkStore.list`."""
        filters = _filters(ChunkSelector(document_ids=(document_id,), chunk_ids=None if chunk_ids is None else tuple(chunk_ids)))
        if available is not None:
            filters.append({"term": {"available": available}})
        size = max(0, min(limit, MOST_HITS - offset))
        return self._listed(tenant_id, {
            "query": {"bool": {"filter": filters}},
            "sort": [{"position": "asc"}, {"created_at": "desc"}, {"id": "asc"}],
            "from": offset if size else 0,
            "size": size,
        })  # fmt: skip

    def scan(self, tenant_id: str, *, after: str = "", size: int = 500) -> Iterator[builtins.list[StoredChunk]]:
        """As `rag.ports.ChunkStore.scan`, of one moment."""
        query = {"range": {"id": {"gt": stored_id(after)}}} if after else {"match_all": {}}
        for page in self._pages(tenant_id, query, size, fields=True):
            yield [StoredChunk(chunk_from(hit["_source"]), *kept(hit)) for hit in page]

    def count(self, tenant_id: str, selector: ChunkSelector) -> int:
        """As `rag.ports.ChunkStore.count`."""
        total, _ = self._listed(tenant_id, {"query": _query(selector), "size": 0})
        return total

    def _listed(self, tenant_id: str, body: dict[str, Any]) -> tuple[int, builtins.list[Chunk]]:
        self._check_open()
        if not self._indexes.exists(tenant_id):
            return 0, []
        if tenant_id in self._unseen:
            self.flush(tenant_id)
        reply = self._cluster.ask(
            "POST", f"/{self._indexes.alias(tenant_id)}/_search", orjson.dumps(body | {"track_total_hits": True}),
            params={"allow_partial_search_results": "false", "ignore_unavailable": "true"},
        )  # fmt: skip
        hits = reply.body["hits"]
        return hits["total"]["value"], [chunk_from(hit["_source"]) for hit in hits["hits"]]

    def health(self) -> dict[str, str]:
        """As `rag.ports.ChunkStore.health`."""
        return health(self._cluster, self._layout.prefix)

    def server_version(self) -> str:
        """What the cluster calls its version. Raises `Unavailable`."""
        reply = self._cluster.probe("/?filter_path=version.number", PROBE_SECONDS)
        return str(reply.body["version"]["number"]) if reply.status == 200 else ""

    def close(self) -> None:
        """As `rag.ports.ChunkStore.close`."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._indexes.close()
        self._cluster.close()

    # ------------------------------------------------------------------------------------------------ changing what is stored
    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the chunk store is closed")

    def _settle(self, tenant_id: str, *, wait: bool) -> None:
        if wait:
            self.flush(tenant_id)
        else:
            self._unseen.add(tenant_id)

    def _write(self, tenant_id: str, items: Sequence[Item], space: str, dimension: int, *, wait: bool) -> None:
        if not wait:
            self._unseen.add(tenant_id)
        alias = self._indexes.prepare(tenant_id, space, dimension)
        try:
            write(self._cluster, alias, items, refresh=wait)
        except FieldMissing:  # the tenant was dropped by another process
            self._indexes.forget(tenant_id)
            alias = self._indexes.prepare(tenant_id, space, dimension)
            try:
                write(self._cluster, alias, items, refresh=wait)
            except FieldMissing as exc:
                raise Unavailable("the tenant's index was dropped meanwhile") from exc

    def _put_keeping(self, tenant_id: str, chunks: Mapping[str, Chunk], *, wait: bool) -> None:
        """Put the chunks with the vectors that are stored; what others change meanwhile is looked at again."""
        alias = self._indexes.alias(tenant_id)
        waiting = list(chunks)
        for _ in range(_ATTEMPTS):
            stored = read(self._cluster, alias, waiting, packed=True, space=True)
            items = []
            for chunk_id in waiting:
                hit = stored.get(chunk_id)
                if hit is None:
                    items.append(Item(chunk_id, document(chunks[chunk_id]), create=True))
                else:
                    items.append(Item(chunk_id, document(chunks[chunk_id], *kept(hit)), _seen(hit)))
            done = self._write_conditionally(tenant_id, items)
            waiting = [chunk_id for chunk_id, written in zip(waiting, done, strict=True) if not written]
            if not waiting:
                self._settle(tenant_id, wait=wait)
                return
        raise Unavailable("the chunks are being changed by others at the same time")

    def _write_conditionally(self, tenant_id: str, items: Sequence[Item]) -> builtins.list[bool]:
        self._unseen.add(tenant_id)
        try:
            return write(self._cluster, self._indexes.alias(tenant_id), items)
        except FieldMissing as exc:
            self._indexes.forget(tenant_id)
            raise Unavailable("the tenant's index was dropped meanwhile") from exc

    def _change(
        self, tenant_id: str, hits: Iterable[Hit], change: Callable[[Hit], Item | None], *, packed: bool
    ) -> Iterator[Hit]:  # fmt: skip
        """Write what `change` makes of each hit while it is what was read, and yield the hits for which that was done.

        A chunk that others changed meanwhile is read and shown to `change` again.
        """
        for _ in range(_ATTEMPTS):
            made = [(hit, item) for hit in hits if (item := change(hit)) is not None]
            if not made:
                return
            done = self._write_conditionally(tenant_id, [item for _, item in made])
            yield from (hit for (hit, _), written in zip(made, done, strict=True) if written)
            lost = [hit["_id"] for (hit, _), written in zip(made, done, strict=True) if not written]
            if not lost:
                return
            hits = list(read(self._cluster, self._indexes.alias(tenant_id), lost, packed=packed).values())
        raise Unavailable("the chunks are being changed by others at the same time")

    def _remove(self, tenant_id: str, selector: ChunkSelector, *, source: bool) -> Iterator[Hit]:
        """Delete the selected chunks and yield each that this call deleted; at the end searches find them no more."""
        query, selects = _query(selector), matcher(selector)
        removed = False

        def change(hit: Hit) -> Item | None:
            # what was read anew, because others had changed it, may be none of the selected ones any more
            if "_source" in hit and not selects(chunk_from(hit["_source"])):
                return None
            return Item(hit["_id"], None, _seen(hit))

        for page in self._pages(tenant_id, query, _PAGE_CHUNKS if source else _PAGE_IDS, source=source):
            for hit in self._change(tenant_id, page, change, packed=False):
                removed = True
                yield hit
        if removed:
            self.flush(tenant_id)

    def _pages(self, tenant_id: str, query: Mapping[str, Any], size: int, **what: bool) -> Iterator[builtins.list[dict[str, Any]]]:
        """The selected chunks page by page, those that another process has just put among them."""
        self._check_open()
        if self._indexes.exists(tenant_id):
            self.flush(tenant_id)
            yield from pages(self._cluster, self._indexes.alias(tenant_id), query, size, **what)


def _document(chunk: Chunk, space: str, unit: np.ndarray) -> bytes:
    return document(chunk) if np.isnan(unit).any() else document(chunk, space, unit)


def _seen(hit: Hit) -> tuple[int, int]:
    return hit["_seq_no"], hit["_primary_term"]


def _check_ids(chunk_ids: Sequence[str]) -> None:
    for chunk_id in chunk_ids:
        stored_id(chunk_id)


def _query(selector: ChunkSelector) -> dict[str, Any]:
    return {"bool": {"filter": _filters(selector)}}


def _filters(selector: ChunkSelector) -> list[dict[str, Any]]:
    """Raises `InvalidArgument` for a selector without a condition."""
    filters: list[dict[str, Any]] = []
    if selector.dataset_ids is not None:
        filters.append({"terms": {"dataset": selector.dataset_ids}})
    if selector.document_ids is not None:
        filters.append({"terms": {"document": selector.document_ids}})
    if selector.chunk_ids is not None:
        filters.append({"terms": {"id": [stored_id(chunk_id) for chunk_id in selector.chunk_ids]}})
    if selector.versions_below is not None:
        filters.append({"range": {"version": {"gte": oldest_version(selector), "lt": selector.versions_below}}})
    if not filters:
        raise InvalidArgument(EMPTY_SELECTOR)
    return filters
