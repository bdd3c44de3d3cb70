"""A vendor that fails as told, a transport, lanes, and real models."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from load.vendor_simulator import VendorSimulator
from rag.llm.local import LocalEmbedder
from rag.llm.model_directory import bundled_model_path, read_model_directory
from rag.llm.transport import Transport, open_client
from rag.threads import Lane
from tests.model_server import model_server


@pytest.fixture
async def vendor() -> AsyncIterator[VendorSimulator]:
    async with VendorSimulator().listen() as simulator:
        yield simulator


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    async with open_client() as client:
        yield Transport(client)


@pytest.fixture(scope="session")
def query_lane() -> Iterator[Lane]:
    lane = Lane("query", 2, 64)
    yield lane
    lane.close()


@pytest.fixture(scope="session")
def document_lane() -> Iterator[Lane]:
    lane = Lane("document", 1, 64)
    yield lane
    lane.close()


@pytest.fixture(scope="session")
def graph_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty at first: a graph kept from an earlier run would hide what the builder does now."""
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="session")
def minilm(query_lane: Lane, document_lane: Lane, graph_cache: Path) -> LocalEmbedder:
    directory = read_model_directory(bundled_model_path())
    return LocalEmbedder("all-MiniLM-L6-v2", directory, graph_cache, query_lane, document_lane, languages=("en",))


@pytest.fixture(scope="session")
def chat_server() -> Iterator[str]:
    with model_server("chat") as base_url:
        yield base_url


@pytest.fixture(scope="session")
def embedding_server() -> Iterator[str]:
    with model_server("embedding") as base_url:
        yield base_url
