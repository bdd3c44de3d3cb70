"""Tenants' indexes: found by alias, made at the first write, given a field for each embedding space, moved to the present layout."""

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import orjson
import structlog

from rag.errors import InvalidArgument, MillraceError, Unavailable
from rag.store.elastic import Cluster, failure
from rag.store.elastic_mark import SHOWN, copy_of, hold, release
from rag.store.elastic_read import pages
from rag.store.elastic_write import Item, write
from rag.store.mapping import (
    VECTOR_KINDS,
    alias_of,
    chunk_from,
    document,
    has_present_layout,
    index_body,
    index_of,
    kept,
    vector_field,
    vector_mapping,
)
from rag.types import Chunk, ChunkTerms

Analyse = Callable[[Chunk], ChunkTerms]

_COPY_CHUNKS = 500
_RETRY_SECONDS = 5.0
_CLOSE_SECONDS = 20.0
_SHOWN = f"*.aliases,*.mappings.properties.*.dims,*.mappings.properties.*.index_options.type,{SHOWN}"
_log = structlog.get_logger("millrace.store")


@dataclass(frozen=True, slots=True)
class Layout:
    """How new indexes are made. `replicas` None: one where there is a second node. `vectors` is a key of `VECTOR_KINDS`."""

    prefix: str = "millrace-"
    shards: int = 1
    replicas: int | None = None
    vectors: str = "auto"
    analyser_version: str = ""

    def __post_init__(self) -> None:
        if self.vectors not in VECTOR_KINDS:
            raise InvalidArgument(f"an index of vectors is one of {', '.join(VECTOR_KINDS)}")


class VectorField(NamedTuple):
    """The field of an embedding space: the dimension of its vectors, and whether a search compares all of them."""

    dimension: int = 0
    exact: bool = True


class Indexes:
    """What is known of the tenants' indexes. Thread-safe; other processes may make, change and drop them at any time.

    `analyse` computes a chunk's terms anew for an index that another analysis made; None keeps them.
    """

    def __init__(self, cluster: Cluster, layout: Layout, analyse: Analyse | None = None) -> None:
        self.layout = layout
        self._cluster, self._analyse = cluster, analyse
        self._fields: dict[str, Mapping[str, VectorField]] = {}
        self._moving: dict[str, threading.Thread] = {}
        self._lock = threading.Lock()

    def alias(self, tenant_id: str) -> str:
        """The name under which the tenant's index is used. Raises `InvalidArgument` for what is no tenant id."""
        return alias_of(self.layout.prefix, tenant_id)

    def forget(self, tenant_id: str) -> None:
        """Ask the cluster again: the index is not what it was."""
        self._fields.pop(tenant_id, None)

    def exists(self, tenant_id: str) -> bool:
        """Whether the tenant has an index. Raises `Unavailable` while it is moved to the present layout."""
        return self._known(tenant_id) is not None

    def field(self, tenant_id: str, space: str) -> VectorField:
        """The field of a space, of dimension 0 where the tenant has no vectors in it."""
        name = vector_field(space)
        known = self._known(tenant_id)
        if known is not None and name not in known:
            self.forget(tenant_id)  # another process may have brought it
            known = self._known(tenant_id)
        return (known or {}).get(name, VectorField())

    def prepare(self, tenant_id: str, space: str, dimension: int) -> str:
        """Make the tenant's index and the space's field where they are missing; the index's alias.

        `dimension` 0: no vectors are to come. Raises `InvalidArgument` when the space has another dimension.
        """
        alias = self.alias(tenant_id)
        known = self._known(tenant_id)
        if known is None:
            self._create(alias)
            known = self._known(tenant_id) or {}
        if dimension:
            name = vector_field(space)
            if name not in known:
                self._add_field(alias, name, dimension)
                self.forget(tenant_id)
                known = self._known(tenant_id) or {}
            field = known.get(name, VectorField())
            if field.dimension != dimension:
                raise InvalidArgument(f"vectors have {dimension} dimensions, those of their embedding space have {field.dimension}")
        return alias

    def drop(self, tenant_id: str) -> None:
        """Remove the tenant's indexes, copies under way too."""
        self.forget(tenant_id)
        self._remove(self._named(self.alias(tenant_id)))

    def close(self) -> None:
        """Wait a while for indexes that are being moved. A move that is cut short begins anew with the next call."""
        for thread in list(self._moving.values()):
            thread.join(_CLOSE_SECONDS)

    # ------------------------------------------------------------------------------------------------ looking and making
    def _known(self, tenant_id: str) -> Mapping[str, VectorField] | None:
        """The index's vector fields by their names, None without an index."""
        known = self._fields.get(tenant_id)
        if known is not None:
            return known
        alias = self.alias(tenant_id)
        every = self._cluster.ask("GET", f"/{alias}-*", params={"filter_path": _SHOWN, "expand_wildcards": "all"}).body
        name = next((name for name, described in every.items() if alias in described.get("aliases", {})), None)
        if name is None:
            return None
        if not has_present_layout(name, alias, self.layout.analyser_version):
            self._start_moving(tenant_id, name)
            raise Unavailable("the tenant's index is being moved to the present layout", _RETRY_SECONDS)
        described = every.pop(name)
        if copy := copy_of(described):  # a newer release was to move it, and this one is back in its place
            release(self._cluster, name, copy)
        self._remove([other for other, held in every.items() if copy_of(held) == name])
        fields = described.get("mappings", {}).get("properties", {})
        known = {name: VectorField(each["dims"], each.get("index_options") == {"type": "flat"}) for name, each in fields.items()}
        self._fields[tenant_id] = known
        return known

    def _create(self, alias: str, name: str | None = None) -> None:
        body = index_body(self.layout.shards, self.layout.replicas)
        if name is None:
            body["aliases"] = {alias: {"is_write_index": True}}
        reply = self._cluster.ask(
            "PUT", f"/{name or index_of(alias, self.layout.analyser_version)}", orjson.dumps(body), expected=(400,)
        )  # fmt: skip
        if reply.status == 400 and reply.error != "resource_already_exists_exception":
            raise failure(reply.status, reply.error)

    def _add_field(self, index: str, field: str, dimension: int) -> None:
        for kind in VECTOR_KINDS[self.layout.vectors]:
            body = orjson.dumps({"properties": {field: vector_mapping(dimension, kind)}})
            reply = self._cluster.ask("PUT", f"/{index}/_mapping", body, expected=(400,))
            if reply.error != "mapper_parsing_exception":
                break
        else:
            needs = "; elasticsearch_vectors = flat needs 8.13" if self.layout.vectors == "flat" else ""
            raise Unavailable(f"elasticsearch refuses the field for vectors{needs}")
        # another writer was quicker with another dimension: the caller sees it in the mapping
        if reply.status == 400 and reply.error != "illegal_argument_exception":
            raise failure(reply.status, reply.error)

    def _named(self, alias: str) -> list[str]:
        """Every index of the tenant, whether its alias stands before it or not."""
        found = self._cluster.ask("GET", f"/{alias}-*/_alias", params={"expand_wildcards": "all"}, expected=(404,))
        return sorted(found.body) if found.status == 200 else []

    # ------------------------------------------------------------------------------------------------ moving
    def _start_moving(self, tenant_id: str, old: str) -> None:
        with self._lock:
            under_way = self._moving.get(tenant_id)
            if under_way is None or not under_way.is_alive():
                thread = threading.Thread(target=self._move_safely, args=(tenant_id, old), name="millrace-move-index", daemon=True)
                self._moving[tenant_id] = thread
                thread.start()

    def _move_safely(self, tenant_id: str, old: str) -> None:
        try:
            count = self.move(tenant_id, old)
            _log.info("index_moved", tenant=tenant_id, chunks=count)
        except MillraceError as exc:  # the next call for the tenant tries again
            _log.warning("index_not_moved", tenant=tenant_id, error=str(exc))
        except Exception:  # noqa: BLE001 - a boundary: nobody waits for this thread
            _log.exception("index_not_moved", tenant=tenant_id)

    def move(self, tenant_id: str, old: str) -> int:
        """Copy the index into one of the present layout and set the alias before it; the number of chunks.

        The old index takes no writes meanwhile and is removed at the end. Of several processes that move it at the same time
        each makes a copy of its own, and the first one's is taken. Raises `Unavailable`; then the old one is still in use and takes
        writes again, unless the cluster cannot be reached for that: the next call for the tenant finds out.
        """
        alias = self.alias(tenant_id)
        new = f"{index_of(alias, self.layout.analyser_version)}-{secrets.token_hex(4)}"
        try:
            changes = hold(self._cluster, old, new)
            self._cluster.ask("POST", f"/{old}/_refresh")
            self._create(alias, new)
            count = self._copy(old, new)
            if hold(self._cluster, old, new) != changes:
                raise Unavailable("the index was changed while it was copied")
        except BaseException:
            self._give_up(old, new)
            raise
        self._switch(alias, old, new)
        self.forget(tenant_id)
        self._remove([name for name in self._named(alias) if name != new])
        return count

    def _switch(self, alias: str, old: str, new: str) -> None:
        actions = [
            {"remove": {"index": old, "alias": alias, "must_exist": True}},
            {"add": {"index": new, "alias": alias, "is_write_index": True}},
        ]
        # Without an answer nobody knows which of both is in use now, and none may be removed.
        switched = self._cluster.ask("POST", "/_aliases", orjson.dumps({"actions": actions}), expected=(404,), repeatable=False)
        if switched.status == 404:
            self._give_up(old, new)
            raise Unavailable("another process has moved the index meanwhile")

    def _give_up(self, old: str, new: str) -> None:
        try:
            self._remove([new])
        finally:
            release(self._cluster, old, new)

    def _remove(self, names: Sequence[str]) -> None:
        if names:
            self._cluster.ask("DELETE", f"/{','.join(names)}", params={"ignore_unavailable": "true"}, expected=(404,))

    def _copy(self, old: str, new: str) -> int:
        made: set[str] = set()
        count = 0
        for page in pages(self._cluster, old, {"match_all": {}}, _COPY_CHUNKS, fields=True):
            items = []
            for hit in page:
                chunk, (space, vector) = chunk_from(hit["_source"]), kept(hit)
                if vector is not None and space not in made:
                    self._add_field(new, vector_field(space), len(vector))
                    made.add(space)
                if self._analyse is not None:
                    chunk = replace(chunk, terms=self._analyse(chunk))
                items.append(Item(chunk.id, document(chunk, space, vector)))
            write(self._cluster, new, items, alias=False)
            count += len(items)
        self._cluster.ask("POST", f"/{new}/_refresh")
        stored = self._cluster.ask("GET", f"/{new}/_count", params={"filter_path": "count"}).body["count"]
        if stored != count:
            raise Unavailable(f"the copy of an index holds {stored} chunks, the index {count}")
        return count
