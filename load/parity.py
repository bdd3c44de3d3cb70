"""Whether Elasticsearch ranks as the embedded store does: `python -m load.eval --store elasticsearch`.

Every set is put into both stores, and every question asked of two servers, which differ in the store alone, through `/retrieval`:
the first page of ten, the second, and the first within a random half of the documents. Prints nDCG@10 of both, and the mean share
of each ten that both show; exits with 1 when a goal is missed. The node is a private one, see tests/services/elasticsearch.py.
"""

import asyncio
import random
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from api.app import Application, create_app
from api.parts import open_parts, open_store
from db.models import Dataset, Document
from db.services import tenant_service
from load.eval import CONCURRENCY, DATASET, DEPTH, EvalSet, KnownQuestions, index_set, local_embedder, ndcg, question_vectors, read_sets
from rag.ports import Embedder
from rag.settings import Settings
from tests.services.elasticsearch import elasticsearch

MOST_APART = 0.005  # nDCG@10
LEAST_SHARED = 0.98  # of the first ten
VIEWS = ("page 1", "page 2", "filtered")
ROWS_AT_ONCE = 500
SECONDS = 120.0  # a busy machine is no failure here


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


async def compare(data: Path, names: Sequence[str], model: Path | None, languages: Sequence[str], cache: Path) -> int:
    """Print the table; the exit code."""
    held = True
    with elasticsearch(heap="1g") as node, local_embedder(model, languages, cache / "models") as embedder:
        print(f"{'':<18}{'docs':>7}{'asked':>7}  {'nDCG@10: embedded':<19}{'elasticsearch':<15}"
              + "".join(f"{'shared: ' * (view == VIEWS[0]) + view:<17}" for view in VIEWS) + f"{'totals':<8}verdict")  # fmt: skip
        for test_set in read_sets(data, names):
            parity = await compare_set(test_set, node.url, embedder, cache)
            held &= parity.holds
            shared = "".join(f"{parity.shared[view]:<17.4f}" for view in VIEWS)
            print(f"{test_set.name:<18}{len(test_set.documents):>7}{len(test_set.questions):>7}  {parity.embedded:<19.4f}"
                  f"{parity.elastic:<15.4f}{shared}{parity.totals:<8.4f}{'ok' if parity.holds else 'APART'}", flush=True)  # fmt: skip
    return 0 if held else 1


async def compare_set(test_set: EvalSet, elasticsearch_host: str, embedder: Embedder, cache: Path) -> Parity:
    """Both servers' answers to the questions of a set, held against each other. Nothing is left in the cluster."""
    room = asyncio.Semaphore(CONCURRENCY)

    async def ask_both(servers: Sequence[_Server], question_id: str, question: str) -> tuple[list[float], list[float], float]:
        removed = sum(grade < 0 for grade in test_set.grades[question_id].values())
        half = random.Random(question_id).sample(range(1, len(test_set.documents) + 1), len(test_set.documents) // 2)
        views = {
            "page 1": {"page_size": DEPTH + removed},
            "page 2": {"page": 2, "page_size": DEPTH},
            "filtered": {"page_size": DEPTH, "document_ids": [_document_id(number) for number in half]},
        }
        scores, shared, totals = [], [], 1.0
        for name in VIEWS:
            async with room:
                (ours, our_total), (theirs, their_total) = [await server.ask(question, **views[name]) for server in servers]
            if name == "page 1":
                named = [[test_set.documents[int(found, 16) - 1]["id"] for found in page] for page in (ours, theirs)]
                scores = [ndcg(page, test_set.grades[question_id]) for page in named]
                totals = float(our_total == their_total)
            shared.append(_shared(ours[:DEPTH], theirs[:DEPTH]))
        return scores, shared, totals

    async with _serve(test_set, elasticsearch_host, embedder, cache) as servers, asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask_both(servers, question_id, text)) for question_id, text in test_set.questions.items()]
    results = [task.result() for task in tasks]
    embedded, elastic = (sum(scores[place] for scores, _, _ in results) / len(test_set.grades) for place in (0, 1))
    means = np.mean([shared for _, shared, _ in results], axis=0).tolist()
    return Parity(
        test_set, embedded, elastic, dict(zip(VIEWS, means, strict=True)), sum(totals for *_, totals in results) / len(results)
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Server:
    """A server's application, and a key."""

    app: Application
    token: str

    async def ask(self, question: str, **more: Any) -> tuple[list[str], int]:
        """The ids of the documents on that page, in order, and how many chunks there are in all."""
        response = await self.app.test_client().post(
            "/api/v1/retrieval",
            json={"question": question, "dataset_ids": [DATASET], **more},
            headers={"Authorization": f"Bearer {self.token}"},
        )
        answer = await response.get_json()
        if answer["code"] or "degraded" in answer["data"]:
            raise RuntimeError(f"/retrieval: {answer.get('message') or answer['data']['reasons']}")
        return [chunk["document_id"] for chunk in answer["data"]["chunks"]], answer["data"]["total"]


@asynccontextmanager
async def _serve(test_set: EvalSet, elasticsearch_host: str, embedder: Embedder, cache: Path) -> AsyncIterator[tuple[_Server, _Server]]:
    """Two servers over one database with the set's rows: one with the embedded store, one with Elasticsearch, each holding the set."""
    with tempfile.TemporaryDirectory(prefix="millrace-parity-") as folder:
        settings = Settings(
            data_dir=Path(folder), cache_dir=cache / "models", ingest_workers=0, patience_seconds=SECONDS, request_timeout_seconds=SECONDS
        )
        async with open_parts(settings, {}) as parts:
            grown = settings.model_copy(update={
                "store": "elasticsearch", "elasticsearch_hosts": elasticsearch_host, "elasticsearch_index_prefix": f"{uuid.uuid4().hex}-",
            })  # fmt: skip
            elastic = open_store(grown, settings.data_dir)
            models: Any = _Models(parts.models, KnownQuestions(embedder, await question_vectors(test_set, embedder, cache / "eval"), None))
            tenant_id, token = await parts.session.write(_make_rows, test_set, parts.models.default_embedding)
            try:
                for store in (parts.store, elastic):
                    await index_set(test_set, store, tenant_id, embedder, parts.lanes.write, cache / "eval")
                both = replace(parts, models=models), replace(parts, models=models, settings=grown, store=elastic)
                yield tuple(_Server(create_app(one), token) for one in both)
            finally:
                await parts.lanes.write.run(elastic.drop_tenant, tenant_id)
                elastic.close()


class _Models:
    """A server's registry, but for the embedding model."""

    def __init__(self, models: Any, embedder: Any) -> None:
        self._models = models
        self._embedder = embedder

    def embedder(self, name: str | None = None) -> Any:
        """The one given."""
        return self._embedder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._models, name)


def _make_rows(test_set: EvalSet, embedding_model: str) -> tuple[str, str]:
    """The rows that `/retrieval` looks at: the id of the new tenant, and its key."""
    tenant = tenant_service.ensure_tenant("parity")
    Dataset.create(id=DATASET, tenant_id=tenant.id, created_by=tenant.id, name="set", name_key="set", embedding_model=embedding_model)
    documents = [
        {
            "id": _document_id(number), "tenant_id": tenant.id, "dataset_id": DATASET, "created_by": tenant.id, "name": f"{number}.txt",
            "name_key": f"{number}.txt", "location": "", "type": "doc", "suffix": "txt", "run": "DONE", "version": 1,
        }
        for number in range(1, len(test_set.documents) + 1)
    ]  # fmt: skip
    for start in range(0, len(documents), ROWS_AT_ONCE):
        Document.insert_many(documents[start : start + ROWS_AT_ONCE]).execute()
    return tenant.id, tenant_service.create_key(tenant.id).token


def _document_id(number: int) -> str:
    """The id of the set's document of that number, counted from 1, as `index_set` gives it."""
    return f"{number:032x}"


def _shared(ours: Sequence[str], theirs: Sequence[str]) -> float:
    longest = max(len(ours), len(theirs))
    return len(set(ours) & set(theirs)) / longest if longest else 1.0
