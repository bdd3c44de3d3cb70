"""`kill -9` at random moments under load: nothing acknowledged is lost, nothing is there twice, nothing is left over.

A driver uploads, parses and deletes over HTTP and writes down what was acknowledged. The server is killed and started again on
the same data directory, round after round. In the end every acknowledged document is checked by id, by word and by vector.
MILLRACE_TEST_KILL_ROUNDS sets the rounds (10; `make soak`: 100).
"""

import os
import random
import sqlite3
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests

from tests.e2e.flows import create_dataset, documents, ok, retrieve, start_parsing, wait_until_parsed
from tests.e2e.server_process import ServerProcess

ROUNDS = int(os.environ.get("MILLRACE_TEST_KILL_ROUNDS", "10"))
DRIVERS = 3
DOCUMENTS_A_ROUND = 8
LIFE_SECONDS = (0.2, 2.5)
# a short lease, so that what a killed worker held is taken up soon
ENVIRON = {"MILLRACE_LEASE_SECONDS": "2"}
SUBJECTS = ("the tide", "a wheel", "the miller", "barley", "the sluice", "a millstone", "the harbour", "rye flour", "an eel trap")
VERBS = ("drives", "needs", "wears out", "keeps", "waits for", "turns", "fills", "stops")


@dataclass
class Acknowledged:
    """What the server has said yes to. `words` maps a document's id to the word that only it holds; `deleting` are those whose
    deletion was asked for, whether or not the answer came."""

    words: dict[str, str] = field(default_factory=dict)
    parsing: set[str] = field(default_factory=set)
    deleting: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)


class Driver(threading.Thread):
    """A caller that goes on until its server is gone."""

    def __init__(self, server: ServerProcess, dataset_id: str, acknowledged: Acknowledged, seed: str) -> None:
        super().__init__(daemon=True)
        self.headers = {"Authorization": f"Bearer {server.api_key}"}
        self.base = f"{server.url}/api/v1/datasets/{dataset_id}"
        self.acknowledged = acknowledged
        self.random = random.Random(seed)
        self.seed = seed

    def run(self) -> None:
        for number in range(DOCUMENTS_A_ROUND // DRIVERS + 1):
            try:
                self._one_document(f"w{self.seed}n{number}")
            except requests.RequestException:
                return

    def _one_document(self, word: str) -> None:
        text = document_text(word, self.random)
        reply = requests.post(f"{self.base}/documents", headers=self.headers, files={"file": (f"{word}.txt", text)}, timeout=30)
        (document,) = ok((reply.status_code, reply.json()))
        self.acknowledged.words[document["id"]] = word
        ids = [document["id"]]
        ok_or_gone(requests.post(f"{self.base}/chunks", headers=self.headers, json={"document_ids": ids}, timeout=30))
        self.acknowledged.parsing.add(document["id"])
        if self.random.random() < 0.2:
            victim = self.random.choice(sorted(set(self.acknowledged.words) - self.acknowledged.deleting))
            self.acknowledged.deleting.add(victim)
            reply = requests.delete(f"{self.base}/documents", headers=self.headers, json={"ids": [victim]}, timeout=30)
            if reply.status_code == 200:
                self.acknowledged.deleted.add(victim)


def ok_or_gone(reply: requests.Response) -> None:
    """The answer is a success, or says that another driver has deleted the document meanwhile."""
    assert reply.status_code in (200, 404), reply.text


def document_text(word: str, chance: random.Random) -> str:
    """A text of several chunks; its word stands in every one."""
    lines = [
        f"{chance.choice(SUBJECTS).capitalize()} {chance.choice(VERBS)} {chance.choice(SUBJECTS)} {word}, as {word} line {number} says."
        for number in range(chance.randint(3, 40))
    ]
    return "\n".join(lines)


@pytest.mark.soak
@pytest.mark.slow
def test_a_killed_server_loses_nothing_it_acknowledged(start, tmp_path: Path) -> None:
    chance = random.Random(ROUNDS)
    acknowledged = Acknowledged()
    server = start(environ=ENVIRON)
    dataset_id = create_dataset(server, "killed", parser_config={"chunk_token_num": 48})
    for number in range(ROUNDS):
        drivers = [Driver(server, dataset_id, acknowledged, f"{number}d{driver}") for driver in range(DRIVERS)]
        for driver in drivers:
            driver.start()
        time.sleep(chance.uniform(*LIFE_SECONDS))  # the moment of the kill is what is tested
        server.kill()
        for driver in drivers:
            driver.join(timeout=60)
            assert not driver.is_alive()
        server = start(environ=ENVIRON)

    check(server, dataset_id, acknowledged)
    server.stop()
    make_pledges_due(server.data_dir)
    server = start(environ=ENVIRON)
    wait_until_no_task_is_left(server)
    check(server, dataset_id, acknowledged)
    server.stop()
    assert_nothing_is_left_over(server.data_dir)


def check(server: ServerProcess, dataset_id: str, acknowledged: Acknowledged) -> None:
    """Every acknowledged document by id, by word and by vector; no deleted one by any of them; no chunk twice."""
    kept = set(acknowledged.words) - acknowledged.deleting
    listed = documents(server, dataset_id)
    assert kept <= set(listed), f"lost: {kept - set(listed)}"
    assert not acknowledged.deleted & set(listed), "a deleted document is back"
    unparsed = [name for name, document in listed.items() if document["run"] == "UNSTART"]
    assert not set(unparsed) & acknowledged.parsing, "an acknowledged parse request is lost"
    if unparsed:
        start_parsing(server, dataset_id, unparsed)
    states = wait_until_parsed(server, dataset_id, list(listed), seconds=120 + len(listed))
    for document_id, state in states.items():
        check_document(server, dataset_id, document_id, acknowledged.words.get(document_id), state["chunk_count"])
    for document_id in set(acknowledged.words) - set(listed):
        word = acknowledged.words[document_id]
        found = retrieve(server, [dataset_id], word, vector_similarity_weight=0, similarity_threshold=0)
        assert found["total"] == 0, f"a deleted document is found by {word}"
    dataset = ok(server.call("GET", f"/datasets/{dataset_id}"))
    assert dataset["document_count"] == len(listed)
    assert dataset["chunk_count"] == sum(state["chunk_count"] for state in states.values())


def check_document(server: ServerProcess, dataset_id: str, document_id: str, word: str | None, chunk_count: int) -> None:
    data = ok(server.call("GET", f"/datasets/{dataset_id}/documents/{document_id}/chunks?page_size=100"))
    chunks = data["chunks"]
    assert data["total"] == len(chunks) == chunk_count > 0, (document_id, data["total"], chunk_count)
    assert max(Counter(chunk["content"] for chunk in chunks).values()) == 1, f"a chunk of {document_id} is there twice"
    if word is None:  # the upload was stored, but its answer was lost with the server
        return
    by_word = retrieve(server, [dataset_id], word, vector_similarity_weight=0, similarity_threshold=0, page_size=100)
    assert {chunk["id"] for chunk in by_word["chunks"]} == {chunk["id"] for chunk in chunks}, f"by word {word}"
    content = chunks[0]["content"]
    by_vector = retrieve(
        server, [dataset_id], content, vector_similarity_weight=1, similarity_threshold=0, document_ids=[document_id], page_size=100
    )
    assert {chunk["id"] for chunk in by_vector["chunks"]} == {chunk["id"] for chunk in chunks}, f"by vector {word}"
    best = by_vector["chunks"][0]
    assert best["vector_similarity"] > 0.6, (word, best["vector_similarity"])


def make_pledges_due(data_dir: Path) -> None:
    """Let the minute pass after which a worker removes what an interrupted upload left."""
    with closing(sqlite3.connect(data_dir / "millrace.sqlite3")) as connection, connection:
        connection.execute("UPDATE task SET due_at = 0 WHERE kind = 'purge'")


def wait_until_no_task_is_left(server: ServerProcess) -> None:
    deadline = time.monotonic() + 60
    while True:
        with closing(sqlite3.connect(server.data_dir / "millrace.sqlite3")) as connection:
            tasks = connection.execute("SELECT kind, document_id, attempt FROM task").fetchall()
        if not tasks:
            return
        assert time.monotonic() < deadline, tasks
        time.sleep(0.1)


def assert_nothing_is_left_over(data_dir: Path) -> None:
    """Chunks and files of documents that exist, and no others; the server is stopped."""
    with closing(sqlite3.connect(data_dir / "millrace.sqlite3")) as connection:
        ids = {row[0] for row in connection.execute("SELECT id FROM document")}
    stored = set()
    for path in (data_dir / "chunks").glob("*/chunks.sqlite3"):
        with closing(sqlite3.connect(path)) as connection:
            stored |= {row[0] for row in connection.execute("SELECT DISTINCT d.id FROM chunks c JOIN documents d ON d.number = c.document")}
    assert stored == ids
    files = {path.name for path in (data_dir / "blobs").rglob("*") if path.is_file()}
    assert files == ids
