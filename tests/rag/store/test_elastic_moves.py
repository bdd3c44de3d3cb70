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
    assert not held(elasticsearch_node, old)
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


class Killed(BaseException):
    """The process ends here: nothing is put in order."""


class Dying(Cluster):
    """A cluster for a process that is killed when it asks for a path that ends so; from then on it asks for nothing."""

    last = ""
    dead = False

    def ask(self, method: str, path: str, *args, **options):
        self.dead |= bool(self.last) and f"{method} {path}".endswith(self.last)
        if self.dead:
            raise Killed
        return super().ask(method, path, *args, **options)


def held(node: Node, index: str) -> bool:
    """Whether the index takes no writes."""
    return "blocks" in node.ask("GET", f"/{index}/_settings")[index]["settings"]["index"]


def killed_at(node: Node, layout: Layout, last: str) -> str:
    """A process that moves the index ends before it asks this; the old index' name."""
    fill_old(node, layout)
    old = f"{layout.prefix}{TENANT}-m1-a1"
    cluster = Dying([node.url])
    cluster.last = last
    with pytest.raises(Killed):
        Indexes(cluster, layout, anew).move(TENANT, old)
    cluster.close()
    assert held(node, old)
    return old


def test_after_a_kill_the_older_release_takes_writes_again(elasticsearch_node, layout):
    old = killed_at(elasticsearch_node, layout, "POST /_aliases")
    before = ElasticStore(Cluster([elasticsearch_node.url]), replace(layout, analyser_version="1"))
    assert before.count(TENANT, EVERY) == 1200
    assert not held(elasticsearch_node, old)
    before.put(TENANT, old_chunks()[:1], None, "")
    before.close()


def test_after_a_kill_the_move_begins_anew(elasticsearch_node, layout):
    killed_at(elasticsearch_node, layout, "POST /_aliases")
    store = moved(elasticsearch_node, layout)
    assert store.count(TENANT, EVERY) == 1200
    (name,) = elasticsearch_node.ask("GET", f"/{layout.prefix}{TENANT}-*/_alias")
    assert not held(elasticsearch_node, name)
    assert store.health()["status"] == "green"
    store.close()


def test_an_index_whose_copy_is_in_use_already_is_removed_by_the_next_start(elasticsearch_node, layout):
    old = killed_at(elasticsearch_node, layout, "-*/_alias")  # asked when the alias stands before the copy
    store = ElasticStore(Cluster([elasticsearch_node.url]), layout, analyse=anew)
    assert store.count(TENANT, EVERY) == 1200
    assert old not in elasticsearch_node.ask("GET", f"/{layout.prefix}{TENANT}-*/_alias")
    assert store.health()["status"] == "green"
    store.close()


def test_a_switch_whose_answer_is_lost_removes_nothing(elasticsearch_node, layout):
    fill_old(elasticsearch_node, layout)

    class Deaf(Cluster):
        def ask(self, method: str, path: str, *args, **options):
            reply = super().ask(method, path, *args, **options)
            if path == "/_aliases":
                raise Unavailable("elasticsearch gave no answer in time")
            return reply

    cluster = Deaf([elasticsearch_node.url])
    with pytest.raises(Unavailable, match="no answer"):
        Indexes(cluster, layout, anew).move(TENANT, f"{layout.prefix}{TENANT}-m1-a1")
    cluster.close()
    assert with_store(elasticsearch_node, layout, lambda store: store.count(TENANT, EVERY)) == 1200
    assert len(elasticsearch_node.ask("GET", f"/{layout.prefix}{TENANT}-*/_alias")) == 1


def test_a_block_that_is_not_of_a_move_stays(elasticsearch_node, layout):
    fill_old(elasticsearch_node, layout)
    old = f"{layout.prefix}{TENANT}-m1-a1"
    elasticsearch_node.ask("PUT", f"/{old}/_block/write")
    with_store(elasticsearch_node, replace(layout, analyser_version="1"), lambda store: store.count(TENANT, EVERY))
    assert held(elasticsearch_node, old)


def test_what_is_written_while_an_index_is_copied_is_not_lost(elasticsearch_node, layout):
    fill_old(elasticsearch_node, layout)
    old = f"{layout.prefix}{TENANT}-m1-a1"

    class Disturbed(Indexes):
        def _copy(self, old_name: str, new: str) -> int:
            count = super()._copy(old_name, new)
            elasticsearch_node.ask("PUT", f"/{old}/_settings", {"index.blocks.write": None})  # a server of the older release
            elasticsearch_node.ask("DELETE", f"/{old}/_doc/{0:016x}")
            return count

    cluster = Cluster([elasticsearch_node.url])
    with pytest.raises(Unavailable, match="changed while it was copied"):
        Disturbed(cluster, layout, anew).move(TENANT, old)
    cluster.close()
    store = moved(elasticsearch_node, layout)
    assert store.count(TENANT, EVERY) == 1199
    store.close()


def ids(count: int) -> list[str]:
    return [f"{n:016x}" for n in range(count)]


def test_an_index_of_an_analysis_whose_name_begins_alike_is_of_another_layout():
    alias = alias_of("millrace-", TENANT)
    first = index_of(alias, "1")
    assert has_present_layout(first, alias, "1")
    assert has_present_layout(f"{first}-0a1b2c3d", alias, "1")
    assert not has_present_layout(index_of(alias, "10"), alias, "1")
