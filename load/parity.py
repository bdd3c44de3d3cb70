"""Whether Elasticsearch ranks as the embedded store does: `python -m load.eval --store elasticsearch`.

Every set is put into both stores, and every question asked of both through `async_retrieval`, which is what `/retrieval` calls:
the first page of ten, the second, and the first within a random half of the documents. Prints nDCG@10 of both, and the mean share
of each ten that both show; exits with 1 when a goal is missed. The node is a private one, see tests/services/elasticsearch.py.
"""

import asyncio
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from load.eval import (
    CONCURRENCY,
    DATASET,
    DEPTH,
    EvalSet,
    KnownQuestions,
    index_set,
    local_embedder,
    ndcg,
    no_names,
    question_vectors,
    read_sets,
)
from rag.nlp.find import LaneFinder
from rag.nlp.search import RetrievalRequest, async_retrieval
from rag.nlp.tokenize import ANALYSER_VERSION
from rag.ports import ChunkStore, Embedder
from rag.store.elastic import Cluster
from rag.store.elastic_index import Layout
from rag.store.elastic_store import ElasticStore
from rag.store.embedded import EmbeddedStore
from rag.threads import Lane
from tests.services.elasticsearch import elasticsearch

MOST_APART = 0.005  # nDCG@10
LEAST_SHARED = 0.98  # of the first ten
VIEWS = ("page 1", "page 2", "filtered")


@dataclass(frozen=True, slots=True)
class Parity:
    """One set in both stores. `shared` maps a view to the mean share of its ten that both show, `totals` tells of equal lengths."""

    test_set: EvalSet
    embedded: float
    elastic: float
    shared: Mapping[str, float]
    totals: float

    @property
    def holds(self) -> bool:
        """Both goals are met."""
        return abs(self.embedded - self.elastic) <= MOST_APART and min(self.shared.values()) >= LEAST_SHARED


async def compare(
    data: Path, names: Sequence[str], model: Path | None, languages: Sequence[str], cache: Path, vectors: str = "flat"
) -> int:  # fmt: skip
    """Print the table; the exit code."""
    lane = Lane("search", 2, 1_000)
    held = True
    with (
        tempfile.TemporaryDirectory(prefix="millrace-parity-") as folder,
        elasticsearch(heap="1g") as node,
        local_embedder(model, languages, cache / "models") as embedder,
    ):
        stores = (
            EmbeddedStore(Path(folder), analyser_version=ANALYSER_VERSION),
            ElasticStore(Cluster([node.url]), Layout(vectors=vectors, analyser_version=ANALYSER_VERSION)),
        )
        try:
            print(f"{'':<18}{'docs':>7}{'asked':>7}  {'nDCG@10: embedded':<19}{'elasticsearch':<15}"
                  + "".join(f"{'shared: ' * (view == VIEWS[0]) + view:<17}" for view in VIEWS) + f"{'totals':<8}verdict")  # fmt: skip
            for number, test_set in enumerate(read_sets(data, names), start=1):
                parity = await _compare_set(test_set, stores, f"{number:032x}", embedder, lane, cache)
                held &= parity.holds
                shared = "".join(f"{parity.shared[view]:<17.4f}" for view in VIEWS)
                print(f"{test_set.name:<18}{len(test_set.documents):>7}{len(test_set.questions):>7}  {parity.embedded:<19.4f}"
                      f"{parity.elastic:<15.4f}{shared}{parity.totals:<8.4f}{'ok' if parity.holds else 'APART'}", flush=True)  # fmt: skip
        finally:
            for store in stores:
                store.close()
            lane.close()
    return 0 if held else 1


async def _compare_set(
    test_set: EvalSet, stores: tuple[ChunkStore, ChunkStore], tenant_id: str, embedder: Embedder, lane: Lane, cache: Path
) -> Parity:  # fmt: skip
    for store in stores:
        await index_set(test_set, store, tenant_id, embedder, lane, cache)
    known = KnownQuestions(embedder, await question_vectors(test_set, embedder, cache), None)
    room = asyncio.Semaphore(CONCURRENCY)

    async def ask(store: ChunkStore, request: RetrievalRequest) -> tuple[list[str], int]:
        async with room:
            found = await async_retrieval(request, finder=LaneFinder(store, lane), lane=lane, embedder=known, document_names=no_names)
        if found.degraded:
            raise RuntimeError(f"set {test_set.name}: {', '.join(found.degraded)} failed")
        return [str(entry.chunk.extra["id"]) for entry in found.chunks], found.total

    async def ask_both(question_id: str, question: str) -> tuple[list[float], list[float], float]:
        removed = sum(grade < 0 for grade in test_set.grades[question_id].values())
        half = random.Random(question_id).sample(range(1, len(test_set.documents) + 1), len(test_set.documents) // 2)
        views = {
            "page 1": {"page_size": DEPTH + removed},
            "page 2": {"page": 2, "page_size": DEPTH},
            "filtered": {"page_size": DEPTH, "document_ids": tuple(f"{number:032x}" for number in half)},
        }
        scores, shared, totals = [], [], 1.0
        for name in VIEWS:
            request = RetrievalRequest(question, tenant_id, (DATASET,), **views[name])
            (ours, our_total), (theirs, their_total) = [await ask(store, request) for store in stores]
            if name == "page 1":
                scores = [ndcg(found, test_set.grades[question_id]) for found in (ours, theirs)]
                totals = float(our_total == their_total)
            shared.append(_shared(ours[:DEPTH], theirs[:DEPTH]))
        return scores, shared, totals

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask_both(question_id, text)) for question_id, text in test_set.questions.items()]
    results = [task.result() for task in tasks]
    embedded, elastic = (sum(scores[place] for scores, _, _ in results) / len(test_set.grades) for place in (0, 1))
    means = np.mean([shared for _, shared, _ in results], axis=0).tolist()
    return Parity(
        test_set, embedded, elastic, dict(zip(VIEWS, means, strict=True)), sum(totals for *_, totals in results) / len(results)
    )  # fmt: skip


def _shared(ours: Sequence[str], theirs: Sequence[str]) -> float:
    longest = max(len(ours), len(theirs))
    return len(set(ours) & set(theirs)) / longest if longest else 1.0
