"""Python CPU of one retrieval with 64 candidates, store and embedding stubbed: `python -m load.retrieval_bench`.

What is left is our own work: analysing the question, crossing to the search lane and back, fusing, paging, building the
result, marking the matched words. The goal is at most 1.5 ms. CPU time of the whole process is counted, threads included.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rag.nlp.find import LaneFinder
from rag.nlp.search import RetrievalRequest, async_retrieval
from rag.nlp.tokenize import chunk_terms
from rag.threads import Lane
from rag.types import Candidates, Chunk, SearchRequest

CANDIDATES, DOCUMENTS = 64, 16
GOAL_MS = 1.5
QUESTIONS = (
    "Which Canadian rock band had a drummer who was inducted into the hall of fame?",
    "what similarity laws must be obeyed when constructing aeroelastic models of heated high speed aircraft",
    "2019年10月武田信玄出生于哪里?",
)
TEXT = (
    "An experimental study of a wing in a propeller slipstream was made in order to determine the spanwise distribution of the"
    " lift increase due to slipstream at different angles of attack of the wing and at different velocity ratios. "
) * 3


class StubStore:
    """Answers every search with the same candidates."""

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        order = np.arange(CANDIDATES, dtype=np.int32)
        self._candidates = Candidates(
            ids=rng.integers(1, 2**63, CANDIDATES, dtype=np.uint64),
            documents=[f"{i:032x}" for i in range(DOCUMENTS)],
            document_of=order % DOCUMENTS,
            text_scores=rng.random(CANDIDATES, dtype=np.float32) * 20,
            vector_scores=rng.random(CANDIDATES, dtype=np.float32),
            text_ranks=order,
            vector_ranks=order[::-1],
        )
        chunk = Chunk("0" * 16, "d" * 32, "0" * 32, "a wing.pdf", TEXT, chunk_terms("a wing.pdf", [], TEXT))
        self._chunks = dict.fromkeys((f"{number:016x}" for number in self._candidates.ids.tolist()), chunk)

    def search(self, request: SearchRequest) -> Candidates:
        return self._candidates

    def get(self, tenant_id: str, chunk_ids: Sequence[str]) -> list[Chunk | None]:
        return [self._chunks.get(chunk_id) for chunk_id in chunk_ids]


class StubEmbedder:
    """Answers every question with the same vector."""

    space, dimension, tokenizer_path = "stub", 384, Path("tokenizer.json")

    def __init__(self) -> None:
        self._vector = np.full(384, 384**-0.5, dtype=np.float32)

    async def embed_query(self, text: str) -> np.ndarray:
        return self._vector

    async def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        return np.tile(self._vector, (len(texts), 1))

    def trust(self, text: str) -> float:
        return 1.0


async def cpu_ms(rounds: int, **parameters: bool | int) -> float:
    """Milliseconds of CPU a retrieval costs, the median of five runs."""
    embedder, lane = StubEmbedder(), Lane("search", 2, 64)
    finder = LaneFinder(StubStore(), lane)
    requests = [
        RetrievalRequest(question, "t" * 32, ("d" * 32,), similarity_threshold=0.0, **parameters)  # type: ignore[arg-type]
        for question in QUESTIONS
    ]
    runs = []
    try:
        for _ in range(6):
            started = time.process_time()
            for i in range(rounds):
                await async_retrieval(requests[i % len(requests)], finder=finder, lane=lane, embedder=embedder)
            runs.append((time.process_time() - started) * 1000 / rounds)
    finally:
        lane.close()
    return sorted(runs[1:])[2]


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=500)
    rounds = arguments.parse_args().rounds
    print(f"Python CPU of one retrieval, {CANDIDATES} candidates, store and embedding stubbed (goal {GOAL_MS} ms)")
    for name, parameters in {
        "page of 10": {"page_size": 10},
        "page of 30": {"page_size": 30},
        "page of 30, explain": {"page_size": 30, "explain": True},
        "page of 30, highlight": {"page_size": 30, "highlight": True},
    }.items():
        print(f"  {name:24} {asyncio.run(cpu_ms(rounds, **parameters)):6.2f} ms")


if __name__ == "__main__":
    main()
