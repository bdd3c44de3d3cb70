"""What stands in for the server's own parts on a stage: a store that takes a set time, models, one executor for everything."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from api.chat_input import DEFAULTS, PROMPT_DEFAULTS
from api.parts import Parts
from db.models import Dataset, Document, name_key
from db.services import dialog_service
from load.sampling import Watch
from rag.llm.model_directory import bundled_model_path
from rag.nlp.tokenize import chunk_terms
from rag.ports import ChunkStore, Reranker
from rag.threads import Lane
from rag.types import Candidates, Chunk, SearchRequest

EXECUTOR_THREADS = 35
DIMENSION = 384
# what the staged store finds for every question: as many as a page and a reranker can tell apart, of a usual length
CANDIDATES, DOCUMENTS, CHUNK_CHARACTERS = 256, 16, 500
TEXT = "water mills grind wheat into flour while the river floods meadows in spring and swallows nest under roofs " * 8


@dataclass(frozen=True, slots=True)
class Scene:
    """Ids of the rows: a dataset with documents, and chats by name: "plain" without a dataset, "found" with it, "ranked" with the first
    reranker, too."""

    dataset_id: str
    document_ids: tuple[str, ...]
    chats: Mapping[str, str]


def make_scene(tenant_id: str, embedding_model: str, rerankers: Sequence[str]) -> Scene:
    dataset = Dataset.create(
        tenant_id=tenant_id, created_by=tenant_id, name=f"stage {os.getpid()}", name_key=name_key(f"stage {os.getpid()}"),
        embedding_model=embedding_model, document_count=DOCUMENTS, chunk_count=CANDIDATES,
    )  # fmt: skip
    documents = [
        Document.create(
            tenant_id=tenant_id, dataset_id=dataset.id, created_by=tenant_id, name=f"report {place}.txt",
            name_key=name_key(f"report {place}.txt"), location="", type="doc", suffix="txt", chunk_count=CANDIDATES // DOCUMENTS,
            progress=1.0, run="DONE", version=1,
        ).id
        for place in range(DOCUMENTS)
    ]  # fmt: skip
    casts = {"plain": ([], ""), "found": ([dataset.id], ""), "ranked": ([dataset.id], rerankers[0] if rerankers else "")}
    chats = {}
    for name, (dataset_ids, reranker) in casts.items():
        values = {
            **DEFAULTS,
            "name": f"{name} {os.getpid()}",
            "dataset_ids": dataset_ids,
            "rerank_id": reranker,
            "similarity_threshold": 0.0,
        }
        chats[name] = dialog_service.create(tenant_id, values | {"prompt_config": dict(PROMPT_DEFAULTS)}).id
    return Scene(dataset.id, tuple(documents), chats)


def open_executor(parts: Parts) -> Lane:
    return Lane("executor", EXECUTOR_THREADS, parts.settings.queue_limit, parts.metrics.lane_wait)


class StagedStore:
    """A store whose searches take a set time on their thread, as a remote engine's client does, and always find the same chunks."""

    def __init__(self, store: ChunkStore, seconds: float, scene: Scene, watch: Watch) -> None:
        self.seconds = seconds
        self._store = store
        self._watch = watch
        self._chunks = {chunk.id: chunk for chunk in (_chunk(number, scene) for number in range(CANDIDATES))}
        scores = np.linspace(1.0, 0.1, CANDIDATES, dtype=np.float32)
        ranks = np.arange(CANDIDATES, dtype=np.int32)
        self._found = Candidates(
            ids=np.array([int(chunk_id, 16) for chunk_id in self._chunks], dtype=np.uint64),
            documents=list(scene.document_ids),
            document_of=ranks % DOCUMENTS,
            text_scores=scores * 10,
            vector_scores=scores,
            text_ranks=ranks,
            vector_ranks=ranks,
        )

    def search(self, request: SearchRequest) -> Candidates:
        """The same candidates for every question."""
        with self._watch.during_search():
            time.sleep(self.seconds)
        return self._found

    def get(self, tenant_id: str, chunk_ids: Sequence[str]) -> list[Chunk | None]:
        """Chunks from memory: what the engine's second round trip would add is not staged."""
        return [self._chunks.get(chunk_id) for chunk_id in chunk_ids]

    def vectors(self, tenant_id: str, chunk_ids: Sequence[str], space: str) -> np.ndarray:
        """Unit vectors, all alike."""
        return np.full((len(chunk_ids), DIMENSION), DIMENSION**-0.5, dtype=np.float32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def _chunk(number: int, scene: Scene) -> Chunk:
    place = number % DOCUMENTS
    content = f"{number} {TEXT[number % 100 :]}"[:CHUNK_CHARACTERS]
    return Chunk(
        f"{number + 1:016x}", scene.dataset_id, scene.document_ids[place], f"report {place}.txt", content, chunk_terms("", (), content),
        version=1, position=number,
    )  # fmt: skip


class StagedModels:
    """The registry, with other embedders and rerankers in it."""

    def __init__(self, models: Any, *, instant: bool, blocking: bool) -> None:
        self._models = models
        self._instant = instant
        self._blocking = blocking

    def embedder(self, name: str | None = None) -> Any:
        """An embedder that takes no time where the store is staged."""
        return InstantEmbedder() if self._instant else self._models.embedder(name)

    def reranker(self, name: str) -> Reranker:
        """The reranker; with `blocking` one that the server must run on a thread."""
        found = self._models.reranker(name)
        return OnlySimilarity(found) if self._blocking else found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._models, name)


class InstantEmbedder:
    """One unit vector for every text."""

    space = "staged"
    dimension = DIMENSION
    tokenizer_path = bundled_model_path() / "tokenizer.json"
    vector = np.full(DIMENSION, DIMENSION**-0.5, dtype=np.float32)

    async def embed_query(self, text: str) -> np.ndarray:
        """The vector."""
        return self.vector

    async def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """The vector, for each text."""
        return np.tile(self.vector, (len(texts), 1))

    def trust(self, text: str) -> float:
        """All."""
        return 1.0


class OnlySimilarity:
    """A reranker as all were before the change: the thread waits for the vendor."""

    def __init__(self, reranker: Any) -> None:
        self._reranker = reranker

    @property
    def excuse(self) -> str:
        """The reranker's own."""
        return self._reranker.excuse

    def similarity(self, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int | None]:
        """As the reranker's own."""
        return self._reranker.similarity(query, texts)


class HoldingApp:
    """An ASGI application whose every request holds a thread of the lane until it is answered, as a blocking handler does."""

    def __init__(self, app: Any, lane: Lane) -> None:
        self._app = app
        self._lane = lane

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request from a thread."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        await self._lane.run(lambda: asyncio.run_coroutine_threadsafe(self._app(scope, receive, send), loop).result())


def hold_a_thread(create_app: Callable[[Parts], Any], lane: Lane) -> Callable[[Parts], Any]:
    def create(parts: Parts) -> Any:
        app = create_app(parts)
        app.asgi_app = HoldingApp(app.asgi_app, lane)
        return app

    return create
