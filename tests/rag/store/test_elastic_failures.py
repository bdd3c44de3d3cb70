"""What the Elasticsearch store does while its cluster does not do what it should. Real nodes, one of this module's own to harm."""

import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from rag.deadline import within
from rag.errors import DeadlineExceeded, Unavailable
from rag.store.elastic import Cluster
from rag.store.elastic_index import Layout
from rag.store.elastic_store import ElasticStore
from rag.types import Chunk, ChunkSelector, ChunkTerms, SearchRequest, Term
from tests.services.elasticsearch import Node, elasticsearch, elasticsearch_cluster
from tests.services.machine import free_port

TENANT = "c" * 32
INDEX = f"millrace-{TENANT}-m1-a"
EVERY = ChunkSelector(dataset_ids=("d1",))


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with elasticsearch() as running:
        yield running


@pytest.fixture
def store(node: Node) -> Iterator[ElasticStore]:
    made = open_store(node)
    yield made
    made.close()
    with closing(open_store(node)) as again:
        again.drop_tenant(TENANT)


def open_store(*nodes: Node, **options) -> ElasticStore:
    return ElasticStore(Cluster([node.url for node in nodes], timeout_seconds=20.0), Layout(**options))


def chunks(*numbers: int, text: str = "word") -> list[Chunk]:
    return [Chunk(f"{n:016x}", "d1", "doc1", "doc1.txt", text, ChunkTerms(content=text)) for n in numbers]


def vectors(count: int) -> np.ndarray:
    return np.ones((count, 4), np.float32)


def found(store: ElasticStore) -> set[int]:
    request = SearchRequest(TENANT, ("d1",), terms=(Term("word"),), vector=np.full(4, 0.5, np.float32), space="space")
    hits = store.search(request)
    assert hits.degraded == ()
    return set(hits.ids.tolist())


CALLS = {
    "put": lambda store: store.put(TENANT, chunks(1), vectors(1), "space"),
    "put keeping vectors": lambda store: store.put(TENANT, chunks(1), None, ""),
    "replace": lambda store: store.replace(TENANT, chunks(1), chunks(1, text="other"), None, ""),
    "delete": lambda store: store.delete(TENANT, EVERY),
    "take": lambda store: store.take(TENANT, EVERY),
    "set_available": lambda store: store.set_available(TENANT, EVERY, False),
    "flush": lambda store: store.flush(TENANT),
    "search": found,
    "get": lambda store: store.get(TENANT, [f"{1:016x}"]),
    "vectors": lambda store: store.vectors(TENANT, [f"{1:016x}"], "space"),
    "list": lambda store: store.list(TENANT, "doc1"),
    "count": lambda store: store.count(TENANT, EVERY),
    "drop_tenant": lambda store: store.drop_tenant(TENANT),
}
WRITES = ("put", "put keeping vectors", "replace", "set_available")  # deletes make room, Elasticsearch lets them through


# ---------------------------------------------------------------------------------------------------- down
@pytest.mark.parametrize("call", CALLS)
def test_a_cluster_that_is_down_is_unavailable(call):
    store = ElasticStore(Cluster([f"http://127.0.0.1:{free_port()}"]))
    with pytest.raises(Unavailable):
        CALLS[call](store)
    assert store.health()["status"] == "red"
    store.close()


def test_a_dead_cluster_is_asked_no_more_for_a_while():
    store = ElasticStore(Cluster([f"http://127.0.0.1:{free_port()}"]))
    for _ in range(5):
        with pytest.raises(Unavailable):
            store.flush(TENANT)
    with pytest.raises(Unavailable, match="left alone") as refused:
        store.flush(TENANT)
    assert refused.value.retry_after_seconds >= 1
    store.close()


def test_a_cluster_that_was_away_for_long_is_asked_every_ten_seconds():
    now = 0.0
    store = ElasticStore(Cluster([f"http://127.0.0.1:{free_port()}"], clock=lambda: now))
    for _ in range(5):
        with pytest.raises(Unavailable):
            store.flush(TENANT)
    for _ in range(10):
        now += 10.0
        with pytest.raises(Unavailable, match="cannot be reached"):
            store.flush(TENANT)
    store.close()


def test_what_was_acknowledged_is_there_after_a_kill(node, store):
    store.put(TENANT, chunks(*range(40)), vectors(40), "space")
    store.put(TENANT, chunks(*range(40, 60)), vectors(20), "space", wait=False)  # not refreshed: only in the log
    node.kill()
    with pytest.raises(Unavailable):
        found(store)
    node.start()
    again = open_store(node)
    again.flush(TENANT)
    assert found(again) == set(range(60))
    assert not np.isnan(again.vectors(TENANT, [f"{n:016x}" for n in range(60)], "space")).any()
    again.close()


# ---------------------------------------------------------------------------------------------------- slow
@pytest.mark.parametrize("call", CALLS)
def test_a_cluster_that_does_not_answer_costs_the_deadline_and_no_more(node, call):
    store = open_store(node)
    store.put(TENANT, chunks(1), vectors(1), "space")
    node.stop_in_its_tracks()
    try:
        started = time.monotonic()
        with within(0.4), pytest.raises((Unavailable, DeadlineExceeded)):
            CALLS[call](store)
        assert time.monotonic() - started < 1.0
    finally:
        node.go_on()
        store.close()
    again = open_store(node)
    assert again.count(TENANT, EVERY) in (0, 1)
    again.drop_tenant(TENANT)
    again.close()


def test_a_cluster_that_does_not_answer_is_red(node, store):
    node.stop_in_its_tracks()
    try:
        assert store.health() == {"type": "elasticsearch", "status": "red", "error": "elasticsearch gave no answer in time"}
    finally:
        node.go_on()


def test_no_time_left_asks_nothing(store):
    with within(0.0), pytest.raises(DeadlineExceeded):
        store.count(TENANT, EVERY)


# ---------------------------------------------------------------------------------------------------- red
def test_a_red_index_is_unavailable_for_its_tenant_alone(node, store):
    store.put(TENANT, chunks(1), vectors(1), "space")
    make_red(node, "e" * 32)
    for _ in range(8):
        with within(2.0), pytest.raises((Unavailable, DeadlineExceeded)):
            store.search(SearchRequest("e" * 32, ("d1",), terms=(Term("word"),)))
    assert store.health() == {
        "type": "elasticsearch", "status": "yellow", "error": "shards of elasticsearch are missing for 1 of 2 tenants",
    }  # fmt: skip
    assert found(store) == {1}
    fill_disk(node)
    assert store.health()["status"] == "yellow"
    assert store.health()["error"].startswith("shards of elasticsearch are missing for 1 of 2 tenants; an elasticsearch index takes no")
    store.drop_tenant(TENANT)
    assert store.health() == {
        "type": "elasticsearch", "status": "red", "error": "shards of elasticsearch are missing for 1 of 1 tenants",
    }  # fmt: skip
    store.drop_tenant("e" * 32)
    assert store.health() == {"type": "elasticsearch", "status": "green"}


def make_red(node: Node, tenant_id: str) -> None:
    """An index whose shard no node may hold."""
    node.ask("PUT", f"/millrace-{tenant_id}-m1-a?wait_for_active_shards=0&timeout=1s", {
        "settings": {"index.routing.allocation.require._name": "nowhere", "number_of_replicas": 0},
        "mappings": {"dynamic": "strict", "properties": {"id": {"type": "long"}, "dataset": {"type": "keyword"}}},
        "aliases": {f"millrace-{tenant_id}": {"is_write_index": True}},
    })  # fmt: skip


# ---------------------------------------------------------------------------------------------------- read-only
def test_a_full_disk_refuses_writes_and_still_finds(node, store):
    before = chunks(*range(3))
    store.put(TENANT, before, vectors(3), "space")
    for call in WRITES:
        fill_disk(node)
        with pytest.raises(Unavailable, match="takes no writes"):
            CALLS[call](store)
    assert found(store) == {0, 1, 2}
    assert store.get(TENANT, [chunk.id for chunk in before]) == before
    fill_disk(node)
    assert store.health()["status"] == "yellow"
    assert "takes no writes" in store.health()["error"]
    node.ask("PUT", f"/{INDEX}/_settings", {"index.blocks.read_only_allow_delete": None})
    store.put(TENANT, chunks(3), vectors(1), "space")
    assert found(store) == {0, 1, 2, 3}
    assert store.health()["status"] == "green"


def fill_disk(node: Node) -> None:
    """What Elasticsearch does to indexes on a full disk. It looks every half minute whether the disk still is, and here it is not."""
    node.ask("PUT", f"/{INDEX}/_settings", {"index.blocks.read_only_allow_delete": True})


# ---------------------------------------------------------------------------------------------------- a node of three
@pytest.mark.slow
def test_one_node_of_three_may_die():
    with elasticsearch_cluster(3) as nodes:
        store = open_store(*nodes)
        store.put(TENANT, chunks(*range(50)), vectors(50), "space")
        nodes[0].wait("green", 3)
        nodes[1].kill()
        acknowledged, refused = set(range(50)), 0
        deadline = time.monotonic() + 60
        number = 50
        while time.monotonic() < deadline and number < 80:
            started = time.monotonic()
            try:
                with within(5.0):
                    store.put(TENANT, chunks(number), vectors(1), "space")
                    acknowledged.add(number)
                    number += 1
                    assert found(store) >= acknowledged
            except (Unavailable, DeadlineExceeded):
                refused += 1
            assert time.monotonic() - started < 6.0
        assert number == 80
        nodes[0].wait("yellow", 2)
        assert found(store) == acknowledged
        store.close()
