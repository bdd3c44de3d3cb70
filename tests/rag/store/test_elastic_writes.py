"""Bulk writes that Elasticsearch takes only in part. A real node, behind a connection that refuses items in its name."""

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import orjson
import pytest

from rag.deadline import within
from rag.errors import InvalidArgument, Unavailable
from rag.store.elastic import Cluster, Reply
from rag.store.elastic_index import Layout
from rag.store.elastic_store import ElasticStore
from rag.store.elastic_write import Item, write
from rag.types import Chunk, ChunkSelector, ChunkTerms
from tests.services.elasticsearch import Node

TENANT = "d" * 32
EVERY = ChunkSelector(dataset_ids=("d1",))
BUSY = {"status": 429, "error": {"type": "es_rejected_execution_exception"}}
REFUSED = {"status": 400, "error": {"type": "document_parsing_exception"}}


class Moody(Cluster):
    """Keeps items of a bulk request from the node, as long as `refuse(id, turn)` gives an answer for them."""

    def __init__(self, url: str, refuse: Callable[[str, int], dict | None]) -> None:
        super().__init__([url])
        self.refuse, self.turn, self.bodies = refuse, 0, []

    def ask(self, method: str, path: str, body: bytes | None = None, **rest) -> Reply:
        if not path.endswith("/_bulk"):
            return super().ask(method, path, body, **rest)
        self.turn += 1
        self.bodies.append(body)
        passed, answers = [], []
        lines = iter(body.splitlines(keepends=True))
        for action in lines:
            ((verb, about),) = orjson.loads(action).items()
            item = [action] if verb == "delete" else [action, next(lines)]
            answers.append(self.refuse(about["_id"], self.turn))
            if answers[-1] is None:
                passed += item
        taken = iter(super().ask(method, path, b"".join(passed), **rest).body["items"] if passed else ())
        return Reply(200, {"items": [{"index": answer} if answer else next(taken) for answer in answers]})


@pytest.fixture
def layout(elasticsearch_node: Node) -> Iterator[Layout]:
    made = Layout(prefix=f"{uuid.uuid4().hex}-")
    yield made
    store = ElasticStore(Cluster([elasticsearch_node.url]), made)
    store.drop_tenant(TENANT)
    store.close()


def chunks(count: int, text: str = "word") -> list[Chunk]:
    return [Chunk(f"{n:016x}", "d1", "doc1", "doc1.txt", text, ChunkTerms(content=text)) for n in range(count)]


def put(store: ElasticStore, count: int) -> None:
    store.put(TENANT, chunks(count), np.ones((count, 4), np.float32), "space")


def test_items_refused_by_a_busy_cluster_are_sent_again_and_only_those(elasticsearch_node, layout):
    cluster = Moody(elasticsearch_node.url, lambda id_, turn: BUSY if turn < 3 and int(id_, 16) % 2 else None)
    store = ElasticStore(cluster, layout)
    put(store, 20)
    assert store.count(TENANT, EVERY) == 20
    assert [body.count(b"\n") for body in cluster.bodies] == [40, 20, 20]
    store.close()


def test_a_cluster_that_stays_busy_is_unavailable_within_the_deadline(elasticsearch_node, layout):
    store = ElasticStore(Moody(elasticsearch_node.url, lambda id_, turn: BUSY if id_.endswith("3") else None), layout)
    put(store, 1)
    with within(4.0), pytest.raises(Unavailable, match="overloaded"):
        put(store, 10)
    assert store.count(TENANT, EVERY) == 9
    store.close()


def test_an_item_that_is_refused_for_good_raises_and_the_put_can_be_repeated(elasticsearch_node, layout):
    store = ElasticStore(Moody(elasticsearch_node.url, lambda id_, turn: REFUSED if turn == 1 and id_.endswith("3") else None), layout)
    with pytest.raises(Unavailable, match="document_parsing_exception"):
        put(store, 10)
    put(store, 10)
    assert store.count(TENANT, EVERY) == 10
    assert store.get(TENANT, [chunk.id for chunk in chunks(10)]) == chunks(10)
    store.close()


@pytest.mark.parametrize("call", ["delete", "take"])
def test_deletes_refused_by_a_busy_cluster_are_counted_once(elasticsearch_node, layout, call):
    cluster = Moody(elasticsearch_node.url, lambda id_, turn: BUSY if turn == 2 and int(id_, 16) % 2 else None)
    store = ElasticStore(cluster, layout)
    put(store, 10)
    removed = getattr(store, call)(TENANT, EVERY)
    assert (removed if call == "delete" else len(removed)) == 10
    assert store.count(TENANT, EVERY) == 0
    store.close()


def test_what_several_take_at_once_each_gets_once(elasticsearch_node, layout):
    store = ElasticStore(Cluster([elasticsearch_node.url]), layout)
    put(store, 300)
    start, taken, failures = threading.Barrier(4), [], []

    def work() -> None:
        start.wait()
        try:
            taken.extend(chunk.id for chunk in store.take(TENANT, EVERY))
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(taken) == [chunk.id for chunk in chunks(300)]
    store.close()


def test_a_chunk_that_changes_before_it_is_deleted_is_looked_at_again(elasticsearch_node, layout):
    class Late(Cluster):
        """Another process moves a chunk to another dataset just before each bulk delete."""

        def ask(self, method: str, path: str, body: bytes | None = None, **rest) -> Reply:
            if path.endswith("/_bulk") and body.startswith(b'{"delete"'):
                other.put(TENANT, [replace(chunks(3)[2], dataset_id="d2")], None, "")
            return super().ask(method, path, body, **rest)

    store, other = ElasticStore(Late([elasticsearch_node.url]), layout), ElasticStore(Cluster([elasticsearch_node.url]), layout)
    put(store, 3)
    assert store.delete(TENANT, EVERY) == 2
    assert other.count(TENANT, ChunkSelector(dataset_ids=("d2",))) == 1
    store.close()
    other.close()


def test_a_tenant_dropped_by_another_process_begins_again(elasticsearch_node, layout):
    store, other = (ElasticStore(Cluster([elasticsearch_node.url]), layout) for _ in range(2))
    put(store, 3)
    other.drop_tenant(TENANT)
    put(store, 2)
    assert other.count(TENANT, EVERY) == 2
    assert not np.isnan(other.vectors(TENANT, [f"{1:016x}"], "space")).any()
    store.close()
    other.close()


def test_another_process_may_bring_a_space(elasticsearch_node, layout):
    store, other = (ElasticStore(Cluster([elasticsearch_node.url]), layout) for _ in range(2))
    put(store, 1)
    other.put(TENANT, chunks(2), np.ones((2, 3), np.float32), "second")
    assert store.vectors(TENANT, [f"{1:016x}"], "second").shape == (1, 3)
    with pytest.raises(InvalidArgument):
        store.put(TENANT, chunks(1), np.ones((1, 5), np.float32), "second")
    store.close()
    other.close()


def test_a_large_put_goes_in_bounded_pieces(elasticsearch_node, layout):
    cluster = Moody(elasticsearch_node.url, lambda id_, turn: None)
    store = ElasticStore(cluster, layout)
    store.put(TENANT, chunks(60, "word " * 40_000), None, "")
    assert max(len(body) for body in cluster.bodies) <= 5 << 20
    assert store.count(TENANT, EVERY) == 60
    store.close()


def test_pauses_grow_while_the_cluster_is_busy():
    class Busy:
        def ask(self, *_, **__) -> Reply:
            return Reply(429, {"error": {"type": "es_rejected_execution_exception"}})

    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 7:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        write(Busy(), "index", [Item("a", b"{}")], pause=pause)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.0, 3.0]
