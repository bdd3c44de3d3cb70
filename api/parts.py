"""Every long-lived part of a server process, opened and closed in one place."""

import asyncio
import os
import socket
import uuid
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from api.admission import Admission
from api.drain import Drain
from api.ingest_records import DatabaseRecords
from api.keys import open_session, prepare_data_dir
from api.memory import Memory, open_memory
from api.metrics import Metrics
from api.places import places_of
from api.search_process import SearchProcess, arguments
from api.shared_pressure import share_pressure
from api.spacing import Spacing
from api.warmup import Warmup
from db.services import move_service
from db.session import Session
from rag.errors import SettingsError
from rag.ingest.pipeline import Pipeline
from rag.ingest.sandbox import Sandbox
from rag.ingest.worker import Worker
from rag.llm.registry import ModelSpec, Registry
from rag.llm.transport import Transport, open_client
from rag.nlp.find import Finder, LaneFinder
from rag.nlp.tokenize import ANALYSER_VERSION, terms_of
from rag.ports import BlobStore, Cache, ChunkStore, IngestRecords
from rag.settings import Settings
from rag.store.blobs import LocalBlobStore
from rag.store.embedded import EmbeddedStore
from rag.threads import Lane

log = structlog.get_logger("millrace.parts")

# beside those of the lanes' threads: health, and an index that is moved
SPARE_CONNECTIONS = 2
# people wait for searches and answers, nobody for the next chunk of a document
INGEST_NICE = 10
# a local reranker reads for a second or more what an embedded question takes milliseconds for
RERANK_NICE = 5
# of each of its threads; whoever finds it longer has the fused order at once, which is better than the time over and no order either
RERANK_QUEUE = 8


@dataclass(frozen=True, slots=True)
class Lanes:
    """The process's thread pools."""

    db: Lane
    search: Lane
    write: Lane
    blob: Lane
    model: Lane
    rerank: Lane
    ingest_model: Lane

    @property
    def all(self) -> tuple[Lane, ...]:
        """Every lane."""
        return (self.db, self.search, self.write, self.blob, self.model, self.rerank, self.ingest_model)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the HTTP layer calls. Tests build it with the parts they need.

    `worker` is None where documents are ingested by `millrace worker` alone, `warmup` where no model has to be loaded, `memory`
    where nothing is remembered, `searcher` where the search lane searches. Without an `admission` the application makes itself one.
    """

    settings: Settings
    lanes: Lanes
    session: Session
    store: ChunkStore
    blobs: BlobStore
    models: Registry
    worker: Worker | None = None
    warmup: Warmup | None = None
    metrics: Metrics = field(default_factory=Metrics)
    drain: Drain = field(default_factory=Drain)
    memory: Memory | None = None
    admission: Admission | None = None
    searcher: SearchProcess | None = None
    spacing: Spacing = field(default_factory=Spacing)

    @property
    def finder(self) -> Finder:
        """Where retrievals search the store."""
        return self.searcher or LaneFinder(self.store, self.lanes.search)


@asynccontextmanager
async def open_parts(settings: Settings, model_keys: Mapping[str, str], *, alone: bool = False) -> AsyncIterator[Parts]:
    """The parts of a server process; closed, in reverse order, when the block is left.

    One that serves `alone` leaves searching to a process beside it; several already share the cores. `model_keys` maps environment
    variables that `settings.models` name to their values. Raises `SettingsError` for what the person who started the server can mend,
    `Unavailable` when the database cannot be opened.
    """
    data_dir = prepare_data_dir(settings.data_dir)
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        lanes = open_lanes(settings, metrics)
        metrics.watch_lanes(lanes.all)
        session = open_session(settings, lanes.db)
        stack.callback(session.close)  # after the lanes: connections are closed when nobody uses them
        for lane in lanes.all:
            stack.callback(lane.close)
        await lanes.db.run(session.create_tables)
        await lanes.db.run(session.read_now, move_service.check_complete, places_of(settings).movable)
        blobs = open_blobs(settings, data_dir, metrics)
        stack.callback(blobs.close)
        store = open_store(settings, data_dir, metrics)
        stack.callback(store.close)
        client = await stack.enter_async_context(open_client())
        memory = await stack.enter_async_context(open_memory(settings, metrics))
        models = open_models(settings, model_keys, Transport(client), lanes, data_dir, metrics, memory.cache)
        metrics.watch_breakers(models.breaker_states)
        warmup, drain = Warmup(models, lanes.model), Drain()
        background = [warmup.run()]
        admission = Admission(settings.patience_seconds, on_refused=metrics.refused)
        if memory.board is not None:
            background.append(share_pressure(admission, memory.board))
        worker = None
        if settings.ingest_workers:
            sandbox = Sandbox(processes=settings.parser_processes, memory_bytes=settings.parser_memory_bytes)
            stack.push_async_callback(sandbox.close)
            worker = open_worker(settings, DatabaseRecords(session, store, lanes.write), store, blobs, models, sandbox, lanes, metrics)
            background.append(_until_draining(worker.run(), drain))
        searcher = None
        if alone and settings.search_process and settings.store == "embedded":
            searcher = open_searcher(settings, data_dir, LaneFinder(store, lanes.search), metrics)
            background.append(searcher.run())
        await stack.enter_async_context(_running(background))
        yield Parts(settings, lanes, session, store, blobs, models, worker, warmup, metrics, drain, memory, admission, searcher)


def open_lanes(settings: Settings, metrics: Metrics) -> Lanes:
    """The thread pools, as large as the settings say."""
    sizes = {
        "db": settings.transactions_at_once,
        "search": settings.searches_at_once,
        "write": settings.write_threads,
        "blob": settings.blob_threads,
        "model": settings.model_threads,
        "rerank": settings.rerank_threads,
        "ingest_model": settings.ingest_model_threads,
    }
    nice = {"rerank": RERANK_NICE, "ingest_model": INGEST_NICE}
    queue = dict.fromkeys(sizes, settings.queue_limit) | {"rerank": min(settings.queue_limit, RERANK_QUEUE * settings.rerank_threads)}
    return Lanes(**{name: Lane(name, threads, queue[name], metrics.lane_wait, nice=nice.get(name, 0)) for name, threads in sizes.items()})


def open_blobs(settings: Settings, data_dir: Path, metrics: Metrics | None = None) -> BlobStore:
    """Where uploaded files are kept, as the settings say; `metrics` watch the breaker of a service. Raises `SettingsError`."""
    if not settings.blob_url:
        return LocalBlobStore(data_dir / "blobs")
    # imported where it is switched on, as the other parts that a server of one machine has no use for
    from rag.store.blobs_s3 import S3BlobStore

    blobs = S3BlobStore(
        settings.blob_url, data_dir / "scratch", endpoint=settings.blob_endpoint, region=settings.blob_region,
        timeout_seconds=settings.blob_timeout_seconds,
    )  # fmt: skip
    if metrics is not None:
        metrics.watch_breakers(lambda: [("s3", "blobs", blobs.breaker.state)])
    return blobs


def open_store(settings: Settings, data_dir: Path, metrics: Metrics | None = None) -> ChunkStore:
    """What keeps and finds chunks, as the settings say; `metrics` watch the breaker of a service. Raises `SettingsError`."""
    if settings.store == "embedded":
        return EmbeddedStore(data_dir / "chunks", analyser_version=ANALYSER_VERSION, analyse=terms_of)
    # imported where it is switched on: 30 MB and 0.3 s, and OpenTelemetry with it
    from rag.store.elastic import Cluster
    from rag.store.elastic_index import Layout
    from rag.store.elastic_store import ElasticStore

    cluster = Cluster(
        [host.strip() for host in settings.elasticsearch_hosts.split(",") if host.strip()],
        api_key=_secret(settings.elasticsearch_api_key, settings.elasticsearch_api_key_file),
        user=settings.elasticsearch_user,
        password=_secret(settings.elasticsearch_password, settings.elasticsearch_password_file),
        ca_file=settings.elasticsearch_ca_file,
        connections=settings.searches_at_once + settings.write_threads + SPARE_CONNECTIONS,
        timeout_seconds=settings.elasticsearch_timeout_seconds,
    )
    if metrics is not None:
        metrics.watch_breakers(lambda: [("elasticsearch", "store", cluster.breaker.state)])
    layout = Layout(
        prefix=settings.elasticsearch_index_prefix,
        shards=settings.elasticsearch_shards,
        replicas=settings.elasticsearch_replicas,
        vectors=settings.elasticsearch_vectors,
        analyser_version=ANALYSER_VERSION,
    )
    return ElasticStore(cluster, layout, analyse=terms_of)


def open_searcher(settings: Settings, data_dir: Path, otherwise: Finder, metrics: Metrics) -> SearchProcess:
    """What searches the embedded store beside this process; `run` it."""
    given = arguments(data_dir / "chunks", ANALYSER_VERSION, settings.log_level, settings.log_format)
    searcher = SearchProcess(given, settings.searches_at_once, settings.queue_limit, otherwise, metrics.lane_wait)
    metrics.watch_lanes([searcher])
    return searcher


def _secret(value: str, file: Path | None) -> str:
    """A secret that is given, or stands in a file. Raises `SettingsError`."""
    if value or file is None:
        return value
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"the secret in {file} cannot be read: {type(exc).__name__}") from None


def open_worker(
    settings: Settings, records: IngestRecords, store: ChunkStore, blobs: BlobStore, models: Registry, sandbox: Sandbox, lanes: Lanes,
    metrics: Metrics,
) -> Worker:  # fmt: skip
    """The ingestion worker of this process; `run` it."""
    pipeline = Pipeline(
        store,
        blobs,
        sandbox,
        store_lane=lanes.write,
        blob_lane=lanes.blob,
        spool_dir=settings.data_dir,
        parse_deadline_seconds=settings.parser_timeout_seconds,
    )
    return Worker(
        records,
        pipeline,
        models.embedder,
        name=f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
        documents_at_once=settings.ingest_workers,
        lease_seconds=settings.lease_seconds,
        on_outcome=metrics.ingested,
    )


def open_models(
    settings: Settings, model_keys: Mapping[str, str], transport: Transport, lanes: Lanes, data_dir: Path, metrics: Metrics,
    cache: Cache | None = None,
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
        rerank_lane=lanes.rerank,
        cache_dir=settings.cache_dir or data_dir / "cache",
        cache=cache,
        on_cache=metrics.cache_asked,
        rerank_seconds=settings.rerank_timeout_seconds,
        observer=metrics,
    )


def _key_of(variable: str | None, model_keys: Mapping[str, str]) -> str | None:
    if variable is None:
        return None
    if variable not in model_keys:
        raise SettingsError(f"environment variable {variable}, which a model names, is not set")
    return model_keys[variable]


@asynccontextmanager
async def _running(background: Sequence[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run the background work beside the block; what is not done when the block is left is cancelled."""
    tasks = [asyncio.create_task(work) for work in background]
    for task in tasks:
        task.add_done_callback(_tell)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _tell(task: asyncio.Task[None]) -> None:
    """Background work ends by being cancelled; nobody waits for it who could see that it failed."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("background work ended", exc_info=error)


async def _until_draining(work: Coroutine[Any, Any, None], drain: Drain) -> None:
    """Run the work until the server stops: what is under way is given back at once, for another server or the next start."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work)
        await drain.started.wait()
        task.cancel()
