"""How a new index finds vectors, where the cluster knows `flat` and where it does not. A real node, and one made to seem older."""

import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from rag.errors import Unavailable
from rag.store.elastic import Cluster, Reply
from rag.store.elastic_index import Indexes, Layout, VectorField
from rag.store.elastic_store import ElasticStore
from rag.types import Chunk, ChunkTerms, SearchRequest
from tests.services.elasticsearch import Node

TENANT, SPACE = "e" * 32, "space"


class Older(Cluster):
    """Refuses flat vectors, as Elasticsearch before 8.13 does."""

    def ask(self, method: str, path: str, body: bytes | None = None, **rest) -> Reply:
        if path.endswith("/_mapping") and b'"flat"' in (body or b""):
            return Reply(400, {"error": {"type": "mapper_parsing_exception"}, "status": 400})
        return super().ask(method, path, body, **rest)


@pytest.fixture
def layout(elasticsearch_node: Node) -> Iterator[Layout]:
    made = Layout(prefix=f"{uuid.uuid4().hex}-")
    yield made
    with closing(ElasticStore(Cluster([elasticsearch_node.url]), made)) as store:
        store.drop_tenant(TENANT)


def fill(store: ElasticStore) -> None:
    chunks = [Chunk(f"{n:016x}", "d1", "doc1", "doc1.txt", "word", ChunkTerms(content="word")) for n in range(20)]
    store.put(TENANT, chunks, np.eye(20, dtype=np.float32), SPACE)


def nearest(store: ElasticStore) -> int:
    found = store.search(SearchRequest(TENANT, ("d1",), vector=np.eye(20, dtype=np.float32)[7], space=SPACE, vector_k=5))
    return int(found.ids[np.argmax(found.vector_scores)])


def field(node: Node, layout: Layout) -> VectorField:
    with closing(Cluster([node.url])) as cluster:
        return Indexes(cluster, layout).field(TENANT, SPACE)


def test_a_server_that_knows_no_flat_vectors_finds_them_by_hnsw_without_a_setting(elasticsearch_node, layout):
    with closing(ElasticStore(Older([elasticsearch_node.url]), layout)) as store:
        fill(store)
        assert nearest(store) == 7
    assert field(elasticsearch_node, layout) == VectorField(20, exact=False)


def test_flat_vectors_that_were_asked_for_by_name_are_not_replaced(elasticsearch_node, layout):
    store = ElasticStore(Older([elasticsearch_node.url]), replace(layout, vectors="flat"))
    with closing(store), pytest.raises(Unavailable, match=r"flat needs 8\.13"):
        fill(store)


@pytest.mark.parametrize("vectors", ["flat", "hnsw"])
def test_an_index_stays_what_it_was_made_as_whatever_the_setting_becomes(elasticsearch_node, layout, vectors):
    with closing(ElasticStore(Cluster([elasticsearch_node.url]), replace(layout, vectors=vectors))) as store:
        fill(store)
    other = replace(layout, vectors="hnsw" if vectors == "flat" else "flat")
    with closing(ElasticStore(Cluster([elasticsearch_node.url]), other)) as store:
        assert nearest(store) == 7
    assert field(elasticsearch_node, other) == VectorField(20, exact=vectors == "flat")
