"""A whole server over Elasticsearch: documents are found, and what callers see while the cluster is away."""

import time
from collections.abc import Iterator

import pytest

from tests.e2e.flows import create_dataset, ingest, ok
from tests.e2e.server_process import ServerProcess
from tests.services.elasticsearch import Node, elasticsearch

TEXT = b"The lighthouse of Alexandria stood on the island of Pharos. It was built under Ptolemy II."
QUESTION = "Where did the lighthouse stand?"


@pytest.fixture
def node() -> Iterator[Node]:
    with elasticsearch() as running:
        yield running


def ask(server: ServerProcess, dataset_id: str) -> tuple[int, dict]:
    return server.call("POST", "/retrieval", {"question": QUESTION, "dataset_ids": [dataset_id]})


def ask_until(server: ServerProcess, dataset_id: str, status: int, seconds: float = 60.0) -> dict:
    deadline = time.monotonic() + seconds
    while True:
        started = time.monotonic()
        got, body = ask(server, dataset_id)
        assert got in (200, 503), body
        assert time.monotonic() - started < 10.0
        if got == status:
            return body
        assert time.monotonic() < deadline, body
        time.sleep(0.2)


@pytest.mark.slow
def test_a_server_lives_through_the_death_of_its_cluster(start, node):
    server = start(environ={
        "MILLRACE_STORE": "elasticsearch", "MILLRACE_ELASTICSEARCH_HOSTS": node.url, "MILLRACE_REQUEST_TIMEOUT_SECONDS": "5",
    })  # fmt: skip
    dataset_id = create_dataset(server, "wonders")
    ingest(server, dataset_id, {"alexandria.txt": TEXT})
    found = ok(ask(server, dataset_id))
    assert found["total"] == 1
    assert "Pharos" in found["chunks"][0]["content"]

    node.kill()
    refused = ask_until(server, dataset_id, 503)
    assert "elasticsearch" in refused["message"]
    assert server.get("/readyz")[0] == 503
    assert b"elasticsearch" in server.get("/readyz")[1]

    node.start()
    assert ok((200, ask_until(server, dataset_id, 200)))["total"] == 1
    assert server.get("/readyz")[0] == 200

    node.stop_in_its_tracks()
    try:
        started = time.monotonic()
        status, _ = ask(server, dataset_id)
        assert status == 503
        assert time.monotonic() - started < 8.0
        assert server.get("/healthz")[0] == 200
    finally:
        node.go_on()
    assert ok((200, ask_until(server, dataset_id, 200)))["total"] == 1
