"""Under a mix of everything that callers do at once, nothing holds the event loop for more than 20 ms of its thread's CPU time."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from load.vendor_simulator import Behaviour, Request, VendorSimulator
from tests.e2e import flows
from tests.e2e.server_process import ServerProcess
from tests.e2e.vendors import reranked

LIMIT_SECONDS = 0.02
ROUNDS = 2
TOPICS = ("water", "iron", "copper", "millstones", "tides", "grain", "sluices", "bearings", "flour", "timber")
SETTINGS = """
[[models]]
name = "small"
provider = "Simulated"
kind = "chat"
base_url = "{url}"
context_tokens = 131072
default = true

[[models]]
name = "vectors"
provider = "Simulated"
kind = "embedding"
base_url = "{url}"
dimension = 384
default = true

[[models]]
name = "order"
provider = "Jina"
kind = "rerank"
base_url = "{url}"
"""
RERANKER = "order@Jina"


@contextmanager
def vendor() -> Iterator[str]:
    """The address of a model vendor that runs in a thread of this process."""
    words = tuple(f"{topic} is {n} [ID:{n % 9}]. " for n, topic in enumerate(TOPICS * 12))
    address: list[str] = []
    up, end = threading.Event(), threading.Event()

    def choose(request: Request) -> Behaviour:
        return Behaviour(reply=reranked) if request.path.endswith("/rerank") else Behaviour(words=words, dimension=384)

    async def run() -> None:
        async with VendorSimulator(choose=choose).listen() as simulator:
            address.append(simulator.base_url)
            up.set()
            while not end.is_set():
                simulator.requests.clear()
                await asyncio.sleep(0.05)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    up.wait()
    try:
        yield address[0]
    finally:
        end.set()
        thread.join()


class Caller:
    """What the callers of a server do; each method is one of them, and fails with what the server answered."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.dataset = flows.create_dataset(server, "mixed", parser_config={"chunk_token_num": 64})
        facts = [
            f"About {topic} {n}: {topic} number {n} carries {n * 7} units over {n % 13} wheels." for n in range(120) for topic in TOPICS
        ]
        text = "\n\n".join(facts)
        self.document = flows.ingest(server, self.dataset, {"facts.txt": text.encode()})[0]
        self.chat = flows.create_chat(server, "mixed", [self.dataset])
        for number in range(60):
            flows.ok(server.call("POST", f"/chats/{self.chat}/sessions", {"name": f"session {number}"}))
        small = flows.upload(server, self.dataset, {f"small-{number}.txt": b"Small." for number in range(100)})
        fields = {f"field {n}": f"value {n} " * 20 for n in range(100)}
        for document in small:
            flows.ok(server.call("PUT", f"/datasets/{self.dataset}/documents/{document}", {"meta_fields": fields}))
        self.session_id = flows.ok(server.call("POST", f"/chats/{self.chat}/sessions", {"name": "long"}))["id"]
        self.extractive = flows.create_chat(server, "extractive", [self.dataset], llm_id="extractive@Millrace")
        self.large = flows.create_dataset(server, "large")
        self.large_document = flows.ingest(server, self.large, {"large.txt": b"Large."})[0]
        for number in range(12):
            words = " ".join(f"{TOPICS[n % 10]} {number * n}" for n in range(11_000))[:131_000]
            self.call("POST", f"/datasets/{self.large}/documents/{self.large_document}/chunks", {"content": words})
        self.large_chats = [
            flows.create_chat(server, f"large {model}", [self.large], llm_id=model) for model in ("small@Simulated", "extractive@Millrace")
        ]
        self.searches = [
            flows.ok(server.call("POST", "/searches", {"name": f"of {dataset}"}))["search_id"] for dataset in (self.dataset, self.large)
        ]
        for search, dataset in zip(self.searches, (self.dataset, self.large), strict=True):
            config = {"kb_ids": [dataset], "chat_id": "small@Simulated"}
            flows.ok(server.call("PUT", f"/searches/{search}", {"name": search, "search_config": config}))

    def call(
        self, method: str, path: str, body: Any = None, *, expect: Sequence[int] = (200,), root: str = "/api/v1", files: Any = None
    ) -> bytes:
        url, headers = f"{self.server.url}{root}{path}", {"Authorization": f"Bearer {self.server.api_key}"}
        reply = requests.request(method, url, headers=headers, json=body, files=files, timeout=120)
        assert reply.status_code in expect, (path, reply.status_code, reply.content[:300])
        return reply.content

    def search(self) -> None:
        for topic in TOPICS:
            body = {"question": f"How many units does {topic} carry over the wheels?", "dataset_ids": [self.dataset], "page_size": 100}
            self.call("POST", "/retrieval", body | {"highlight": True, "explain": True, "include_metadata": True})
            self.call("POST", "/retrieval", body | {"rerank_id": RERANKER})
            condition = {"conditions": [{"name": "field 7", "comparison_operator": "contains", "value": "value 7"}]}
            self.call("POST", "/retrieval", body | {"metadata_condition": condition})

    def chat_streamed(self) -> None:
        for topic in TOPICS[:4]:
            self.call("POST", f"/chats/{self.chat}/completions", {"question": f"What is {topic}?", "stream": True})

    def session(self) -> None:
        path = f"/chats/{self.chat}/completions"
        for number in range(6):
            self.call("POST", path, {"question": f"Number {number}?", "session_id": self.session_id, "stream": bool(number % 2)})
        self.call("GET", f"/chats/{self.chat}/sessions/{self.session_id}")

    def chat_whole(self) -> None:
        for topic in TOPICS[:4]:
            self.call("POST", f"/chats/{self.chat}/completions", {"question": f"What is {topic}?", "stream": False})

    def long_history(self) -> None:
        marks = " ".join(f"[ID:{n}]" for n in range(2_000))
        history = [{"role": role, "content": f"{marks} {n}"} for n in range(20) for role in ("user", "assistant")]
        messages = [*history, {"role": "user", "content": "And the tides?"}]
        for stream in (True, False):
            self.call("POST", "/chat/completions", {"chat_id": self.chat, "messages": messages, "stream": stream})
            body = {"model": "model", "messages": messages, "stream": stream}
            self.call("POST", f"/chats_openai/{self.chat}/chat/completions", body, expect=(200, 400))

    def many_messages(self) -> None:
        messages = [{"role": ("user", "assistant")[n % 2], "content": f"message {n} [ID:{n}]"} for n in range(1_999)]
        self.call("POST", "/chat/completions", {"chat_id": self.chat, "messages": messages, "stream": False})

    def long_message(self) -> None:
        text = "The wheel turns [ID:1] and turns. " * 60_000
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": text}, {"role": "user", "content": "And now?"}]
        self.call("POST", "/chat/completions", {"chat_id": self.chat, "messages": messages, "stream": False})

    def large_bodies(self) -> None:
        text = "water " * (8_000_000 // 6)
        expected = (200, 400, 413)
        self.call("POST", "/retrieval", {"question": text, "dataset_ids": [self.dataset]}, expect=expected)
        self.call("POST", "/datasets", {"name": "large", "description": text}, expect=expected)
        self.call("POST", f"/chats/{self.chat}/completions", {"question": text, "stream": False}, expect=expected)
        self.call("POST", f"/datasets/{self.dataset}/documents/{self.document}/chunks", {"content": text}, expect=expected)
        self.call("POST", "/retrieval", {"question": "x", "dataset_ids": ["0" * 32] * 9_000}, expect=(*expected, 404))
        for texts in (500, 2_000):
            self.call("POST", "/embeddings", {"model": "vectors@Simulated", "input": ["word " * 20] * texts}, expect=expected, root="/v1")

    def uploads(self) -> None:
        files = [("file", (f"file-{n}.txt", b"A line of text.\n" * 250_000)) for n in range(2)]
        self.call("POST", f"/datasets/{self.dataset}/documents", files=files)

    def large_chunks(self) -> None:
        question = f"What of {TOPICS[3]} and {TOPICS[4]}?"
        body = {"question": question, "dataset_ids": [self.large], "page_size": 100, "highlight": True}
        self.call("POST", "/retrieval", body)
        self.call("POST", "/retrieval", body | {"rerank_id": RERANKER})
        self.call("GET", f"/datasets/{self.large}/documents/{self.large_document}/chunks?page_size=100")
        for chat in self.large_chats:
            for stream in (True, False):
                self.call("POST", f"/chats/{chat}/completions", {"question": question, "stream": stream})

    def extractive_answers(self) -> None:
        for topic in TOPICS[:4]:
            self.call("POST", f"/chats/{self.extractive}/completions", {"question": f"How many units does {topic} carry?", "stream": True})

    def saved_searches(self) -> None:
        for search in self.searches:
            self.call("POST", f"/searches/{search}/completions", {"question": f"What of {TOPICS[5]}?"})
            self.call("POST", "/chat/mindmap", {"question": TOPICS[5], "kb_ids": [self.dataset], "search_id": search})
            self.call("POST", "/sessions/related_questions", {"question": TOPICS[5], "search_id": search})

    def ingestion(self) -> None:
        lines = "\n".join(f"Line {n} of a long text about {TOPICS[n % 10]} and what it is for." for n in range(5_000))
        made = flows.ingest(self.server, self.dataset, {"long.txt": lines.encode(), "page.html": f"<p>{lines}</p>".encode()})
        self.call("DELETE", f"/datasets/{self.dataset}/documents", {"ids": made})

    def chunk_edits(self) -> None:
        chunks = f"/datasets/{self.dataset}/documents/{self.document}/chunks"
        for number in range(5):
            words = " ".join(f"word{n}" for n in range(3_000))
            made = json.loads(self.call("POST", chunks, {"content": f"Edited {number} {words}", "important_keywords": ["edited"]}))
            chunk_id = made["data"]["chunk"]["id"]
            self.call("PUT", f"{chunks}/{chunk_id}", {"content": f"Edited again {number} {words}"})
            self.call("DELETE", chunks, {"chunk_ids": [chunk_id]})

    def lists(self) -> None:
        for page in (1, 2):
            self.call("GET", f"/datasets/{self.dataset}/documents?page={page}&page_size=100")
            self.call("GET", f"/datasets/{self.dataset}/documents/{self.document}/chunks?page={page}&page_size=100")
        self.call("GET", f"/chats/{self.chat}/sessions?page_size=100")
        self.call("GET", "/datasets?page_size=100")
        self.call("GET", f"/datasets/{self.dataset}/metadata/summary")
        self.call("GET", f"/datasets/{self.dataset}/documents?type=filter")

    def documentation(self) -> None:
        for path in ("/openapi.json", "/docs", "/metrics", "/readyz"):
            self.call("GET", path, root="")

    @property
    def all(self) -> list[Callable[[], None]]:
        return [
            self.ingestion, self.search, self.session, self.chat_streamed, self.chat_whole, self.long_history, self.many_messages,
            self.long_message, self.large_bodies, self.large_chunks, self.extractive_answers, self.saved_searches, self.uploads,
            self.chunk_edits, self.lists, self.documentation,
        ]  # fmt: skip


def held(server: ServerProcess) -> list[dict[str, Any]]:
    """What the server logged of steps that held its loop."""
    lines = [json.loads(line) for line in server.logs.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "event loop held"]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that logs what holds its loop."""
    with vendor() as url:
        config = tmp_path / "millrace.toml"
        config.write_text(SETTINGS.format(url=url))
        environ = {"MILLRACE_CONFIG": str(config), "MILLRACE_SLOW_CALLBACK_SECONDS": str(LIMIT_SECONDS), "MILLRACE_LOG_FORMAT": "json"}
        environ |= {"MILLRACE_PATIENCE_SECONDS": "600"}  # nobody is refused here: what is let in is what holds the loop
        server = ServerProcess(tmp_path / "data", log_file=tmp_path / "server.log", environ=environ)
        try:
            yield server.wait_until_ready()
        finally:
            server.kill()


def test_no_step_of_ours_holds_the_event_loop(watched: ServerProcess) -> None:
    caller = Caller(watched)
    before = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work) for _ in range(ROUNDS) for work in caller.all]:
            done.result()
    print(f"{time.monotonic() - before:.1f} s")
    for step in sorted(held(watched), key=lambda line: -line["ms"]):
        print(step["ms"], step["task"], *(frame.replace("/work/main/", "") for frame in step["frames"]), sep="\n    ")
    assert "millrace_slow_callbacks_total 0.0" in watched.get("/metrics")[1].decode()
    assert held(watched) == []
