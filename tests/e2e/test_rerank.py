"""Reranking for real: a server process, a llama.cpp that reranks, one that chats, and a cross-encoder on this machine."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.cross_encoder import make_cross_encoder
from tests.e2e.conftest import Start
from tests.e2e.flows import create_chat, create_dataset, ingest, ok, retrieve
from tests.e2e.server_process import ServerProcess
from tests.model_server import model_server

QUESTION = "When does water boil?"
LINES = [
    "Water boils at 100 degrees at sea level.", "On high mountains water boils earlier.", "Iron melts at 1538 degrees.",
    "A mill stands beside the water.", "The sea is warm in June.", "Soup has to boil for an hour.", "Ice is frozen water.",
]  # fmt: skip
EVERYTHING = {"similarity_threshold": 0.0, "vector_similarity_weight": 1.0, "page_size": 30, "explain": True}


@dataclass
class Running:
    """The server, and what it has."""

    server: ServerProcess
    rerank_url: str
    stop_reranker: ExitStack
    dataset: str

    def retrieve(self, rerank_id: str = "") -> dict[str, Any]:
        return retrieve(self.server, [self.dataset], QUESTION, rerank_id=rerank_id, **EVERYTHING)

    def judged_by_the_model_itself(self, texts: list[str]) -> list[float]:
        reply = requests.post(f"{self.rerank_url}/rerank", json={"query": QUESTION, "documents": texts}, timeout=30).json()
        logits = {entry["index"]: entry["relevance_score"] for entry in reply["results"]}
        return [1 / (1 + math.exp(-logits[number])) for number in range(len(texts))]


@pytest.fixture
def running(start: Start, tmp_path: Path) -> Iterator[Running]:
    local = tmp_path / "cross-encoder"
    local.mkdir()
    make_cross_encoder(local)
    with ExitStack() as stop_reranker, model_server("chat") as chat_url:
        rerank_url = stop_reranker.enter_context(model_server("rerank"))
        config = tmp_path / "millrace.toml"
        config.write_text(f"""
[[models]]
name = "judge"
provider = "llama.cpp"
kind = "rerank"
base_url = "{rerank_url}"
context_tokens = 512

[[models]]
name = "own"
provider = "Local"
kind = "rerank"
path = "{local}"
context_tokens = 512

[[models]]
name = "tiny"
provider = "llama.cpp"
kind = "chat"
base_url = "{chat_url}"
context_tokens = 2048
""")
        server = start(environ={"MILLRACE_CONFIG": str(config)})
        dataset = create_dataset(server, "facts", parser_config={"chunk_token_num": 12})
        ingest(server, dataset, {"facts.txt": "\n\n".join(LINES).encode()})
        yield Running(server, rerank_url, stop_reranker, dataset)


def contents(found: dict[str, Any]) -> list[str]:
    return [chunk["content"] for chunk in found["chunks"]]


def test_the_models_order_reaches_searches_and_chats_and_another_stands_in_when_it_dies(running: Running) -> None:
    fused, judged = running.retrieve(), running.retrieve("judge@llama.cpp")
    assert "degraded" not in judged
    assert len(contents(fused)) > 3
    assert sorted(contents(judged)) == sorted(contents(fused))
    assert contents(judged) != contents(fused)
    scores = [chunk["explain"]["rerank"] for chunk in judged["chunks"]]
    assert scores == pytest.approx(running.judged_by_the_model_itself(contents(judged)), abs=1e-3)
    assert scores == sorted(scores, reverse=True)

    own = running.retrieve("own@Local")
    assert "degraded" not in own
    assert contents(own) not in (contents(fused), contents(judged))

    prompt = {"system": "Answer by {knowledge}"}
    chat = create_chat(
        running.server, "judge", [running.dataset], llm_id="tiny@llama.cpp", rerank_id="judge@llama.cpp", prompt_config=prompt,
        similarity_threshold=0.0, vector_similarity_weight=1.0, top_n=3, llm_setting={"max_tokens": 16},
    )  # fmt: skip
    path, question = f"/chats/{chat}/completions", {"question": QUESTION, "stream": False}
    answer = ok(running.server.call("POST", path, question))
    assert [chunk["content"] for chunk in answer["reference"]["chunks"]] == contents(judged)[:3]
    assert "degraded" not in answer

    running.stop_reranker.close()
    stood_in = running.retrieve("judge@llama.cpp")
    assert contents(stood_in) == contents(own)
    assert stood_in["degraded"] == ["rerank"]
    assert stood_in["reasons"]["rerank"] == "the connection to model judge@llama.cpp failed; model own@Local answered instead"
    answer = ok(running.server.call("POST", path, question))
    assert [chunk["content"] for chunk in answer["reference"]["chunks"]] == contents(own)[:3]
    assert (answer["degraded"], answer["reasons"]) == (["rerank"], stood_in["reasons"])
