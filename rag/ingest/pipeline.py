"""One document on its way from the stored file to searchable chunks.

Parsing (in a process of its own), embedding and storing run at the same time: the embedder, which is the slowest by far, never
waits. What is parsed ahead of it lies in a spool (see rag/ingest/spool.py), so that memory does not grow with the document and
its parser is free for the next one; documents take turns at the embedder, a batch each (see rag/ingest/turns.py).
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import structlog
import xxhash

from rag.errors import MillraceError, Overloaded, ParseFailed, ProviderBusy, Unavailable
from rag.ingest.context import embedding_text
from rag.ingest.sandbox import ParserCrashed, Sandbox
from rag.ingest.spool import Spool
from rag.ingest.turns import Turns
from rag.ports import BlobStore, ChunkStore, Embedder
from rag.threads import Lane
from rag.types import Chunk, ChunkSelector, ChunkTerms, IngestTask

T = TypeVar("T")

# Of a turn at the embedder: enough for good batches by length, few enough for progress to be seen and for others not to wait long.
EMBED_TOKENS = 16 * 1024
EMBED_CHUNKS = 256
EMBEDDED_BATCHES_AHEAD = 2
PARSE_DEADLINE_SECONDS = 600.0
PARSED_SHARE = 0.05  # of the progress bar
STORED_SHARE = 0.97
WAITS_SECONDS = (0.2, 1.0, 3.0)  # between tries when a part is busy; after that the task is queued again

Tell = Callable[[float, str], Awaitable[None]]
"""`tell(progress, line)` shows where the task is; it may raise, and the document is dropped."""

_log = structlog.get_logger("millrace.ingest")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a document. `warnings` are lines for people."""

    chunk_count: int
    token_count: int
    seconds: float
    warnings: tuple[str, ...] = ()


def chunk_id(document_id: str, version: int, position: int) -> str:
    """The id of a parsed chunk: the same whenever the same parse run is done again."""
    return xxhash.xxh64_hexdigest(f"{document_id}:{version}:{position}".encode())


class Pipeline:
    """Turns files into searchable chunks with the parts it is given."""

    def __init__(
        self, store: ChunkStore, blobs: BlobStore, sandbox: Sandbox, *, store_lane: Lane, blob_lane: Lane,
        spool_dir: Path, embeddings_at_once: int = 1, parse_deadline_seconds: float = PARSE_DEADLINE_SECONDS,
    ) -> None:  # fmt: skip
        """`embeddings_at_once` bounds the batches under way at one model, over all documents; `spool_dir` takes nameless files."""
        self._store = store
        self._blobs = blobs
        self._sandbox = sandbox
        self._store_lane = store_lane
        self._blob_lane = blob_lane
        self._spool_dir = spool_dir
        self._turns: defaultdict[str, Turns] = defaultdict(lambda: Turns(embeddings_at_once))
        self._parse_deadline_seconds = parse_deadline_seconds

    async def ingest(self, task: IngestTask, embedder: Embedder, tell: Tell) -> Outcome:
        """Make the document searchable as the task's version, in place of all versions below.

        Raises `ParseFailed`, `InvalidArgument`, `NotFound` for what will fail again, `Unavailable`, `Overloaded` and
        `ProviderError` for what may not. After an error some of the chunks may be stored: call `discard`.
        """
        started = time.monotonic()
        run = _Run(task, embedder)
        with Spool(self._spool_dir, self._blob_lane) as spool:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._parse(run, spool, tell))
                    group.create_task(self._embed(run, spool))
                    group.create_task(self._keep(run, tell))
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None
        if not run.stored:
            raise ParseFailed("the file has no text")
        await tell(STORED_SHARE, "")
        await self._store_call(self._store.flush, task.tenant_id)
        older = ChunkSelector(document_ids=(task.document_id,), versions_below=task.version)
        await self._store_call(self._store.delete, task.tenant_id, older)
        return Outcome(run.stored, run.tokens, time.monotonic() - started, run.warnings)

    async def discard(self, task: IngestTask) -> None:
        """Remove what was stored of the task's version and those below; newer ones and chunks added by hand stay."""
        selector = ChunkSelector(document_ids=(task.document_id,), versions_below=task.version + 1)
        await self._store_call(self._store.delete, task.tenant_id, selector)

    async def drop(self, task: IngestTask) -> None:
        """Remove what the document had before: parsed chunks of the versions below the task's, and those added by hand."""
        selector = ChunkSelector(document_ids=(task.document_id,), versions_below=task.version, with_added=True)
        await self._store_call(self._store.delete, task.tenant_id, selector)

    async def purge(self, task: IngestTask) -> None:
        """Remove all chunks and the file of a document that was deleted."""
        await self._store_call(self._store.delete, task.tenant_id, ChunkSelector(document_ids=(task.document_id,)))
        if task.blob_key:
            await patiently(lambda: self._blob_lane.run(self._blobs.delete, task.blob_key))

    async def _parse(self, run: "_Run", spool: Spool, tell: Tell) -> None:
        task = run.task
        job = {
            "name": task.document_name,
            "method": task.chunk_method,
            "config": dict(task.parser_config),
            "tokenizer": str(run.embedder.tokenizer_path),
        }
        async with self._local_file(task.blob_key) as source:
            job["source"] = str(source)
            try:
                await self._spool_chunks(job, run, spool, tell)
            except ParserCrashed:
                if run.total:
                    raise
                _log.warning("a parser crashed; the file is tried once more, with care", document=task.document_id)
                await self._spool_chunks({**job, "careful": True}, run, spool, tell)
        spool.end()

    async def _spool_chunks(self, job: Mapping[str, Any], run: "_Run", spool: Spool, tell: Tell) -> None:
        async with aclosing(self._sandbox.run(job, self._parse_deadline_seconds)) as messages:
            async for message in messages:
                if "chunks" in message:
                    await spool.put(message["chunks"])
                elif "total" in message:
                    run.total, run.warnings = message["total"], tuple(message["warnings"])
                    await tell(PARSED_SHARE, f"found {_counted(run.total)}")
                else:
                    await tell(0.0, message["progress"])

    async def _embed(self, run: "_Run", spool: Spool) -> None:
        turns = self._turns[run.embedder.space]
        while messages := await _turnful(spool):
            chunks = run.chunks(messages)
            texts = [embedding_text(chunk.document_name, chunk.headings, chunk.content) for chunk in chunks]
            async with turns.turn(run.task.tenant_id):
                vectors = await patiently(lambda texts=texts: run.embedder.embed_documents(texts))
            await run.embedded.put((chunks, vectors))
        await run.embedded.put(None)

    async def _keep(self, run: "_Run", tell: Tell) -> None:
        while (batch := await run.embedded.get()) is not None:
            chunks, vectors = batch

            async def waits(error: MillraceError) -> None:
                if not run.has_waited:
                    run.has_waited = True
                    await tell(run.progress, f"waits for the chunk store: {error}")

            put = partial(self._store.put, run.task.tenant_id, chunks, vectors, run.embedder.space, wait=False)
            await patiently(lambda put=put: self._store_lane.run(put), waits)
            run.stored += len(chunks)
            await tell(run.progress, f"embedded {run.stored} of {_counted(run.total)}")

    async def _store_call(self, call: Callable[..., T], *arguments: Any, **named: Any) -> T:
        return await patiently(lambda: self._store_lane.run(call, *arguments, **named))

    @asynccontextmanager
    async def _local_file(self, key: str) -> AsyncIterator[Path]:
        opened, path = await patiently(lambda: self._blob_lane.run(self._open, key))
        try:
            yield path
        finally:
            await self._blob_lane.run(opened.__exit__, None, None, None)

    def _open(self, key: str) -> tuple[AbstractContextManager[Path], Path]:
        """A context of its own for each try: one that failed cannot be entered again."""
        opened = self._blobs.local_path(key)
        return opened, opened.__enter__()


@dataclass(slots=True)
class _Run:
    """What is known of a document while it is under way."""

    task: IngestTask
    embedder: Embedder
    total: int = 0
    stored: int = 0
    tokens: int = 0
    position: int = 0
    has_waited: bool = False
    warnings: tuple[str, ...] = ()
    created_at: float = field(default_factory=time.time)
    # None ends the queue
    embedded: asyncio.Queue[tuple[list[Chunk], np.ndarray] | None] = field(default_factory=lambda: asyncio.Queue(EMBEDDED_BATCHES_AHEAD))

    @property
    def progress(self) -> float:
        """For the progress bar, once chunks are parsed."""
        return PARSED_SHARE + (STORED_SHARE - PARSED_SHARE) * self.stored / max(self.stored, self.total, 1)

    def chunks(self, messages: Sequence[dict[str, Any]]) -> list[Chunk]:
        """The next chunks of the document, from what the parser process sent."""
        first = self.position
        self.position += len(messages)
        self.tokens += sum(message["tokens"] for message in messages)
        return [self._chunk(message, position) for position, message in enumerate(messages, start=first)]

    def _chunk(self, message: dict[str, Any], position: int) -> Chunk:
        task = self.task
        return Chunk(
            id=chunk_id(task.document_id, task.version, position),
            dataset_id=task.dataset_id,
            document_id=task.document_id,
            document_name=task.document_name,
            content=message["content"],
            terms=ChunkTerms(*message["terms"]),
            version=task.version,
            position=position,
            headings=tuple(message["headings"]),
            tags=tuple(message["tags"]),
            positions=tuple(map(tuple, message["positions"])),
            kind=message["kind"],
            available=task.available,
            created_at=self.created_at,
            extra={"span": message["span"]} if message["span"][1] else {},
        )


async def _turnful(spool: Spool) -> list[dict[str, Any]]:
    """What the document takes to the embedder at its next turn: what is parsed so far, up to the bounds; empty at its end."""
    messages = await spool.get()
    while spool.ready and len(messages) < EMBED_CHUNKS and sum(message["tokens"] for message in messages) < EMBED_TOKENS:
        messages += await spool.get()
    return messages


def _counted(chunks: int) -> str:
    return f"{chunks} chunk" if chunks == 1 else f"{chunks} chunks"


async def _nobody(_error: MillraceError) -> None:
    """The wait interests nobody."""


async def patiently(call: Callable[[], Awaitable[T]], waits: Callable[[MillraceError], Awaitable[None]] = _nobody) -> T:
    """The call's result; a part that is busy is asked again a few times, and `waits` is told why before each wait."""
    for wait_seconds in WAITS_SECONDS:
        try:
            return await call()
        except (Overloaded, Unavailable, ProviderBusy) as error:
            _log.info("ingestion waits", error=_reason(error), seconds=wait_seconds)
            await waits(error)
        await asyncio.sleep(wait_seconds)
    return await call()


def _reason(error: MillraceError) -> str:
    return f"{type(error).__name__}: {error}"
