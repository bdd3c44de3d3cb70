"""Which versions of the services behind a server will do."""

from dataclasses import replace

import pytest

from api import versions
from api.versions import Version
from rag.store.elastic import Cluster
from rag.store.elastic_store import ElasticStore
from tests.api.conftest import Server
from tests.services.elasticsearch import Node


@pytest.mark.parametrize(
    ("name", "text", "will_do"),
    [
        ("postgresql", "15.8 (Debian 15.8-1)", True),
        ("postgresql", "13beta1", True),
        ("postgresql", "12.22", False),
        ("mysql", "8.4.0", True),
        ("mysql", "8.0.16", False),
        ("mysql", "5.7.44-log", False),
        ("mariadb", "10.11.6-MariaDB-0+deb12u1", True),
        ("mariadb", "10.5.23-MariaDB", False),
        ("elasticsearch", "8.12.0", True),
        ("elasticsearch", "8.11.4", False),
        ("elasticsearch with flat vectors", "8.13.0", True),
        ("elasticsearch with flat vectors", "8.12.2", False),
        ("elasticsearch", "9.0.1", True),
        ("elasticsearch", "8.9.2", False),
        ("elasticsearch", "", False),
    ],
)
def test_an_older_service_than_the_oldest_that_will_do_is_told(name: str, text: str, will_do: bool) -> None:
    assert Version(name, text).will_do is will_do


@pytest.mark.parametrize(("text", "told"), [("8.12.2", True), ("8.13.0", False), ("8.11.4", False), ("9.1.0", False), ("", False)])
def test_an_elasticsearch_that_does_without_flat_vectors_is_told_of(text: str, told: bool) -> None:
    assert bool(Version("elasticsearch", text).lacks) is told
    assert not Version("elasticsearch with flat vectors", text).lacks


async def test_the_database_says_what_it_is(api: Server) -> None:
    (found,) = await versions.of(api.parts)
    assert found.name == "sqlite"
    assert found.will_do


@pytest.mark.parametrize(("vectors", "name"), [
    ("auto", "elasticsearch"), ("int8_hnsw", "elasticsearch"), ("flat", "elasticsearch with flat vectors"),
])  # fmt: skip
async def test_the_kind_of_vectors_decides_which_elasticsearch_will_do(
    api: Server, elasticsearch_node: Node, vectors: str, name: str
) -> None:
    settings = api.parts.settings.model_copy(update={"elasticsearch_vectors": vectors})
    store = ElasticStore(Cluster([elasticsearch_node.url]))
    _, found = await versions.of(replace(api.parts, settings=settings, store=store))
    store.close()
    assert found.name == name
    assert found.will_do
