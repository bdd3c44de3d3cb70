"""Services that tests of several folders share; each is started when the first test asks for it."""

from collections.abc import Iterator

import pytest

from tests.services.elasticsearch import Node, elasticsearch


@pytest.fixture(scope="session")
def elasticsearch_node() -> Iterator[Node]:
    """A running Elasticsearch node. Tests keep apart by index prefixes and do it no harm."""
    with elasticsearch() as node:
        yield node
