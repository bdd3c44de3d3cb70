"""How a tenant's index comes to the present layout. A real node; an index of an older one is made behind the store's back."""

import uuid
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from rag.errors import Unavailable
from rag.store.elastic import Cluster
from rag.store.elastic_index import Indexes, Layout
from rag.store.elastic_store import ElasticStore
from rag.store.mapping import alias_of, has_present_layout, index_of
from rag.types import Chunk, ChunkSelector, ChunkTerms, SearchRequest, Term
from tests.services.elasticsearch import Node

TENANT = "9" * 32
SPACE = "space"
EVERY = ChunkSelector(dataset_ids=("d1",))


@pytest.fixture
def layout(elasticsearch_node: Node) -> Iterator[Layout]:
    made = Layout(prefix=f"{uuid.uuid4().hex}-", analyser_version="2")
    yield made
    with_store(elasticsearch_node, made, lambda store: store.drop_tenant(TENANT))


def with_store(node: Node, layout: Layout, use):
    store = ElasticStore(Cluster([node.url]), layout, analyse=anew)
    try:
        return use(store)
    finally:
        store.close()


def anew(chunk: Chunk) -> ChunkTerms:
    return ChunkTerms(content=f"{chunk.content} anew")


def old_chunks() -> list[Chunk]:
    return [
        Chunk(
            f"{n:016x}", "d1", "doc1", "doc1.txt", f"text {n}", ChunkTerms(content=f"text old{n}"), version=1, position=n, available=n != 3
        )
        for n in range(1200)
    ]


def fill_old(node: Node, layout: Layout) -> None:
    """The tenant's index as a server with another analysis left it: some chunks have vectors of one space, some of another, some none."""
    old = replace(layout, analyser_version="1")

    def use(store: ElasticStore) -> None:
        every = old_chunks()
        rng = np.random.default_rng(1)
        store.put(TENANT, every[:500], rng.standard_normal((500, 8)).astype(np.float32), SPACE)
        store.put(TENANT, every[500:1000], rng.standard_normal((500, 3)).astype(np.float32), "other")
        store.put(TENANT, every[1000:], None, "")

    with_store(node, old, use)


def moved(node: Node, layout: Layout) -> ElasticStore:
    """A store whose first call has moved the index."""
    store = ElasticStore(Cluster([node.url]), layout, analyse=anew)
    with pytest.raises(Unavailable, match="being moved") as refused:
        store.count(TENANT, EVERY)
    assert refused.value.retry_after_seconds > 0
    store._indexes.close()  # waits for the move
    return store


def found(store: ElasticStore, word: str, **fields) -> set[int]:
    return set(store.search(SearchRequest(TENANT, ("d1",), terms=(Term(word),), **fields)).ids.tolist())


def test_an_older_index_is_copied_with_its_vectors_and_analysed_anew(elasticsearch_node, layout):
    fill_old(elasticsearch_node, layout)
    before = with_store(elasticsearch_node, replace(layout, analyser_version="1"), lambda store: store.vectors(TENANT, ids(10), SPACE))
    store = moved(elasticsearch_node, layout)
    assert store.count(TENANT, EVERY) == 1200
    assert store.get(TENANT, ids(1200)) == [replace(chunk, terms=anew(chunk)) for chunk in old_chunks()]
    assert (store.vectors(TENANT, ids(10), SPACE) == before).all()
    assert not np.isnan(store.vectors(TENANT, ids(1000)[500:], "other")).any()
    assert found(store, "old7") == set()
    assert found(store, "anew", text_k=2000) == set(range(1200)) - {3}
    hits = store.search(SearchRequest(TENANT, ("d1",), vector=before[7], space=SPACE, vector_k=1))
    assert hits.ids.tolist() == [7]
    names = elasticsearch_node.ask("GET", f"/{layout.prefix}{TENANT}-*/_alias")
    assert len(names) == 1
    store.put(TENANT, old_chunks()[:1], None, "")  # the copy takes writes
    store.close()


def test_an_index_that_cannot_be_copied_stays_in_use_as_it_was(elasticsearch_node, layout):
    fill_old(elasticsearch_node, layout)

    def broken(_: Chunk) -> ChunkTerms:
        raise Unavailable("the analysis is out of order")

    cluster = Cluster([elasticsearch_node.url])
    indexes = Indexes(cluster, layout, broken)
    old = f"{layout.prefix}{TENANT}-m1-a1"
    with pytest.raises(Unavailable, match="out of order"):
        indexes.move(TENANT, old)
    cluster.close()
    assert list(elasticsearch_node.ask("GET", f"/{layout.prefix}{TENANT}-*/_alias")) == [old]
    store = moved(elasticsearch_node, layout)
    assert store.count(TENANT, EVERY) == 1200
    store.close()


def test_of_two_processes_that_move_an_index_one_is_taken(elasticsearch_node, layout):
    fill_old(elasticsearch_node, layout)
    cluster = Cluster([elasticsearch_node.url])
    old = f"{layout.prefix}{TENANT}-m1-a1"
    first, second = Indexes(cluster, layout, anew), Indexes(cluster, layout, anew)

    class Overtaken(Indexes):
        def _copy(self, old_name: str, new: str) -> int:
            count = super()._copy(old_name, new)
            assert first.move(TENANT, old) == 1200
            return count

    with pytest.raises(Unavailable):
        Overtaken(cluster, layout, anew).move(TENANT, old)
    assert second.exists(TENANT)
    assert len(elasticsearch_node.ask("GET", f"/{layout.prefix}{TENANT}-*/_alias")) == 1
    assert with_store(elasticsearch_node, layout, lambda store: store.count(TENANT, EVERY)) == 1200
    cluster.close()


def ids(count: int) -> list[str]:
    return [f"{n:016x}" for n in range(count)]


def test_an_index_of_an_analysis_whose_name_begins_alike_is_of_another_layout():
    alias = alias_of("millrace-", TENANT)
    first = index_of(alias, "1")
    assert has_present_layout(first, alias, "1")
    assert has_present_layout(f"{first}-0a1b2c3d", alias, "1")
    assert not has_present_layout(index_of(alias, "10"), alias, "1")
