"""Callers of servers that are killed: they write down what was acknowledged, and in the end every bit of it is checked."""

import random
import threading
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import requests

from tests.e2e.flows import documents, ok, retrieve, start_parsing, wait_until_parsed
from tests.e2e.server_process import Caller

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
    """A caller that uploads, parses and deletes, whatever happens to the servers, and counts as done only what was answered.

    It goes through `numbers` until `stop` is set, with a pause of `pause_seconds`, on average, before each document. `cut` are the
    statuses that it may see while a server dies under its request; what else goes wrong is `failure`, and its end.
    """

    def __init__(
        self, caller: Caller, dataset_id: str, acknowledged: Acknowledged, seed: str, stop: threading.Event, numbers: Iterable[int],
        *, pause_seconds: float = 0.0, cut: Collection[int] = (),
    ) -> None:  # fmt: skip
        super().__init__(daemon=True)
        self.headers = {"Authorization": f"Bearer {caller.api_key}"}
        self.base = f"{caller.url}/api/v1/datasets/{dataset_id}"
        self.acknowledged = acknowledged
        self.random = random.Random(seed)
        self.seed = seed
        self.stop = stop
        self.numbers = numbers
        self.pause_seconds = pause_seconds
        self.cut = cut
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            for number in self.numbers:
                if self.stop.wait(self.random.uniform(0, 2 * self.pause_seconds)):
                    return
                self._one_document(f"w{self.seed}n{number}")
        except BaseException as failure:
            self.failure = failure

    def _one_document(self, word: str) -> None:
        text = document_text(word, self.random)
        created = self._ask("POST", "/documents", files={"file": (f"{word}.txt", text)})
        if created is None:
            return
        (document,) = created
        self.acknowledged.words[document["id"]] = word
        if self._ask("POST", "/chunks", json={"document_ids": [document["id"]]}) is not None:
            self.acknowledged.parsing.add(document["id"])
        if self.random.random() < 0.2:
            victim = self.random.choice(sorted(set(self.acknowledged.words) - self.acknowledged.deleting))
            self.acknowledged.deleting.add(victim)
            if self._ask("DELETE", "/documents", json={"ids": [victim]}) is not None:
                self.acknowledged.deleted.add(victim)

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        """The data of an answer that succeeded, {} for one that another caller's deletion made void, None where it was cut."""
        try:
            reply = requests.request(method, self.base + path, headers=self.headers, timeout=60, **more)
        except requests.RequestException:
            return None
        if reply.status_code in self.cut:
            return None
        if reply.status_code == 404:
            return {}
        return ok((reply.status_code, reply.json())) or {}


def document_text(word: str, chance: random.Random) -> str:
    """A text of several chunks; its word stands in every one."""
    lines = [
        f"{chance.choice(SUBJECTS).capitalize()} {chance.choice(VERBS)} {chance.choice(SUBJECTS)} {word}, as {word} line {number} says."
        for number in range(chance.randint(3, 40))
    ]
    return "\n".join(lines)


def check(server: Caller, dataset_id: str, acknowledged: Acknowledged) -> None:
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


def check_document(server: Caller, dataset_id: str, document_id: str, word: str | None, chunk_count: int) -> None:
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
