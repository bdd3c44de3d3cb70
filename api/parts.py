"""Every long-lived part of a server process, opened and closed in one place."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api.drain import Drain
from api.keys import DATABASE_FILE, prepare_data_dir
from api.metrics import Metrics
from api.warmup import Warmup
from db.session import Session
from rag.errors import SettingsError
from rag.llm.registry import ModelSpec, Registry
from rag.llm.transport import Transport, open_client
from rag.nlp.tokenize import ANALYSER_VERSION, chunk_terms
from rag.ports import BlobStore, ChunkStore
from rag.settings import Settings
from rag.store.blobs import LocalBlobStore
from rag.store.embedded import EmbeddedStore
from rag.threads import Lane
from rag.types import Chunk, ChunkTerms

# vectors of recent questions: a chat asks, reranks and pages over the same one
QUERY_CACHE_SIZE = 256


@dataclass(frozen=True, slots=True)
class Lanes:
    """The process's thread pools."""

    db: Lane
    search: Lane
    blob: Lane
    model: Lane
    ingest_model: Lane

    @property
    def all(self) -> tuple[Lane, ...]:
        """Every lane."""
        return (self.db, self.search, self.blob, self.model, self.ingest_model)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the HTTP layer calls. Tests build it with the parts they need.

    `worker` is None where documents are ingested by `millrace worker` alone, `warmup` where no model has to be loaded.
    """

    settings: Settings
    lanes: Lanes
    session: Session
    store: ChunkStore
    blobs: BlobStore
    models: Registry
    worker: Any = None
    warmup: Warmup | None = None
    metrics: Metrics = field(default_factory=Metrics)
    drain: Drain = field(default_factory=Drain)


@asynccontextmanager
async def open_parts(settings: Settings, model_keys: Mapping[str, str]) -> AsyncIterator[Parts]:
    """The parts of a server process; closed, in reverse order, when the block is left.

    `model_keys` maps environment variables that `settings.models` name to their values. Raises `SettingsError` for what
    the person who started the server can mend, `Unavailable` when the database cannot be opened.
    """
    data_dir = prepare_data_dir(settings.data_dir)
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        lanes = open_lanes(settings, metrics)
        metrics.watch_lanes(lanes.all)
        for lane in lanes.all:
            stack.callback(lane.close)
        session = Session(data_dir / DATABASE_FILE, lanes.db)
        stack.callback(session.close)
        await lanes.db.run(session.create_tables)
        blobs = LocalBlobStore(data_dir / "blobs")
        store = EmbeddedStore(data_dir / "chunks", analyser_version=ANALYSER_VERSION, analyse=terms_of)
        stack.callback(store.close)
        client = await stack.enter_async_context(open_client())
        models = open_models(settings, model_keys, Transport(client), lanes, data_dir)
        warmup = Warmup(models)
        await stack.enter_async_context(_running(warmup.run()))
        yield Parts(settings, lanes, session, store, blobs, models, None, warmup, metrics)


def terms_of(chunk: Chunk) -> ChunkTerms:
    """A stored chunk's terms, computed anew after the analysis has changed."""
    return chunk_terms(chunk.document_name if chunk.version else "", chunk.headings, chunk.content, chunk.keywords, chunk.questions)


def open_lanes(settings: Settings, metrics: Metrics) -> Lanes:
    """The thread pools, as large as the settings say."""
    sizes = {
        "db": settings.db_threads,
        "search": settings.search_threads,
        "blob": settings.blob_threads,
        "model": settings.model_threads,
        "ingest_model": settings.ingest_model_threads,
    }
    return Lanes(**{name: Lane(name, threads, settings.queue_limit, metrics.lane_wait) for name, threads in sizes.items()})


def open_models(
    settings: Settings, model_keys: Mapping[str, str], transport: Transport, lanes: Lanes, data_dir: Path
) -> Registry:  # fmt: skip
    """The models of the settings and the built-in ones. Raises `SettingsError`."""
    specs = [
        ModelSpec.from_settings(model, _key_of(model.api_key_env, model_keys), settings.chat_timeout_seconds) for model in settings.models
    ]
    return Registry(
        specs,
        settings.aliases,
        transport,
        query_lane=lanes.model,
        document_lane=lanes.ingest_model,
        cache_dir=settings.cache_dir or data_dir / "cache",
        query_cache_size=QUERY_CACHE_SIZE,
    )


def _key_of(variable: str | None, model_keys: Mapping[str, str]) -> str | None:
    if variable is None:
        return None
    if variable not in model_keys:
        raise SettingsError(f"environment variable {variable}, which a model names, is not set")
    return model_keys[variable]


@asynccontextmanager
async def _running(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run the work beside the block; what is not done when the block is left is cancelled."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
